//go:build amd64

package kvm

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/kvm.h and asm/kvm.h.
const (
	getAPIVersion       = 0xae00
	createVM            = 0xae01
	getVCPUMmapSize     = 0xae04
	createVCPU          = 0xae41
	setUserMemoryRegion = 0x4020ae46
	setTSSAddr          = 0xae47
	run                 = 0xae80
	setRegs             = 0x4090ae82
	getSregs            = 0x8138ae83
	setSregs            = 0x4138ae84

	apiVersion = 12
	exitHlt    = 5

	// Offsets in struct kvm_run.
	immediateExit = 1
	exitReason    = 8
)

// code is, in 16-bit real mode: again: dec ecx; jnz again; hlt.
var code = []byte{0x66, 0x49, 0x75, 0xfc, 0xf4}

const (
	codeAddr = 0x1000
	// tssAddr is where Intel processors that cannot run real mode keep three pages for faking it.
	tssAddr = 0xfffbd000
)

// memoryRegion is struct kvm_userspace_memory_region.
type memoryRegion struct {
	slot, flags     uint32
	guestAddr, size uint64
	userspaceAddr   uint64
}

// regs is struct kvm_regs: rax rbx rcx rdx rsi rdi rsp rbp r8-r15 rip rflags.
type regs [18]uint64

const (
	rcx    = 2
	rip    = 16
	rflags = 17
)

// loop runs the guest until its verdict is clear, a few times at most. A guest that does not finish within limit counts as
// having taken limit.
func loop(device *os.File, limit time.Duration) (times, error) {
	deadline := time.Now().Add(limit)
	// A vCPU belongs to the thread that runs it, and the signal that interrupts it goes to a thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	version, err := ioctl(device.Fd(), getAPIVersion, 0)
	if err != nil {
		return times{}, fmt.Errorf("get API version: %w", err)
	}
	if version != apiVersion {
		return times{}, fmt.Errorf("API version is %d, want %d", version, apiVersion)
	}
	vm, err := ioctl(device.Fd(), createVM, 0)
	if err != nil {
		return times{}, fmt.Errorf("create VM: %w", err)
	}
	defer unix.Close(int(vm))
	// AMD processors need no such pages, and those that do say so when the guest runs.
	_, _ = ioctl(vm, setTSSAddr, tssAddr)

	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return times{}, fmt.Errorf("map guest memory: %w", err)
	}
	defer unix.Munmap(memory)
	copy(memory, code)
	region := memoryRegion{guestAddr: codeAddr, size: uint64(len(memory)), userspaceAddr: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if _, err := ioctlPtr(vm, setUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return times{}, fmt.Errorf("set guest memory: %w", err)
	}
	return loopVCPU(device, vm, deadline)
}

func loopVCPU(device *os.File, vm uintptr, deadline time.Time) (t times, err error) {
	size, err := ioctl(device.Fd(), getVCPUMmapSize, 0)
	if err != nil {
		return t, fmt.Errorf("get size of a virtual processor: %w", err)
	}
	vcpu, err := ioctl(vm, createVCPU, 0)
	if err != nil {
		return t, fmt.Errorf("create virtual processor: %w", err)
	}
	defer unix.Close(int(vcpu))
	shared, err := unix.Mmap(int(vcpu), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return t, fmt.Errorf("map virtual processor: %w", err)
	}
	defer unix.Munmap(shared)

	stop := interrupt(shared, deadline)
	defer stop()
	for _, turns := range []int{few, many} {
		t = times{}
		for t.tries < tries && !t.clear() && (t.tries == 0 || time.Now().Before(deadline)) {
			short, err := runOnce(vcpu, shared, 1, deadline)
			if err != nil {
				return t, err
			}
			long, err := runOnce(vcpu, shared, turns, deadline)
			if err != nil {
				return t, err
			}
			t.add(long, short, shortest(natives, func() time.Duration { return native(turns) }))
			if turns == few && t.tries >= enough && t.blurred() {
				break
			}
		}
		if !t.blurred() {
			break
		}
	}
	return t, nil
}

// shortest is the shortest time that run returns in n times.
func shortest(n int, run func() time.Duration) time.Duration {
	least := run()
	for range n - 1 {
		least = min(least, run())
	}
	return least
}

// native runs the guest's loop outside of it.
//
//go:noinline
func native(turns int) time.Duration {
	start := time.Now()
	for ; turns > 0; turns-- {
	}
	return time.Since(start)
}

// runOnce returns how long the guest took for so many turns of its loop, or more than any real one if the deadline ended it.
func runOnce(vcpu uintptr, shared []byte, turns int, deadline time.Time) (time.Duration, error) {
	var sregs [312]byte // struct kvm_sregs, which begins with the code segment: base, limit, selector
	if _, err := ioctlPtr(vcpu, getSregs, unsafe.Pointer(&sregs)); err != nil {
		return 0, fmt.Errorf("get segments: %w", err)
	}
	binary.NativeEndian.PutUint64(sregs[0:], 0)
	binary.NativeEndian.PutUint16(sregs[12:], 0)
	if _, err := ioctlPtr(vcpu, setSregs, unsafe.Pointer(&sregs)); err != nil {
		return 0, fmt.Errorf("set segments: %w", err)
	}
	r := regs{rcx: uint64(turns), rip: codeAddr, rflags: 2}
	if _, err := ioctlPtr(vcpu, setRegs, unsafe.Pointer(&r)); err != nil {
		return 0, fmt.Errorf("set registers: %w", err)
	}
	start := time.Now()
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, vcpu, run, 0)
		took := time.Since(start)
		if errno == unix.EINTR {
			if time.Now().Before(deadline) {
				continue // a signal that has nothing to do with us
			}
			return max(took, patience), nil
		}
		if errno != 0 {
			return 0, fmt.Errorf("run: %w", errno)
		}
		if reason := binary.NativeEndian.Uint32(shared[exitReason:]); reason != exitHlt {
			return 0, fmt.Errorf("guest stopped with exit reason %d, want %d (hlt)", reason, exitHlt)
		}
		return took, nil
	}
}

// interrupt makes the virtual processor that the calling thread runs come back at the deadline. The
// caller calls stop before it unmaps shared.
func interrupt(shared []byte, deadline time.Time) (stop func()) {
	thread := unix.Gettid()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		timer := time.NewTimer(time.Until(deadline))
		defer timer.Stop()
		select {
		case <-done:
			return
		case <-timer.C:
		}
		shared[immediateExit] = 1 // for a run that has not begun yet
		// Go sends itself SIGURG to preempt goroutines and ignores one that it did not ask for.
		_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
	}()
	return func() {
		close(done)
		<-ended
	}
}

func ioctl(fd uintptr, request, arg uintptr) (uintptr, error) {
	return again(func() (uintptr, unix.Errno) {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, arg)
		return r, errno
	})
}

func ioctlPtr(fd uintptr, request uintptr, arg unsafe.Pointer) (uintptr, error) {
	return again(func() (uintptr, unix.Errno) {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
		return r, errno
	})
}
