package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// events are what go test printed of a run with a pass, nested failures, two skips, a package that did not
// build and one that panicked in the middle of a test.
const events = `go: downloading something v1
{"Action":"start","Package":"m/a"}
{"Action":"run","Package":"m/a","Test":"TestGood"}
{"Action":"output","Package":"m/a","Test":"TestGood","Output":"quiet when good\n"}
{"Action":"pass","Package":"m/a","Test":"TestGood","Elapsed":2.5}
{"Action":"run","Package":"m/a","Test":"TestTable"}
{"Action":"run","Package":"m/a","Test":"TestTable/one"}
{"Action":"run","Package":"m/a","Test":"TestTable/two"}
{"Action":"output","Package":"m/a","Test":"TestTable/two","Output":"two is wrong\n"}
{"Action":"pass","Package":"m/a","Test":"TestTable/one","Elapsed":0}
{"Action":"fail","Package":"m/a","Test":"TestTable/two","Elapsed":0}
{"Action":"fail","Package":"m/a","Test":"TestTable","Elapsed":0}
{"Action":"run","Package":"m/a","Test":"TestRoot"}
{"Action":"output","Package":"m/a","Test":"TestRoot","Output":"=== RUN   TestRoot\n"}
{"Action":"output","Package":"m/a","Test":"TestRoot","Output":"    a_test.go:7: needs root\n"}
{"Action":"skip","Package":"m/a","Test":"TestRoot","Elapsed":0}
{"Action":"run","Package":"m/a","Test":"TestOther"}
{"Action":"skip","Package":"m/a","Test":"TestOther","Elapsed":0}
{"Action":"fail","Package":"m/a","Elapsed":3}
{"ImportPath":"m/b","Action":"build-output","Output":"b.go:1: syntax error\n"}
{"Action":"output","Package":"m/b","Output":"FAIL m/b [build failed]\n"}
{"Action":"fail","Package":"m/b","Elapsed":0,"FailedBuild":"m/b"}
{"Action":"run","Package":"m/c","Test":"TestPanic"}
{"Action":"output","Package":"m/c","Test":"TestPanic","Output":"panic: boom\n"}
{"Action":"fail","Package":"m/c","Elapsed":1}
{"Action":"run","Package":"m/d","Test":"TestD"}
{"Action":"pass","Package":"m/d","Test":"TestD","Elapsed":0}
{"Action":"pass","Package":"m/d","Elapsed":1}
`

// report runs the report over events with a list of allowed skips and returns its verdict and text.
func reportOf(t *testing.T, events, skips string, complete bool) (bool, string) {
	t.Helper()
	list := filepath.Join(t.TempDir(), "skips")
	if err := os.WriteFile(list, []byte(skips), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	ok, err := run(strings.NewReader(events), &out, list, complete, 5)
	if err != nil {
		t.Fatal(err)
	}
	return ok, out.String()
}

func TestReport(t *testing.T) {
	ok, text := reportOf(t, events, "# why\n\nTestRoot: not root here\nTestGone: was removed\n", true)
	if ok {
		t.Error("a run with failures counts as good")
	}
	for _, want := range []string{
		"go: downloading something v1\n",
		"--- log of m/a.TestTable/two\ntwo is wrong\n",
		"b.go:1: syntax error\n",
		"--- log of m/c.TestPanic\npanic: boom\n",
		"slowest tests\n     2.5s  m/a.TestGood\n",
		"failed\n  m/a.TestTable/two\n",
		"outside their tests\n  m/b\n  m/c\n",
		"allowed skips\n  m/a.TestOther: no reason given\n",
		"no such test\n  TestGone\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "quiet when good") {
		t.Error("the report shows the log of a test that passed")
	}
	if want := "\n3 passed, 3 failed, 2 skipped\n"; !strings.HasSuffix(text, want) {
		t.Errorf("the report ends in %q, want %q", text[len(text)-40:], want)
	}
}

func TestVerdict(t *testing.T) {
	pass := `{"Action":"run","Package":"m","Test":"TestA"}` + "\n" +
		`{"Action":"pass","Package":"m","Test":"TestA"}` + "\n"
	skip := `{"Action":"run","Package":"m","Test":"TestB"}` + "\n" +
		`{"Action":"output","Package":"m","Test":"TestB","Output":"    b_test.go:3: no such device\n"}` + "\n" +
		`{"Action":"skip","Package":"m","Test":"TestB"}` + "\n"
	for _, c := range []struct {
		name, events, skips string
		complete, want      bool
	}{
		{"pass", pass, "", true, true},
		{"nothing ran", "", "", false, false},
		{"only skips", skip, "TestB: no device here", true, false},
		{"allowed skip", pass + skip, "TestB: no device here", true, true},
		{"skip not allowed", pass + skip, "", false, false},
		{"stale entry", pass, "TestB: no device here", true, false},
		{"entry outside a partial run", pass, "TestB: no device here", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, text := reportOf(t, c.events, c.skips, c.complete); got != c.want {
				t.Errorf("verdict %v, want %v:\n%s", got, c.want, text)
			}
		})
	}
}

func TestWithoutSkipList(t *testing.T) {
	var out strings.Builder
	in := `{"Action":"run","Package":"m","Test":"TestA"}` + "\n" + `{"Action":"pass","Package":"m","Test":"TestA"}` + "\n" +
		`{"Action":"run","Package":"m","Test":"TestB"}` + "\n" + `{"Action":"skip","Package":"m","Test":"TestB"}` + "\n"
	if ok, err := run(strings.NewReader(in), &out, "", false, 5); err != nil || !ok {
		t.Errorf("a skip counts against a run without a list: %v\n%s", err, out.String())
	}
}

func TestSkipListNeedsReasons(t *testing.T) {
	for _, line := range []string{"TestA", "TestA:", "TestA: "} {
		list := filepath.Join(t.TempDir(), "skips")
		if err := os.WriteFile(list, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readSkips(list); err == nil {
			t.Errorf("the line %q is taken", line)
		}
	}
}
