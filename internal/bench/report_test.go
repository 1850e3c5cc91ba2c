package bench

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// example is a report as Run leaves it.
func example() *Report {
	o := Options{Groups: []string{"start", "io", "cpu"}, Rounds: 2, Warmup: 1, Parallel: 20, IdleMax: 20}
	r := newReport(o, Setting{Dir: "/tmp/bench", Runtimes: []Runtime{
		{Name: "husk", Command: []string{"/tmp/bench/bin/husk", "--config", "/tmp/bench/husk.toml"}, Version: "1.0", Image: "husk-bench"},
		{Name: "runc", Command: []string{"/usr/bin/runc"}, Version: "runc version 1.1.5"},
		{Name: "odd|one", Command: []string{"/opt/odd", "--flag"}, Version: "unknown"},
	}})
	r.Began, r.Took = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "1m2s"
	r.Machine = []Fact{{"processor", "an example"}, {"processors", "2"}}
	r.add("runc")("start.exit", 30)
	r.add("husk")("start.exit", 100)
	r.add("runc")("start.exit", 20)
	r.add("husk")("start.exit", 125.5)
	r.add("husk")("start.image", 99.44)
	r.add("husk")("cpu.loop", 300)
	r.add("runc")("cpu.loop", 550)
	r.add(native)("cpu.loop", 600)
	r.add("husk")("io.rootfs.small.create", 2400)
	r.add(native)("io.rootfs.small.create", 1200)
	r.add("husk")("no.such.measure", 1) // a container may print anything
	r.fail("start", "odd|one", "exit status 1: <no> & \"never\"")
	r.Finish()
	return r
}

func golden(t *testing.T, name string, write func(io.Writer) error) {
	t.Helper()
	var got bytes.Buffer
	if err := write(&got); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s differs (go test -update writes it anew):\n%s", path, got.Bytes())
	}
}

func TestText(t *testing.T)     { golden(t, "report.txt.golden", example().Text) }
func TestMarkdown(t *testing.T) { golden(t, "report.md.golden", example().Markdown) }

func TestJSON(t *testing.T) {
	golden(t, "report.json.golden", func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(example())
	})
}

func TestChart(t *testing.T) {
	golden(t, "chart.svg.golden", example().Chart)
	var svg bytes.Buffer
	if err := example().Chart(&svg); err != nil {
		t.Fatal(err)
	}
	for d := xml.NewDecoder(&svg); ; {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatalf("the image is no XML: %v", err)
		}
	}
}

func TestChartOfNothing(t *testing.T) {
	if err := newReport(Options{Parallel: 1, IdleMax: 1}, Setting{}).Chart(io.Discard); err == nil {
		t.Error("a chart without figures was drawn")
	}
}

func TestDecode(t *testing.T) {
	want := example()
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	got.Finish() // again changes nothing
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "{}", `{"format": 2}`, "[]"} {
		if _, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%q was taken for a report", bad)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 3: "3", 0.04567: "0.0457", 1.234: "1.23", 12.34: "12.3", 1234.5: "1234", 99.96: "100.0"} {
		if got := number(v); got != want {
			t.Errorf("number(%g) = %s, want %s", v, got, want)
		}
	}
}

func TestMeasures(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Measures(Options{Parallel: 20, IdleMax: 100}) {
		if seen[m.Name] || m.Title == "" || !strings.HasPrefix(m.Name, m.Group+".") {
			t.Errorf("measure %+v: want a title, and a name of its own that begins with its group", m)
		}
		seen[m.Name] = true
	}
	for _, name := range []string{"memory.bundle.1", "memory.bundle.10", "memory.image.100", "start.exit", "io.disk.write", "cpu.pipe", "density.idle"} {
		if !seen[name] {
			t.Errorf("no measure %s", name)
		}
	}
	for max, want := range map[int][]int{1: {1}, 5: {1, 5}, 10: {1, 10}, 11: {1, 10, 11}} {
		if got := idleCounts(Options{IdleMax: max}); !reflect.DeepEqual(got, want) {
			t.Errorf("idle containers up to %d are looked at at %v, want %v", max, got, want)
		}
	}
}
