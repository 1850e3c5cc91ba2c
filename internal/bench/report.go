package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"husk.dev/husk/internal/sys"
)

// reportFormat is Report.Format. It changes when a key changes its meaning, not when one is added.
const reportFormat = 1

// Report is what Run found out. Its JSON form is stable.
type Report struct {
	Format   int       `json:"format"`
	Began    time.Time `json:"began"`
	Took     string    `json:"took"`
	Command  string    `json:"command"` // that measures the same again
	Machine  []Fact    `json:"machine"`
	Runtimes []Runtime `json:"runtimes"`
	Measures []Measure `json:"measures"`
	Results  []Result  `json:"results"`
	Failures []Failure `json:"failures"`
}

// Fact is something to know about the machine.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Result is all samples of a measure of a runtime, in the order they were taken.
type Result struct {
	Measure string    `json:"measure"`
	Runtime string    `json:"runtime"`
	Samples []float64 `json:"samples"`
	Summary
	// Base is the runtime that Ratio compares with, see Ratio; empty where there is none.
	Base  string  `json:"base,omitempty"`
	Ratio float64 `json:"ratio,omitempty"`
}

// Failure says why a runtime lacks results of a group.
type Failure struct {
	Group   string `json:"group"`
	Runtime string `json:"runtime"`
	Reason  string `json:"reason"`
}

// bases are what others are compared with, the first that has a result.
var bases = []string{native, "runc", "crun"}

func newReport(o Options, at Setting) *Report {
	runtimes := slices.Clone(at.Runtimes)
	for i := range runtimes {
		runtimes[i].Command = strings.Fields(at.shorten(strings.Join(runtimes[i].Command, " ")))
	}
	return &Report{
		Format: reportFormat, Began: time.Now().Truncate(time.Second), Command: commandLine(o),
		Machine: append(machine(), at.Facts...), Runtimes: runtimes, Measures: Measures(o),
		Results: []Result{}, Failures: []Failure{},
	}
}

// shorten leaves out where the work is done, which means nothing to a reader.
func (at Setting) shorten(s string) string {
	return strings.NewReplacer(filepath.Join(at.Dir, "bin")+"/", "", at.Dir+"/", "").Replace(s)
}

func commandLine(o Options) string {
	return strings.Join(append(append([]string{"husk", "bench"}, o.Groups...),
		fmt.Sprintf("--rounds %d --warmup %d --parallel %d --idle-max %d", o.Rounds, o.Warmup, o.Parallel, o.IdleMax)), " ")
}

// add returns what takes a runtime's samples.
func (r *Report) add(runtime string) func(measure string, value float64) {
	return func(measure string, value float64) {
		for i := range r.Results {
			if r.Results[i].Measure == measure && r.Results[i].Runtime == runtime {
				r.Results[i].Samples = append(r.Results[i].Samples, value)
				return
			}
		}
		r.Results = append(r.Results, Result{Measure: measure, Runtime: runtime, Samples: []float64{value}})
	}
}

func (r *Report) fail(group, runtime, reason string) {
	r.Failures = append(r.Failures, Failure{group, runtime, reason})
}

// Finish computes what follows from the samples, and puts results in the order of measures and runtimes.
func (r *Report) Finish() {
	var ordered []Result
	for _, m := range r.Measures {
		var of []Result
		for _, name := range append([]string{native}, names(r.Runtimes)...) {
			if res := r.find(m.Name, name); res != nil {
				res.Summary = Summarize(res.Samples, m.Higher)
				of = append(of, *res)
			}
		}
		compare(of, m.Higher)
		ordered = append(ordered, of...)
	}
	r.Results = ordered
}

// compare sets the ratios of the results of one measure.
func compare(of []Result, higher bool) {
	for _, base := range bases {
		for _, b := range of {
			if b.Runtime != base {
				continue
			}
			for i := range of {
				of[i].Base, of[i].Ratio = base, Ratio(of[i].P50, b.P50, higher)
			}
			return
		}
	}
}

func (r *Report) find(measure, runtime string) *Result {
	for i := range r.Results {
		if r.Results[i].Measure == measure && r.Results[i].Runtime == runtime {
			return &r.Results[i]
		}
	}
	return nil
}

func names(runtimes []Runtime) (list []string) {
	for _, rt := range runtimes {
		list = append(list, rt.Name)
	}
	return list
}

// machine is what figures depend on.
func machine() []Fact {
	total, err := sys.MemoryTotal()
	memory := fmt.Sprintf("%d MiB", total>>20)
	if err != nil {
		memory = "unknown"
	}
	return []Fact{
		{"processor", valueIn("/proc/cpuinfo", "model name", ":")},
		{"processors", fmt.Sprint(runtime.NumCPU())},
		{"memory", memory},
		{"kernel", sys.KernelRelease()},
		{"system", strings.Trim(valueIn("/etc/os-release", "PRETTY_NAME", "="), `"`)},
		{"load before", loadAverage()},
	}
}

// valueIn is the first value of a key in a file of lines "key SEPARATOR value", "unknown" without one.
func valueIn(path, key, separator string) string {
	data, err := os.ReadFile(path)
	if err == nil {
		for line := range strings.SplitSeq(string(data), "\n") {
			name, value, found := strings.Cut(line, separator)
			if found && strings.TrimSpace(name) == key {
				return strings.TrimSpace(value)
			}
		}
	}
	return "unknown"
}

// loadAverage is that of the last minute.
func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if fields := strings.Fields(string(data)); err == nil && len(fields) > 0 {
		return fields[0]
	}
	return "unknown"
}

// Decode reads a report that was written as JSON.
func Decode(data []byte) (*Report, error) {
	r := &Report{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read report: %w", err)
	}
	if r.Format != reportFormat {
		return nil, fmt.Errorf("read report: its format is %d, this husk knows %d", r.Format, reportFormat)
	}
	return r, nil
}
