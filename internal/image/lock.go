package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Locks are flock(2) on files of their own: the kernel drops them when their holder dies. They are
// taken in this order, and no holder of a later one waits for an earlier one:
//
//	locks/pull      shared by every pull for its whole length, exclusive to collect layers nobody names
//	locks/KEY       exclusive, by who makes layer KEY; a pull takes its layers' locks lowest layer first,
//	                and a key implies all keys below it, so that two pulls cannot wait for each other
//	locks/store     exclusive, briefly, to write records and to make or sweep temporary directories
//	locks/image-ID  shared by users of an image; only ever tried, never waited for, exclusively
const (
	pullLock  = "pull"
	storeLock = "store"
)

type lockMode int

const (
	shared    lockMode = syscall.LOCK_SH
	exclusive lockMode = syscall.LOCK_EX
)

// errLocked says that somebody else holds a lock.
var errLocked = errors.New("locked by another process")

// lockPoll is how often a lock that is taken is tried again.
const lockPoll = 20 * time.Millisecond

func (s *Store) lock(ctx context.Context, name string, mode lockMode) (*os.File, error) {
	return lockFile(ctx, filepath.Join(s.dir, locksDir, name), mode)
}

// lockFile makes and locks the file at path, and waits for that until ctx ends. Closing the file unlocks.
func lockFile(ctx context.Context, path string, mode lockMode) (*os.File, error) {
	for {
		f, err := tryLock(path, mode)
		if !errors.Is(err, errLocked) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for lock %s: %w", path, context.Cause(ctx))
		case <-time.After(lockPoll):
		}
	}
}

// tryLock is lockFile without the wait: it returns errLocked.
func tryLock(path string, mode lockMode) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		if err := flock(f, mode); err != nil {
			_ = f.Close()
			return nil, err
		}
		if isAt(f, path) {
			return f, nil
		}
		_ = f.Close() // its last holder deleted it: what is locked is no longer what others will open
	}
}

// lockExisting opens the file at path for reading and locks it, if that can be had at once.
func lockExisting(path string, mode lockMode) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := flock(f, mode); err != nil {
		_ = f.Close()
		return nil, err
	}
	if !isAt(f, path) {
		_ = f.Close()
		return nil, fmt.Errorf("open %s: %w", path, os.ErrNotExist)
	}
	return f, nil
}

func flock(f *os.File, mode lockMode) error {
	for {
		err := syscall.Flock(int(f.Fd()), int(mode)|syscall.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EWOULDBLOCK):
			return errLocked
		default:
			return &os.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
	}
}

// isAt says whether f is the file at path now.
func isAt(f *os.File, path string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(mine, there)
}

// unlockAndDelete frees a lock file that is held exclusively and will seldom be needed again.
func unlockAndDelete(f *os.File) {
	_ = os.Remove(f.Name())
	_ = f.Close()
}

// work is the temporary directory of one pull. The flock on it tells a live owner from a dead one.
type work struct {
	dir  string
	lock *os.File
}

// newWork makes a temporary directory and locks it.
func (s *Store) newWork(ctx context.Context) (*work, error) {
	// Held so that no sweep sees the directory before its lock is taken.
	guard, err := s.lock(ctx, storeLock, exclusive)
	if err != nil {
		return nil, err
	}
	defer guard.Close()
	dir, err := os.MkdirTemp(filepath.Join(s.dir, tmpDir), "pull-")
	if err != nil {
		return nil, fmt.Errorf("make temporary directory: %w", err)
	}
	f, err := lockExisting(dir, exclusive)
	if err != nil {
		_ = os.Remove(dir)
		return nil, fmt.Errorf("lock temporary directory: %w", err)
	}
	return &work{dir: dir, lock: f}, nil
}

func (w *work) path(name string) string { return filepath.Join(w.dir, name) }

// close removes the directory and all in it.
func (w *work) close() error {
	err := os.RemoveAll(w.dir)
	return joinErrors(err, w.lock.Close())
}

// sweep removes the temporary directories whose owner is dead, and half-written records.
func (s *Store) sweep() error {
	tmp := filepath.Join(s.dir, tmpDir)
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	stale, err := filepath.Glob(filepath.Join(s.dir, imagesDir, recordTemp))
	if err != nil {
		return err
	}
	if len(entries)+len(stale) == 0 {
		return nil
	}
	guard, err := tryLock(filepath.Join(s.dir, locksDir, storeLock), exclusive)
	if errors.Is(err, errLocked) {
		return nil // somebody is at work; the next Open sweeps
	}
	if err != nil {
		return err
	}
	defer guard.Close()
	var errs error
	s.sweepLocks()
	for _, name := range stale {
		if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
			errs = joinErrors(errs, err)
		}
	}
	for _, e := range entries {
		path := filepath.Join(tmp, e.Name())
		f, err := lockExisting(path, exclusive)
		if err != nil {
			continue // alive, or gone by now
		}
		errs = joinErrors(errs, os.RemoveAll(path))
		_ = f.Close()
	}
	return errs
}

// sweepLocks deletes the lock files of layers that nobody makes any more.
func (s *Store) sweepLocks() {
	files, err := os.ReadDir(filepath.Join(s.dir, locksDir))
	if err != nil {
		return
	}
	for _, e := range files {
		if !isKey(e.Name()) {
			continue
		}
		if f, err := tryLock(filepath.Join(s.dir, locksDir, e.Name()), exclusive); err == nil {
			unlockAndDelete(f)
		}
	}
}
