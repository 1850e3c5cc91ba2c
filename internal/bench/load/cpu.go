package load

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

func cpu(busybox string) ([]Sample, error) {
	runtime.LockOSThread() // no hand-over between threads is measured
	defer runtime.UnlockOSThread()
	var samples []Sample
	for _, m := range []struct {
		name    string
		measure func() (float64, error)
	}{
		{"fork", func() (float64, error) { return forks(busybox) }},
		{"syscall", syscalls},
		{"loop", loop},
		{"pipe", pipes},
	} {
		value, err := m.measure()
		if err != nil {
			return nil, fmt.Errorf("measure %s: %w", m.name, err)
		}
		samples = append(samples, Sample{m.name, value})
	}
	return samples, nil
}

// forks is how many programs can be started and waited for in a second.
func forks(busybox string) (float64, error) {
	count, took, err := repeat(1, func() error {
		return (&exec.Cmd{Path: busybox, Args: []string{"true"}}).Run()
	})
	return perSecond(float64(count), took), err
}

// syscalls is what the cheapest system call costs, in nanoseconds.
func syscalls() (float64, error) {
	const batch = 500
	count, took, err := repeat(batch, func() error {
		for range batch {
			syscall.Getppid()
		}
		return nil
	})
	return float64(took.Nanoseconds()) / float64(count), err
}

// loop is how many millions of dependent integer operations are done in a second.
func loop() (float64, error) {
	const batch = 100_000
	x := uint64(time.Now().UnixNano()) | 1
	count, took, err := repeat(batch, func() error {
		for range batch { // xorshift: nothing to compute in advance, nothing to leave out
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
		if x == 0 {
			return errors.New("the sequence has ended, which it cannot")
		}
		return nil
	})
	return perSecond(float64(count)/1e6, took), err
}

// pipes is how long a byte takes to another process and back, in microseconds. The descriptors are used
// without the runtime's poller, which would be measured too.
func pipes() (float64, error) {
	theirIn, ourOut, err := pipe()
	if err != nil {
		return 0, err
	}
	defer ourOut.Close()
	defer theirIn.Close()
	ourIn, theirOut, err := pipe()
	if err != nil {
		return 0, err
	}
	defer ourIn.Close()
	defer theirOut.Close()

	child := exec.Command("/proc/self/exe", "bench-load", "echo")
	child.Stdin, child.Stdout, child.Stderr = theirIn, theirOut, os.Stderr
	if err := child.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait() // it was killed
	}()
	timer := time.AfterFunc(time.Minute, func() { _ = child.Process.Kill() })
	defer timer.Stop()
	theirOut.Close() // so that the child's death ends the reading
	out, in := int(ourOut.Fd()), int(ourIn.Fd())
	turn := func() error { return roundTrip(out, in) }
	if err := turn(); err != nil { // the child has started
		return 0, err
	}
	count, took, err := repeat(1, turn)
	return float64(took.Nanoseconds()) / 1000 / float64(count), err
}

// pipe is a pipe whose ends block.
func pipe() (read, write *os.File, err error) {
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	return os.NewFile(uintptr(fds[0]), "|0"), os.NewFile(uintptr(fds[1]), "|1"), nil
}

func roundTrip(out, in int) error {
	one := []byte{1}
	if _, err := syscall.Write(out, one); err != nil {
		return os.NewSyscallError("write", err)
	}
	n, err := syscall.Read(in, one)
	if err == nil && n == 0 {
		err = errors.New("the other process has ended")
	}
	return err
}

// echo returns every byte of stdin on stdout until stdin ends.
func echo() error {
	runtime.LockOSThread()
	one := make([]byte, 1)
	for {
		n, err := syscall.Read(0, one)
		if err != nil || n == 0 {
			return err
		}
		if _, err := syscall.Write(1, one); err != nil {
			return os.NewSyscallError("write", err)
		}
	}
}
