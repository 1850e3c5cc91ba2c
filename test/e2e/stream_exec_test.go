package e2e

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestStreamLastWords runs a program that prints much right before it exits, many times: nothing is lost.
func TestStreamLastWords(t *testing.T) {
	begin(t)
	id := detach(t, "speaker", demo, "sleep", "1000")
	var all strings.Builder
	for i := 1; i <= 10_000; i++ {
		fmt.Fprintln(&all, i)
	}
	want := all.String()
	const times, atOnce = 100, 4
	began := time.Now()
	var workers sync.WaitGroup
	for w := range atOnce {
		workers.Go(func() {
			for i := w; i < times; i += atOnce {
				out, err := husk(t, "exec", id, "seq", "10000").cmd().Output()
				if got := string(out); err != nil || got != want {
					t.Errorf("time %d: %v, %d bytes, want %d: %s", i, err, len(got), len(want), firstDifference(got, want))
				}
			}
		})
	}
	workers.Wait()
	t.Logf("%d times in %v", times, time.Since(began).Round(100*time.Millisecond))
	for i := range 5 {
		if got := husk(t, "run", "--rm", demo, "seq", "10000").ok(); got != want {
			t.Errorf("run %d: %d bytes, want %d", i, len(got), len(want))
		}
	}
}

// TestStreamHeldOpen leaves a process behind that holds an exec's output: the exec ends all the same, with
// what was printed until then.
func TestStreamHeldOpen(t *testing.T) {
	begin(t)
	id := detach(t, "holder", demo, "sleep", "1000")
	began := time.Now()
	r := husk(t, "exec", id, "sh", "-c", "sleep 900 & echo left; exit 3").run()
	took := time.Since(began)
	if r.code != 3 || r.stdout != "left\n" {
		t.Errorf("exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	if took > seenWithin {
		t.Errorf("the exec took %v", took)
	}
	t.Logf("took %v", took.Round(time.Millisecond))
	if list := husk(t, "exec", id, "ps").ok(); !strings.Contains(list, "sleep 900") {
		t.Errorf("what the exec left behind is gone:\n%s", list)
	}
}

// TestStreamStdinEnds passes on the end of stdin, of run and of exec.
func TestStreamStdinEnds(t *testing.T) {
	begin(t)
	c := husk(t, "run", "--rm", "-i", demo, "sh", "-c", "wc -c; echo ended")
	c.in = "12345"
	if got := c.ok(); got != "5\nended\n" {
		t.Errorf("run printed %q", got)
	}
	id := detach(t, "listener", demo, "sleep", "1000")
	c = husk(t, "exec", "-i", id, "sh", "-c", "wc -c; echo ended")
	c.in = "1234567"
	if got := c.ok(); got != "7\nended\n" {
		t.Errorf("exec printed %q", got)
	}
}

// TestStreamStdinStaysOpen ends a program whose stdin nobody closes: run and exec end with it, and what was
// not read is still there for the next.
func TestStreamStdinStaysOpen(t *testing.T) {
	begin(t)
	id := detach(t, "patient", demo, "sleep", "1000")
	for _, args := range [][]string{{"exec", "-i", id, "sh", "-c", "exit 5"}, {"run", "--rm", "-i", demo, "sh", "-c", "exit 5"}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := husk(t, args...).cmd()
		cmd.Stdin = r
		if got := begun(t, cmd).wait(); got.code != 5 {
			t.Errorf("%s: exit code %d, want 5; stderr %q", args[0], got.code, got.stderr)
		}
		if _, err := io.WriteString(w, "for the next"); err != nil {
			t.Fatal(err)
		}
		w.Close()
		if rest, err := io.ReadAll(r); err != nil || string(rest) != "for the next" {
			t.Errorf("%s: what was left in stdin is %q (%v)", args[0], rest, err)
		}
		r.Close()
	}
}

// TestStreamExecsAtOnce runs several processes in one container at the same time, each with an input, an
// output and an exit code of its own.
func TestStreamExecsAtOnce(t *testing.T) {
	begin(t)
	id := detach(t, "busy", demo, "sleep", "1000")
	const n = 10
	all := make([]*running, n)
	began := time.Now()
	for i := range all {
		c := husk(t, "exec", "-i", id, "sh", "-c", fmt.Sprintf("cat; echo err %d >&2; exit %d", i, 10+i))
		c.in = fmt.Sprintf("in %d\n", i)
		all[i] = c.start()
	}
	for i, c := range all {
		r := c.wait()
		if r.code != 10+i || r.stdout != fmt.Sprintf("in %d\n", i) || r.stderr != fmt.Sprintf("err %d\n", i) {
			t.Errorf("exec %d: exit code %d, stdout %q, stderr %q", i, r.code, r.stdout, r.stderr)
		}
	}
	t.Logf("%d execs in %v", n, time.Since(began).Round(time.Millisecond))
	if list := husk(t, "ps", id).ok(); strings.Count(list, "\n") != 2 {
		t.Errorf("processes are left in the container:\n%s", list)
	}
}
