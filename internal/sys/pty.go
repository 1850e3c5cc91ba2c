package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ResizePTY sets the window size of the pseudo terminal whose master is given, and leaves the master's
// blocking mode alone.
func ResizePTY(master *os.File, size Winsize) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return fmt.Errorf("set window size: %w", err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("set window size: %w", err)
	}
	return nil
}

// PollablePTY makes a pseudo terminal whose master is for Go's poller. Both ends are the caller's to close.
func PollablePTY() (master, slave *os.File, err error) {
	blocking, slave, err := OpenPTY()
	if err != nil {
		return nil, nil, err
	}
	defer blocking.Close()
	fd, err := unix.FcntlInt(blocking.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		master, err = Pollable(fd, blocking.Name())
	}
	if err != nil {
		slave.Close()
		return nil, nil, fmt.Errorf("open pseudo terminal: %w", err)
	}
	return master, slave, nil
}
