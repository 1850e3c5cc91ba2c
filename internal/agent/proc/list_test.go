package proc

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	booted := time.Unix(1_700_000_000, 0)
	// proc(5): pid (comm) state ppid pgrp session tty_nr tpgid flags minflt cminflt majflt cmajflt utime
	// stime cutime cstime priority nice num_threads itrealvalue starttime
	tail := " S 12 34 34 34817 34 4194304 1 0 0 0 250 50 0 0 20 0 1 0 12345 1 2 3"
	for name, want := range map[string]string{"cat": "[cat]", "a) S 1 (b": "[a) S 1 (b]", "\xff": "[?]"} {
		got, err := parseStat("34 ("+name+")"+tail, booted)
		if err != nil {
			t.Errorf("%q: %v", name, err)
			continue
		}
		w := Info{PID: 34, Parent: 12, Command: want, CPU: 3 * time.Second, TTY: "pts/1", Started: booted.Add(123450 * time.Millisecond)}
		if got != w {
			t.Errorf("%q: got %+v, want %+v", name, got, w)
		}
	}
	for _, bad := range []string{"", "34", "34 (cat", "34 (cat) S 1", "x (cat)" + tail, ")(" + tail} {
		if got, err := parseStat(bad, booted); err == nil {
			t.Errorf("%q: %+v, want an error", bad, got)
		}
	}
}

func TestTTYName(t *testing.T) {
	for device, want := range map[uint64]string{0: "?", 136 << 8: "pts/0", 137<<8 | 3: "pts/259", 4<<8 | 1: "4:1", 136<<8 | 0x100000: "pts/256"} {
		if got := ttyName(device); got != want {
			t.Errorf("%#x: %q, want %q", device, got, want)
		}
	}
}

// TestRead reads a real process.
func TestRead(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Kill() }()
	var got Info
	for end := time.Now().Add(5 * time.Second); got.Command != "sleep 100" && time.Now().Before(end); time.Sleep(time.Millisecond) {
		var err error
		if got, err = Read("/proc", cmd.Process.Pid, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if got.Command != "sleep 100" || got.Parent != os.Getpid() || int(got.UID) != os.Geteuid() {
		t.Errorf("got %+v", got)
	}
	if _, err := Read("/proc", 1<<30, time.Now()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no process: %v", err)
	}
}

func TestMemInfo(t *testing.T) {
	text := "MemTotal:         241324 kB\nMemFree:          194348 kB\nMemAvailable:     190832 kB\n"
	if total, used := MemInfo([]byte(text)); total != 241324 || used != 50492 {
		t.Errorf("total %d, used %d", total, used)
	}
	if total, used := MemInfo([]byte(strings.ReplaceAll(text, "kB", "kB x"))); total != 241324 || used != 50492 {
		t.Errorf("total %d, used %d", total, used)
	}
	if total, used := MemInfo(nil); total != 0 || used != 0 {
		t.Errorf("of nothing: %d, %d", total, used)
	}
}
