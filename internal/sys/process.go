package sys

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// WaitGone waits until the process pid has ended (a zombie has). A process that does not exist has ended
// already. The caller makes sure that pid still names the process it means.
func WaitGone(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 50)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
	}
	return fmt.Errorf("wait for process %d: %w", pid, ctx.Err())
}

// Interrupt wakes a Readable that waits.
type Interrupt struct{ read, write *os.File }

// NewInterrupt makes an Interrupt. Close frees it.
func NewInterrupt() (*Interrupt, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make interrupt: %w", err)
	}
	return &Interrupt{read: r, write: w}, nil
}

// Fire makes every present and later Readable of this Interrupt return false.
func (i *Interrupt) Fire() { i.write.Close() }

// Close frees what Fire left.
func (i *Interrupt) Close() { i.write.Close(); i.read.Close() }

// Readable waits until f can be read without blocking and returns true, or false once i has fired. It
// leaves the file's flags alone, which may be shared with other processes: a terminal's are.
func (i *Interrupt) Readable(f *os.File) bool {
	fds := []unix.PollFd{
		{Fd: number(f), Events: unix.POLLIN},
		{Fd: number(i.read), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return false
		}
		return fds[1].Revents == 0
	}
}

// number is f's descriptor, -1 once it is closed. Unlike f.Fd it leaves O_NONBLOCK alone.
func number(f *os.File) int32 {
	fd := int32(-1)
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = int32(n) }) // fails on a closed file
	}
	return fd
}

// MemoryTotal returns the RAM of this machine in bytes (MemTotal).
func MemoryTotal() (uint64, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return 0, fmt.Errorf("read memory size: %w", err)
	}
	return info.Totalram * uint64(info.Unit), nil
}

// KernelRelease returns the release of the running kernel (uname -r).
func KernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}
