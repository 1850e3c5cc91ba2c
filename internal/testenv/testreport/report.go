package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"time"
)

// event is one line of `go test -json`; see `go doc test2json`.
type event struct {
	Action  string
	Package string
	Test    string
	Elapsed float64 // seconds
	Output  string
}

// test names a test; the empty name is the package itself.
type test struct {
	pkg, name string
}

func (t test) String() string {
	if t.name == "" {
		return t.pkg
	}
	return t.pkg + "." + t.name
}

// parent returns the test that t is a subtest of.
func (t test) parent() (test, bool) {
	at := strings.LastIndexByte(t.name, '/')
	if at < 0 {
		return test{}, false
	}
	return test{t.pkg, t.name[:at]}, true
}

// result is a test that has ended.
type result struct {
	test
	elapsed time.Duration
}

// report collects events. What counts are leaves: a test with subtests counts as its subtests.
type report struct {
	out     io.Writer
	allowed map[string]string // name of a test to the reason why it may be skipped; nil: all may

	logs     map[test][]string // output of what has not ended
	parents  map[test]bool     // tests that have subtests
	failedIn map[test]bool     // tests and packages in which a test failed
	seen     map[string]bool   // names of tests that ran or were skipped

	passes []result
	fails  []result
	skips  int
	excess []string // skips that are not allowed, with their reasons
	broken []string // packages that failed outside any test: they did not build, panicked or timed out
}

func newReport(out io.Writer, allowed map[string]string) *report {
	return &report{
		out: out, allowed: allowed,
		logs: map[test][]string{}, parents: map[test]bool{}, failedIn: map[test]bool{}, seen: map[string]bool{},
	}
}

// readSkips reads lines of "TestName: reason"; blank lines and lines that begin with # are comments.
// Without a file every test may be skipped.
func readSkips(name string) (map[string]string, error) {
	if name == "" {
		return nil, nil
	}
	allowed := map[string]string{}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read the list of allowed skips: %w", err)
	}
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		test, reason, ok := strings.Cut(line, ": ")
		if !ok || strings.TrimSpace(reason) == "" {
			return nil, fmt.Errorf("%s:%d: want \"TestName: reason\"", name, i+1)
		}
		allowed[test] = reason
	}
	return allowed, nil
}

// read takes events until in ends. Lines that are no events (of a tool that go test runs) are printed.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				r.take(e)
			} else {
				fmt.Fprintf(r.out, "%s", line)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) take(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "run":
		r.seen[e.Test] = true
		if parent, ok := t.parent(); ok {
			r.parents[parent] = true
		}
	case "output":
		r.logs[t] = append(r.logs[t], e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(t, e)
		} else {
			r.endTest(t, e)
		}
		delete(r.logs, t)
	}
}

func (r *report) endTest(t test, e event) {
	res := result{t, time.Duration(e.Elapsed * float64(time.Second))}
	switch e.Action {
	case "pass":
		if !r.parents[t] {
			r.passes = append(r.passes, res)
		}
	case "fail":
		// The failure of a subtest makes its parent fail; that is one failure.
		if !r.failedIn[t] {
			r.fails = append(r.fails, res)
		}
		r.failedIn[test{t.pkg, ""}] = true
		if parent, ok := t.parent(); ok {
			r.failedIn[parent] = true
		}
		fmt.Fprintf(r.out, "\n--- log of %s\n%s", t, strings.Join(r.logs[t], ""))
	case "skip":
		r.skips++
		if _, ok := r.allowed[t.name]; !ok && r.allowed != nil {
			r.excess = append(r.excess, t.String()+": "+skipReason(r.logs[t]))
		}
	}
}

// skipReason finds what t.Skip said: the line before "--- SKIP", without its place in the source.
func skipReason(log []string) string {
	for _, line := range log {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") {
			continue
		}
		if _, said, ok := strings.Cut(line, ".go:"); ok {
			_, said, _ = strings.Cut(said, ": ")
			return said
		}
		return line
	}
	return "no reason given"
}

func (r *report) endPackage(t test, e event) {
	elapsed := time.Duration(e.Elapsed * float64(time.Second)).Round(10 * time.Millisecond)
	switch e.Action {
	case "pass":
		fmt.Fprintf(r.out, "ok    %-50s %8s\n", t, elapsed)
	case "fail":
		fmt.Fprintf(r.out, "FAIL  %-50s %8s\n", t, elapsed)
		// A panic, a timeout or TestMain ends a package with tests that never ended.
		if !r.failedIn[t] || r.unfinished(t.pkg) {
			r.broken = append(r.broken, t.pkg)
			r.flush(t.pkg)
		}
	}
}

// unfinished tells whether a test of a package that has ended was still running.
func (r *report) unfinished(pkg string) bool {
	for t := range r.logs {
		if t.pkg == pkg && t.name != "" {
			return true
		}
	}
	return false
}

// flush prints what a broken package and its unfinished tests said.
func (r *report) flush(pkg string) {
	var open []test
	for t := range r.logs {
		if t.pkg == pkg {
			open = append(open, t)
		}
	}
	sort.Slice(open, func(i, j int) bool { return open[i].name < open[j].name })
	for _, t := range open {
		fmt.Fprintf(r.out, "\n--- log of %s\n%s", t, strings.Join(r.logs[t], ""))
		delete(r.logs, t)
	}
}

// finish prints the summary and tells whether the run was good. Where complete, every test on the list of
// allowed skips must be known to the run.
func (r *report) finish(slow int, complete bool) bool {
	r.slowest(slow)
	var failed, stale []string
	for _, res := range r.fails {
		failed = append(failed, res.String())
	}
	for name := range r.allowed {
		if complete && !r.seen[name] {
			stale = append(stale, name)
		}
	}
	sort.Strings(stale)
	r.list("failed", failed)
	r.list("packages that failed outside their tests", r.broken)
	r.list("skipped without being on the list of allowed skips", r.excess)
	r.list("on the list of allowed skips, but there is no such test", stale)
	nFailed := len(r.fails) + len(r.broken)
	fmt.Fprintf(r.out, "\n%d passed, %d failed, %d skipped\n", len(r.passes), nFailed, r.skips)
	return nFailed == 0 && len(r.excess) == 0 && len(stale) == 0 && len(r.passes) > 0
}

// slowest names up to n tests that took a second or more.
func (r *report) slowest(n int) {
	all := append(append([]result{}, r.passes...), r.fails...)
	sort.SliceStable(all, func(i, j int) bool { return all[i].elapsed > all[j].elapsed })
	var lines []string
	for _, res := range all {
		if len(lines) == n || res.elapsed < time.Second {
			break
		}
		lines = append(lines, fmt.Sprintf("%7s  %s", res.elapsed.Round(10*time.Millisecond), res))
	}
	r.list("slowest tests", lines)
}

func (r *report) list(title string, items []string) {
	if len(items) == 0 {
		return
	}
	fmt.Fprintf(r.out, "\n%s\n", title)
	for _, item := range items {
		fmt.Fprintf(r.out, "  %s\n", item)
	}
}
