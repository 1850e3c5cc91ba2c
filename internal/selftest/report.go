package selftest

import (
	"fmt"
	"io"
	"strings"
	"time"

	"husk.dev/husk/internal/check"
)

// reportFormat is Report.Format. It changes when a key changes its meaning, not when one is added.
const reportFormat = 1

// Status is how a step ended.
type Status string

// Ends of a step.
const (
	OK      Status = "ok"
	Failed  Status = "failed"
	Skipped Status = "skipped"
)

// Verdicts of a Report.
const (
	Passed      = "ok"          // nothing failed
	NotPassed   = "failed"      // something did
	Interrupted = "interrupted" // it was not tried to the end
)

// Report is what Run found out. Its JSON form is stable: keys, steps and items may be added.
type Report struct {
	Format  int       `json:"format"`
	Verdict string    `json:"verdict"` // ok, failed or interrupted
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"` // all steps and the cleaning together
	// Versions of what took part; empty where it was not found.
	Versions Versions `json:"versions"`
	// Accel is kvm or tcg, and Isolation the class of the containers: those of the virtual machine of the step boot, where
	// it came to run; else what husk check expects.
	Accel     string `json:"accel"`
	Isolation string `json:"isolation"`
	User      string `json:"user"`
	// Configuration is what was tried, as a configuration file.
	Configuration string       `json:"configuration"`
	Steps         []Result     `json:"steps"`
	Check         check.Report `json:"check"` // as husk check --json
	// Log is the file with what the failed steps did and what husk said; empty where nothing failed.
	Log string `json:"log,omitempty"`
}

// Versions are those of the programs that took part.
type Versions struct {
	Husk        string `json:"husk"`
	QEMU        string `json:"qemu"`
	Virtiofsd   string `json:"virtiofsd"`
	HostKernel  string `json:"host_kernel"`
	GuestKernel string `json:"guest_kernel"`
}

// Result is the end of a step.
type Result struct {
	Name    string  `json:"name"`
	What    string  `json:"what"` // is tried
	Status  Status  `json:"status"`
	Seconds float64 `json:"seconds"`
	Why     string  `json:"why,omitempty"` // it failed or was skipped
	Fix     string  `json:"fix,omitempty"` // what mends it
	// Output is the end of what is in the log about it.
	Output string `json:"output,omitempty"`
}

// finish fills in what is known at the end.
func (r *Report) finish(s *session, took time.Duration, interrupted bool) {
	r.Seconds = float64(took.Milliseconds()) / 1000
	r.Log = s.logFile
	r.Verdict = Passed
	for _, step := range r.Steps {
		if step.Status == Failed {
			r.Verdict = NotPassed
		}
	}
	if interrupted {
		r.Verdict = Interrupted
	}
	r.Versions.Husk = s.at.Version
	first := func(value string) string { value, _, _ = strings.Cut(value, ", /"); return value }
	for _, item := range r.Check.Items {
		if item.Status == check.Missing {
			continue
		}
		switch item.Name {
		case "qemu":
			r.Versions.QEMU = first(item.Value)
		case "virtiofsd":
			r.Versions.Virtiofsd = first(item.Value)
		case "kernel":
			r.Versions.HostKernel = item.Value
		case "guest-kernel":
			if r.Versions.GuestKernel == "" {
				r.Versions.GuestKernel = first(item.Value)
			}
		case "isolation":
			if r.Isolation == "" {
				r.Isolation = item.Value
			}
		}
	}
	r.Accel = "tcg"
	if r.Isolation == "hardware" {
		r.Accel = "kvm"
	}
	if text, err := s.at.Config.Encode(); err == nil {
		r.Configuration = string(text)
	}
}

// Header is the line above those of the steps.
func Header() string { return fmt.Sprintf("%-16s %-8s %8s  %s", "STEP", "STATUS", "SECONDS", "WHAT") }

// Line is a step's line for people.
func (r Result) Line() string {
	text := r.What
	if r.Why != "" {
		text = r.Why
	}
	return fmt.Sprintf("%-16s %-8s %8.1f  %s", r.Name, r.Status, r.Seconds, text)
}

// Text writes for people what the lines of the steps have not told: what mends what failed, the versions, the report of
// husk check, and the verdict.
func (r *Report) Text(out io.Writer) error {
	var b strings.Builder
	for _, step := range r.Steps {
		if step.Status == Failed || step.Fix != "" {
			fmt.Fprintf(&b, "\n%s: %s: %s.\n", step.Status, step.Name, strings.TrimSuffix(step.Why, "."))
		}
		if step.Fix != "" {
			fmt.Fprintf(&b, "    %s\n", step.Fix)
		}
	}
	b.WriteString("\n")
	v := r.Versions
	for _, line := range [][2]string{
		{"husk", v.Husk}, {"QEMU", v.QEMU}, {"virtiofsd", v.Virtiofsd}, {"kernel of the host", v.HostKernel}, {"kernel of the guest", v.GuestKernel},
		{"accelerator", r.Accel}, {"isolation", r.Isolation}, {"user", r.User},
	} {
		value := line[1]
		if value == "" {
			value = "unknown"
		}
		fmt.Fprintf(&b, "%-20s %s\n", line[0], value)
	}
	b.WriteString("\n")
	if _, err := io.WriteString(out, b.String()); err != nil {
		return err
	}
	if len(r.Check.Items) > 0 {
		if err := r.Check.Print(out); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "\n%s\n", r.verdict())
	return err
}

func (r *Report) verdict() string {
	count := map[Status]int{}
	var failed []string
	for _, step := range r.Steps {
		count[step.Status]++
		if step.Status == Failed {
			failed = append(failed, step.Name)
		}
	}
	text := fmt.Sprintf("%d steps ok, %d failed, %d skipped, in %.0f s", count[OK], count[Failed], count[Skipped], r.Seconds)
	switch {
	case r.Verdict == Interrupted:
		text = "Interrupted: " + text + "."
	case len(failed) > 0:
		text = "Failed: " + strings.Join(failed, ", ") + ". " + text + "."
	default:
		text = "Passed: " + text + "."
	}
	if r.Log != "" {
		text += "\nLog: " + r.Log
	}
	return text
}

// oneLine makes a message fit a line.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
