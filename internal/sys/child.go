package sys

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Subreap makes orphaned descendants of this process its children (PR_SET_CHILD_SUBREAPER, prctl(2)), as
// those of PID 1 are anyway.
func Subreap() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of orphans: %w", err)
	}
	return nil
}

// AwaitExit waits until the child pid has exited and leaves it a zombie, so that its pid stays taken. It
// blocks a thread. ECHILD says that pid is no child of this process.
func AwaitExit(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil || !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
