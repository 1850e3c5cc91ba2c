package sys

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// StandIn is a thread of this process that only waits. Its id names namespaces in /proc as a process' does,
// and is no other's for as long as it waits: proc(5), "/proc/tid".
type StandIn struct {
	tid int
	end chan struct{}
}

// NewStandIn starts a thread in the network namespace at path, or in a new one where path is empty, and has it call
// setUp, which may move it to other namespaces: nothing else ever runs on it. The goroutine of main must be locked to
// the first thread, whose namespaces are the process' own.
func NewStandIn(path string, setUp func() error) (*StandIn, error) {
	s := &StandIn{end: make(chan struct{})}
	started := make(chan error)
	OwnThread(func() {
		err := newNetwork(path)
		if err == nil {
			err = setUp()
		}
		s.tid = unix.Gettid()
		started <- err
		if err == nil {
			<-s.end
		}
	})
	return s, <-started
}

func newNetwork(path string) error {
	if unix.Gettid() == os.Getpid() {
		return errors.New("a stand-in may not be the first thread")
	}
	if path != "" {
		return enterNetwork(path, func() error { return nil })
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	return nil
}

// ID is the thread's, in the form of a process id.
func (s *StandIn) ID() int { return s.tid }

// Network is the path of the thread's network namespace.
func (s *StandIn) Network() string { return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), s.tid) }

// End ends the thread. It may be called once.
func (s *StandIn) End() { close(s.end) }

// IsOwnThread tells whether id is that of a thread of this process.
func IsOwnThread(id int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", id))
	return err == nil
}
