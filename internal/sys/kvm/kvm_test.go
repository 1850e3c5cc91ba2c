package kvm

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestMeasureIsBoundedAndAgreesWithItself(t *testing.T) {
	start := time.Now()
	r := Measure()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Measure took %v", took)
	}
	t.Logf("%s, loop %v, err %v", r.State, r.Loop, r.Err)
	switch r.State {
	case Real, Emulated:
		if r.Err != nil || r.State != judge(r.Loop) {
			t.Errorf("state %s with loop %v and error %v", r.State, r.Loop, r.Err)
		}
	case Absent, Denied, Broken:
		if r.Err == nil || r.Loop != 0 {
			t.Errorf("state %s with loop %v and no error", r.State, r.Loop)
		}
	default:
		t.Errorf("state %q", r.State)
	}
	if again := Measure(); again != r {
		t.Errorf("a second Measure says %+v, the first said %+v", again, r)
	}
}

func TestMeasureEndsAtItsLimit(t *testing.T) {
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	if r := Measure(); r.State != Emulated {
		t.Skipf("a guest cannot be too slow here: KVM is %s", r.State)
	}
	start := time.Now()
	took, err := loop(f, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if judge(took) != Emulated {
		t.Errorf("a guest that was interrupted counts as %s (%v)", judge(took), took)
	}
	if all := time.Since(start); all > 2*time.Second {
		t.Errorf("a limit of 1 ms took %v", all)
	}
}

func TestMeasureTellsWhatIsWrongWithTheDevice(t *testing.T) {
	dir := t.TempDir()
	regular := filepath.Join(dir, "file")
	if err := os.WriteFile(regular, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := measure(filepath.Join(dir, "none")); r.State != Absent || !errors.Is(r.Err, os.ErrNotExist) {
		t.Errorf("no device: %+v", r)
	}
	if r := measure(regular); r.State != Broken || !errors.Is(r.Err, syscall.ENOTTY) {
		t.Errorf("a regular file: %+v", r)
	}
	if r := failed(&os.PathError{Op: "open", Path: Device, Err: syscall.EACCES}); r.State != Denied {
		t.Errorf("permission denied: %+v", r)
	}
	if r := failed(&os.PathError{Op: "open", Path: Device, Err: syscall.ENXIO}); r.State != Absent {
		t.Errorf("no driver behind the device: %+v", r)
	}
}

func TestJudge(t *testing.T) {
	for loop, want := range map[time.Duration]State{
		5 * time.Microsecond:   Real,
		200 * time.Microsecond: Real,
		2 * time.Millisecond:   Emulated,
		patience:               Emulated,
	} {
		if got := judge(loop); got != want {
			t.Errorf("judge(%v) = %s, want %s", loop, got, want)
		}
	}
}
