package host

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestEventsOutliveAHost: what has finished when a host is lost counts and is not run again; the rest runs in the next.
func TestEventsOutliveAHost(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "events"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var said strings.Builder
	e := &events{package_: module + "some/package", out: file, say: &said, done: map[string]bool{}}
	all := []string{"TestA", "TestB", "TestC"}
	for _, life := range []struct {
		prints string
		whole  bool
		left   []string
	}{
		{"=== RUN   TestA\n=== RUN   TestA/part\n    a_test.go:1: words\n--- PASS: TestA/part (1.00s)\n=== NAME  TestA\n--- PASS: TestA (1.00s)\n" +
			"=== NAME  \n=== RUN   TestB\n    b_test.go:1: before the host was lost\n", false, []string{"TestB", "TestC"}},
		{"=== RUN   TestB\n    b_test.go:2: why\n--- FAIL: TestB (2.00s)\n=== NAME  \n=== RUN   TestC\n--- SKIP: TestC (0.00s)\n=== NAME  \nFAIL\n", true, nil},
	} {
		w, finish, err := e.begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(life.prints) {
			if !strings.HasPrefix(line, " ") {
				line = "\x16" + line // as -test.v=test2json marks them
			}
			if _, err := w.Write([]byte(line)); err != nil {
				t.Fatal(err)
			}
		}
		if err := finish(life.whole); err != nil {
			t.Fatal(err)
		}
		if left := remaining(all, e.done); !slices.Equal(left, life.left) {
			t.Errorf("left to run: %v, want %v", left, life.left)
		}
	}
	if e.passed != 2 || e.failed != 1 || e.skipped != 1 {
		t.Errorf("%d passed, %d failed, %d skipped; want 2, 1, 1", e.passed, e.failed, e.skipped)
	}
	if out := said.String(); !strings.Contains(out, "b_test.go:2: why") || strings.Contains(out, "before the host was lost") {
		t.Errorf("said of it:\n%s", out)
	}
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	ends := map[string]int{}
	for line := range strings.Lines(string(text)) {
		var one event
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if one.Package != e.package_ {
			t.Errorf("an event of package %q", one.Package)
		}
		if one.Action != "output" && one.Action != "run" && one.Action != "start" {
			ends[one.Test+" "+one.Action]++
		}
	}
	for _, want := range []string{"TestA pass", "TestA/part pass", "TestB fail", "TestC skip", " fail"} {
		if ends[want] != 1 {
			t.Errorf("%d events %q, want 1", ends[want], want)
		}
	}
}

// emulator has a process in the place of an emulator's, and watches it.
func emulator(t *testing.T, script, console string) *Host {
	t.Helper()
	h := &Host{log: filepath.Join(t.TempDir(), "console"), still: time.Second, ended: make(chan struct{}), alive: make(chan struct{})}
	if err := os.WriteFile(h.log, []byte(console), 0o644); err != nil {
		t.Fatal(err)
	}
	h.cmd = exec.Command("/bin/sh", "-c", script)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = h.cmd.Wait()
		close(h.ended)
	}()
	t.Cleanup(func() {
		_ = h.cmd.Process.Kill()
		<-h.ended
	})
	return h
}

// TestHostIsLost: a host that works without a sign of life, one whose kernel panics and one that goes are lost, and why is told.
func TestHostIsLost(t *testing.T) {
	for name, c := range map[string]struct{ script, console, why string }{
		"stands still": {"while :; do :; done", "", "it stands still"},
		"panics":       {"exit 0", "[ 1.0] Kernel panic - not syncing: Fatal exception\n[ 1.1] more\n", "Kernel panic - not syncing: Fatal exception"},
		"goes":         {"exit 0", "", "the emulator ended"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := emulator(t, c.script, c.console)
			go h.watch()
			for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
				h.mu.Lock()
				lost := h.lost
				h.mu.Unlock()
				if lost != nil {
					if !strings.HasPrefix(lost.Why, c.why) {
						t.Errorf("it is lost: %q, want %q", lost.Why, c.why)
					}
					return
				}
				if time.Now().After(end) {
					t.Fatal("nobody noticed")
				}
			}
		})
	}
}

// TestHostThatWaitsIsNotLost: a machine that is busy with other things lets its emulator wait.
func TestHostThatWaitsIsNotLost(t *testing.T) {
	h := emulator(t, "sleep 4", "")
	go h.watch()
	select {
	case <-h.ended:
		t.Error("it was ended")
	case <-time.After(3 * time.Second):
	}
}
