// Package kvm measures whether /dev/kvm runs guest code on the processor. The device can open, create
// VMs and still emulate them instruction by instruction, too slowly to boot a kernel; only a clock
// tells.
package kvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"
)

// Device is what KVM is reached by.
const Device = "/dev/kvm"

// State is what /dev/kvm is worth.
type State string

// States: only Real makes a VM fast and hardware-isolated.
const (
	Real     State = "real"     // guest code runs on the processor
	Emulated State = "emulated" // guest code is interpreted
	Absent   State = "absent"   // there is no device
	Denied   State = "denied"   // the caller may not open the device
	Broken   State = "broken"   // the device fails
)

const (
	// few turns of the guest's loop take a processor a microsecond, an interpreter 2 ms and more.
	few = 2500
	// many turns are for hosts on which it takes milliseconds to enter a guest, which are emulated themselves.
	many = 16 * few
	// slowest is how many times longer than outside of a guest the loop may take and still count as real. A processor takes
	// as long in both, plus some microseconds to enter a guest and to leave it; interpreters take 1,000 times as long and more.
	slowest = 100
	// tries is how often a loop is repeated whose verdict is not clear: the host may just have been busy.
	tries = 12
	// enough tries make a verdict: each time may be of a moment in which the host ran something else. One such moment in the
	// loop outside of the guest makes an interpreter look fast.
	enough = 3
	// natives is how often each try runs the loop outside of a guest.
	natives = 20
	// patience bounds all tries together.
	patience = time.Second
)

// Result is what a measurement found.
type Result struct {
	State State
	// Loop is how long a guest took for a loop in real mode, Native how long the loop takes outside of a guest: the shortest of
	// several times each. Zero where no guest ran.
	Loop, Native time.Duration
	// Err says what failed when State is Absent, Denied or Broken.
	Err error
}

// Slowdown is how many times longer the loop takes in a guest than outside; 0 where no guest ran.
func (r Result) Slowdown() float64 {
	if r.Native <= 0 {
		return 0
	}
	return float64(r.Loop) / float64(r.Native)
}

// Measure runs a guest of three instructions and judges by its speed, compared with that of the same loop outside of it: a
// slow processor, or an emulated one, is slow in both. It takes some milliseconds, at most a second, and measures once in
// the life of a process.
var Measure = sync.OnceValue(func() Result { return measure(Device) })

func measure(device string) Result {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return failed(err)
	}
	defer f.Close()
	t, err := loop(f, patience)
	if err != nil {
		return failed(fmt.Errorf("run a guest on %s: %w", device, err))
	}
	return Result{State: t.judge(), Loop: t.long, Native: t.native}
}

// times are the shortest ones of what was measured so far, with one number of turns.
type times struct {
	tries       int
	long, short time.Duration // of a guest that runs the whole loop, and of one that turns once: entering and leaving it
	native      time.Duration // of the whole loop outside of a guest
}

// add takes in what one more try took.
func (t *times) add(long, short, native time.Duration) {
	if t.tries == 0 {
		t.long, t.short, t.native = long, short, native
	}
	t.tries++
	t.long, t.short, t.native = min(t.long, long), min(t.short, short), min(t.native, native)
}

func (t *times) judge() State {
	if t.long > slowest*t.native {
		return Emulated
	}
	return Real
}

// clear tells whether more tries would not change the verdict.
func (t *times) clear() bool {
	return t.tries >= enough && (t.judge() == Real || t.long > 10*slowest*t.native && !t.blurred())
}

// blurred tells whether the loop takes too long in the guest because entering it does: then more turns tell.
func (t *times) blurred() bool { return t.judge() == Emulated && t.short > t.long/2 }

func failed(err error) Result {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return Result{State: Absent, Err: err}
	case errors.Is(err, fs.ErrPermission):
		return Result{State: Denied, Err: err}
	}
	return Result{State: Broken, Err: err}
}
