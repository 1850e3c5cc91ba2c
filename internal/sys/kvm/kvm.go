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
	// Iterations of the guest's loop: a microsecond on a processor, 2 ms and more interpreted.
	Iterations = 2500
	// slowest is the longest time of the loop that still counts as real: some hundred times what a processor
	// takes, a fifth of what interpreters do, so that a busy host changes neither verdict. The first turn
	// also takes in the faults of a guest that has just been made; the shortest of several counts.
	slowest = 400 * time.Microsecond
	// tries is how often a loop that looks interpreted is repeated: the host may just have been busy.
	tries = 4
	// patience bounds all tries together.
	patience = 100 * time.Millisecond
)

// Result is what a measurement found.
type Result struct {
	State State
	// Loop is the shortest time that a guest took for Iterations of a loop in real mode; zero
	// where no guest ran.
	Loop time.Duration
	// Err says what failed when State is Absent, Denied or Broken.
	Err error
}

// Measure runs a guest of three instructions and judges by its speed. It takes at most a tenth of a
// second, and measures once in the life of a process.
var Measure = sync.OnceValue(func() Result { return measure(Device) })

func measure(device string) Result {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return failed(err)
	}
	defer f.Close()
	best, err := loop(f, patience)
	if err != nil {
		return failed(fmt.Errorf("run a guest on %s: %w", device, err))
	}
	return Result{State: judge(best), Loop: best}
}

func judge(loop time.Duration) State {
	if loop > slowest {
		return Emulated
	}
	return Real
}

func failed(err error) Result {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO):
		return Result{State: Absent, Err: err}
	case errors.Is(err, fs.ErrPermission):
		return Result{State: Denied, Err: err}
	}
	return Result{State: Broken, Err: err}
}
