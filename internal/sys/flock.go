package sys

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"
)

// lockPoll is how often a lock that others hold is asked for: a flock(2) that waits cannot be given up.
const lockPoll = 5 * time.Millisecond

// TryLock takes the exclusive flock(2) of an open file and tells whether it got it. The lock ends with the file's last
// descriptor, so also with a process that is killed.
func TryLock(file *os.File) (bool, error) {
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, syscall.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, syscall.EINTR):
			return false, &os.PathError{Op: "flock", Path: file.Name(), Err: err}
		}
	}
}

// Lock is TryLock that waits for as long as ctx lets it.
func Lock(ctx context.Context, file *os.File) error {
	for {
		locked, err := TryLock(file)
		if locked || err != nil {
			return err
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return &os.PathError{Op: "flock", Path: file.Name(), Err: ctx.Err()}
		}
	}
}
