package proc

import (
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The reaper that takes every status runs as PID 1 only; the agent's own tests have it there.

func start(t *testing.T, r *Reaper, script string, stdout *os.File) (int, <-chan Status) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	out := null.Fd()
	if stdout != nil {
		out = stdout.Fd()
	}
	pid, exited, err := r.Start("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Files: []uintptr{null.Fd(), out, null.Fd()}})
	if err != nil {
		t.Fatal(err)
	}
	return pid, exited
}

func code(t *testing.T, exited <-chan Status) uint32 {
	t.Helper()
	select {
	case s := <-exited:
		if age := time.Since(s.Time); age < 0 || age > time.Minute {
			t.Errorf("exited %v ago", age)
		}
		return s.Code
	case <-time.After(10 * time.Second):
		t.Fatal("no exit")
	}
	return 0
}

func TestStart(t *testing.T) {
	r, err := NewReaper(false)
	if err != nil {
		t.Fatal(err)
	}
	for script, want := range map[string]uint32{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 143, "kill -KILL $$": 137} {
		_, exited := start(t, r, script, nil)
		if got := code(t, exited); got != want {
			t.Errorf("%s: %d, want %d", script, got, want)
		}
	}
	if _, _, err := r.Start("/nowhere", []string{"x"}, &syscall.ProcAttr{}); err == nil {
		t.Error("started what is not there")
	}
}

func TestSignal(t *testing.T) {
	r, err := NewReaper(false)
	if err != nil {
		t.Fatal(err)
	}
	pid, exited := start(t, r, "exec sleep 100", nil)
	if err := r.Signal(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := code(t, exited); got != 143 {
		t.Errorf("status %d, want 143", got)
	}
	if err := r.Signal(pid, 0); err != syscall.ESRCH {
		t.Errorf("signal to what has exited: %v", err)
	}
	if err := r.Signal(os.Getppid(), 0); err != syscall.ESRCH {
		t.Errorf("signal to a stranger: %v", err)
	}
}

// TestAdoption watches orphans, one that still runs and one that has died before it is known.
func TestAdoption(t *testing.T) {
	r, err := NewReaper(false)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		after time.Duration
		child string
	}{{"running", 0, "sleep 0.2; exit 9"}, {"dead", 300 * time.Millisecond, "sleep 0.05; exit 9"}} {
		t.Run(c.name, func(t *testing.T) {
			read, write, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			adoption := r.Adopt()
			defer adoption.Close()
			_, exited := start(t, r, "( "+c.child+" ) >&2 & echo $!", write)
			write.Close()
			if got := code(t, exited); got != 0 {
				t.Fatalf("status %d", got)
			}
			text, err := io.ReadAll(read)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(c.after)
			if got := code(t, adoption.Watch(pid)); got != 9 {
				t.Errorf("status %d, want 9", got)
			}
		})
	}
}

// TestStrays has a reaper of everything keep what died unknown, as long as somebody may ask for it.
func TestStrays(t *testing.T) {
	r := &Reaper{all: true, live: map[int]chan Status{}, strays: map[int]Status{}}
	gone := 1 << 30 // no process has this number
	r.deliver(gone, Status{Code: 1})
	if len(r.strays) != 0 {
		t.Error("kept a status that nobody can ask for")
	}
	one, two := r.Adopt(), r.Adopt()
	r.deliver(gone, Status{Code: 2, Time: time.Now()})
	r.deliver(os.Getpid(), Status{Code: 3, Time: time.Now()}) // of an earlier process with a pid that is taken
	one.Close()
	if got := code(t, two.Watch(gone)); got != 2 {
		t.Errorf("status %d, want 2", got)
	}
	select {
	case s := <-two.Watch(os.Getpid()):
		t.Errorf("a running process got the status of its namesake: %v", s)
	default:
	}
	for i := range maxStrays + 10 {
		r.deliver(gone+i, Status{})
	}
	if len(r.strays) > maxStrays {
		t.Errorf("%d strays, want at most %d", len(r.strays), maxStrays)
	}
	two.Close()
	if len(r.strays) != 0 {
		t.Errorf("%d strays after the last adoption", len(r.strays))
	}
}
