package kvm

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMeasureIsBoundedAndAgreesWithItself(t *testing.T) {
	start := time.Now()
	r := Measure()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("Measure took %v", took)
	}
	t.Logf("%s, loop %v, natively %v, err %v", r.State, r.Loop, r.Native, r.Err)
	switch r.State {
	case Real, Emulated:
		if r.Err != nil || (r.State == Emulated) != (r.Slowdown() > slowest) {
			t.Errorf("state %s with loop %v, natively %v, and error %v", r.State, r.Loop, r.Native, r.Err)
		}
	case Absent, Denied, Broken:
		if r.Err == nil || r.Loop != 0 || r.Slowdown() != 0 {
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
	if took.judge() != Emulated {
		t.Errorf("a guest that was interrupted counts as %s (%+v)", took.judge(), took)
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

// TestJudge has times of machines that were measured: of processors, of emulated ones in which KVM works, and of KVM that
// interprets its guests.
func TestJudge(t *testing.T) {
	const us = time.Microsecond
	type try struct{ long, short, native time.Duration }
	repeat := func(n int, t try) []try { return slices.Repeat([]try{t}, n) }
	for _, c := range []struct {
		name  string
		tries []try
		want  State
		clear bool // after the last of tries
		blur  bool
	}{
		{"a processor", repeat(3, try{5 * us, 4 * us, us}), Real, true, false},
		{"a processor, too early to tell", repeat(2, try{5 * us, 4 * us, us}), Real, false, false},
		{"a processor of a busy host, at first", []try{{300 * us, 20 * us, us}}, Emulated, false, false},
		{"and then", []try{{300 * us, 20 * us, us}, {6 * us, 4 * us, us}, {300 * us, 20 * us, us}}, Real, true, false},
		{"an emulated processor, few turns", repeat(3, try{1900 * us, 1200 * us, 8 * us}), Emulated, false, true},
		{"an emulated processor, many turns", repeat(3, try{3900 * us, 1200 * us, 150 * us}), Real, true, false},
		{"an interpreter", repeat(3, try{2210 * us, 20 * us, us}), Emulated, true, false},
		{"an interpreter beside which all else was disturbed at first", []try{{2300 * us, 2400 * us, 24 * us}}, Real, false, false},
		{"and then", []try{{2300 * us, 2400 * us, 24 * us}, {2250 * us, 2300 * us, us}, {2210 * us, 20 * us, us}}, Emulated, true, false},
		{"an interpreter whose short run was disturbed", repeat(3, try{2210 * us, 2300 * us, us}), Emulated, false, true},
		{"and many turns", repeat(3, try{35000 * us, 2300 * us, 16 * us}), Emulated, true, false},
		{"an interpreter on a slow processor", repeat(3, try{40000 * us, 300 * us, 10 * us}), Emulated, true, false},
	} {
		var all times
		for _, try := range c.tries {
			all.add(try.long, try.short, try.native)
		}
		if got := all.judge(); got != c.want || all.clear() != c.clear || all.blurred() != c.blur {
			t.Errorf("%s: %s, clear %v, blurred %v, want %s, %v, %v", c.name, got, all.clear(), all.blurred(), c.want, c.clear, c.blur)
		}
	}
}

func TestRequestsOutliveSignals(t *testing.T) {
	for _, c := range []struct {
		answers []unix.Errno
		want    error
	}{
		{[]unix.Errno{0}, nil},
		{[]unix.Errno{unix.EINTR, unix.EINTR, 0}, nil},
		{[]unix.Errno{unix.EINTR, unix.ENOTTY}, unix.ENOTTY},
		{slices.Repeat([]unix.Errno{unix.EINTR}, interruptions+1), unix.EINTR},
	} {
		calls := 0
		got, err := again(func() (uintptr, unix.Errno) {
			calls++
			return uintptr(calls), c.answers[calls-1]
		})
		if !errors.Is(err, c.want) || err == nil && int(got) != len(c.answers) {
			t.Errorf("%d answers: %d, %v, want %v", len(c.answers), got, err, c.want)
		}
	}
}

// TestMeasureOutlivesSignals measures on a thread that gets signals all the time.
func TestMeasureOutlivesSignals(t *testing.T) {
	want := Measure()
	if want.State != Real && want.State != Emulated {
		t.Skipf("no guest runs here: KVM is %s", want.State)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := unix.Gettid()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
			}
		}
	}()
	for range 20 {
		if r := measure(Device); r.Err != nil {
			t.Errorf("measured among signals: %s, %v", r.State, r.Err)
			break
		}
	}
	close(stop)
	<-stopped
}

// TestMeasureAgreesOnABusyMachine measures while every processor has more to do than it can.
func TestMeasureAgreesOnABusyMachine(t *testing.T) {
	want := Measure()
	if want.State != Real && want.State != Emulated {
		t.Skipf("no guest runs here: KVM is %s", want.State)
	}
	var stop atomic.Bool
	var busy sync.WaitGroup
	for range 4 * runtime.NumCPU() {
		busy.Go(func() {
			runtime.LockOSThread() // threads, so that the kernel divides the processors among them
			for !stop.Load() {
			}
		})
	}
	defer busy.Wait()
	defer stop.Store(true)
	previous := runtime.GOMAXPROCS(4*runtime.NumCPU() + 1)
	defer runtime.GOMAXPROCS(previous)
	for range 40 {
		if r := measure(Device); r.State != want.State {
			t.Fatalf("KVM is %s (loop %v, natively %v) on a busy machine, %s before", r.State, r.Loop, r.Native, want.State)
		}
	}
}
