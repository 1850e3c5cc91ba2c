package proc

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestAwaitExec(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	AwaitExec("/proc", cmd.Process.Pid, time.Minute) // Start has seen its execve
	if !executed("/proc", cmd.Process.Pid) || !executed("/proc", 1<<30) {
		t.Error("a program that runs, or no process, is taken for one that does not run yet")
	}
	dir := t.TempDir()
	stat := func(flags string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, "7"), 0o755); err != nil {
			t.Fatal(err)
		}
		line := "7 (a) b) S 1 7 7 0 -1 " + flags + " 1 0 0 0 0 0 0 0 20 0 1 0 12 1 2 3\n"
		if err := os.WriteFile(filepath.Join(dir, "7", "stat"), []byte(line), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stat("4194368") // PF_RANDOMIZE and PF_FORKNOEXEC
	if executed(dir, 7) || !Sleeps(dir, 7) {
		t.Error("a process that was only forked is taken for a program")
	}
	began := time.Now()
	AwaitExec(dir, 7, 20*time.Millisecond)
	if time.Since(began) < 20*time.Millisecond {
		t.Error("did not wait")
	}
	stat("4194304")
	AwaitExec(dir, 7, time.Minute)
}

func TestExpects(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		status string
		want   bool
	}{
		{"Name:\tsh\nNSpid:\t50\t1\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000", false},
		{"Name:\tsh\nNSpid:\t50\t1\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000004000", true},  // caught
		{"Name:\tsh\nNSpid:\t50\t1\nSigIgn:\t0000000000004000\nSigCgt:\t0000000000000000", true},  // ignored
		{"Name:\tsh\nNSpid:\t50\t1\nSigIgn:\t0000000000002000\nSigCgt:\t0000000000010000", false}, // others
		{"Name:\tsh\nNSpid:\t50\t2\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000", true},  // not the first
		{"Name:\tsh\nNSpid:\t50\nSigIgn:\t0000000000000000\nSigCgt:\t0000000000000000", true},
	} {
		if err := os.MkdirAll(filepath.Join(dir, "50"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "50", "status"), []byte(c.status), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := Expects(dir, 50, syscall.SIGTERM); got != c.want {
			t.Errorf("%s: %v, want %v", strings.ReplaceAll(c.status, "\n", ", "), got, c.want)
		}
	}
	if !Expects(dir, 51, syscall.SIGTERM) {
		t.Error("a process that is gone would be waited for")
	}
}
