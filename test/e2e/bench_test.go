package e2e

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/testenv"
)

// benchReport is what the test reads of a report.
type benchReport struct {
	Format   int
	Machine  []struct{ Name, Value string }
	Runtimes []struct{ Name, Version string }
	Results  []struct {
		Measure, Runtime string
		Samples          []float64
		N                int
		P50              float64
	}
	Failures []struct{ Group, Runtime, Reason string }
}

// TestBench looks at the shape of a real report, at no figure.
func TestBench(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	testenv.Leaks(t, dir)
	out := husk(t, "bench", "start", "verbs", "memory", "cpu", "net", "--rounds", "1", "--warmup", "0", "--parallel", "2",
		"--idle-max", "1", "--dir", dir, "--json").ok()
	var r benchReport
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("read the report: %v", err)
	}
	if r.Format != 1 || len(r.Machine) < 5 || len(r.Runtimes) == 0 || !strings.HasPrefix(r.Runtimes[0].Name, "husk") {
		t.Errorf("format %d, machine %v, runtimes %v", r.Format, r.Machine, r.Runtimes)
	}
	want := map[string]int{
		"start.output": 1, "start.exit": 1, "start.image": 1, "start.parallel.output": 2, "start.parallel.exit": 2,
		"verbs.create": 1, "verbs.start": 1, "verbs.exec": 1, "verbs.kill": 1, "verbs.end": 1, "verbs.delete": 1, "verbs.teardown": 1,
		"memory.bundle.1": 1, "memory.image.1": 1, "cpu.fork": 1, "cpu.syscall": 1, "cpu.loop": 1, "cpu.pipe": 1,
		"net.tcp.send": 1, "net.tcp.receive": 1, "net.tcp.send.8": 1, "net.tcp.receive.8": 1, "net.udp.send": 1, "net.tcp.request": 1,
	}
	for _, res := range r.Results {
		if res.Runtime != r.Runtimes[0].Name {
			continue
		}
		if res.N != want[res.Measure] || len(res.Samples) != res.N || res.P50 <= 0 {
			t.Errorf("%+v: want %d samples, all more than nothing", res, want[res.Measure])
		}
		delete(want, res.Measure)
	}
	for measure := range want {
		t.Errorf("%s was not measured", measure)
	}
	for _, f := range r.Failures {
		if strings.HasPrefix(f.Runtime, "husk") {
			t.Errorf("failure: %+v", f)
		}
	}
	checkRenderings(t, out)
}

// checkRenderings prints a report again, in other forms.
func checkRenderings(t *testing.T, report string) {
	t.Helper()
	dir := t.TempDir()
	file, chart := filepath.Join(dir, "report.json"), filepath.Join(dir, "chart.svg")
	if err := os.WriteFile(file, []byte(report), 0o600); err != nil {
		t.Fatal(err)
	}
	text := husk(t, "bench", "--from", file).ok()
	if !strings.Contains(text, "run true to exit") || !strings.Contains(text, "RATIO") {
		t.Errorf("as text: %s", text)
	}
	// Without another runtime here there is no ratio to draw.
	args := []string{"bench", "--from", file, "--markdown"}
	if strings.Contains(report, `"base"`) {
		args = append(args, "--chart", chart)
	}
	if page := husk(t, args...).ok(); !strings.Contains(page, "| run true to exit |") {
		t.Errorf("as markdown: %s", page)
	}
	if len(args) == 4 {
		return
	}
	svg, err := os.ReadFile(chart)
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(svg, new(struct{ XMLName xml.Name })); err != nil {
		t.Errorf("the chart is no XML: %v", err)
	}
}

func TestBenchInterrupted(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	testenv.Leaks(t, dir)
	cmd := husk(t, "bench", "memory", "--rounds", "1", "--idle-max", "50", "--dir", dir).cmd()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		states, err := filepath.Glob(filepath.Join(dir, "*/state/husk*/*/state.json"))
		if err != nil {
			t.Fatal(err)
		}
		if len(states) > 0 { // one runs, or is being made
			break
		}
		if time.Now().After(end) {
			t.Error("no container was made")
			break
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || stdout.Len() > 0 || !strings.Contains(stderr.String(), "interrupted") {
		t.Errorf("ended with %v, stdout %q, stderr %q", err, &stdout, &stderr)
	}
}
