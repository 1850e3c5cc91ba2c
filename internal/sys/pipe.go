package sys

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// NewPipe makes a pipe for a child: the end that the child gets blocks, the end that stays is for Go's
// poller, with deadlines. toChild says which is which: true means that the child reads. size is what the
// pipe should hold, in bytes; the kernel's default stays where it refuses (F_SETPIPE_SZ, fcntl(2)).
func NewPipe(toChild bool, size int) (kept, given *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	ours, theirs := fds[0], fds[1]
	if toChild {
		ours, theirs = theirs, ours
	}
	_, _ = unix.FcntlInt(uintptr(ours), unix.F_SETPIPE_SZ, size) // only speed is lost
	if err := unix.SetNonblock(ours, true); err != nil {
		unix.Close(ours)
		unix.Close(theirs)
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	return os.NewFile(uintptr(ours), "pipe"), os.NewFile(uintptr(theirs), "pipe of child"), nil
}

// Pollable returns a file for Go's poller that shares fd's description, and closes fd. Deadlines work on
// it, and a read that waits holds no thread.
func Pollable(fd int, name string) (*os.File, error) {
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, fmt.Errorf("make %s pollable: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// PollableFile returns f for Go's poller, as Pollable does, and closes f.
func PollableFile(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make %s pollable: %w", f.Name(), err)
	}
	return Pollable(fd, f.Name())
}
