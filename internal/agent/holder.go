package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"husk.dev/husk/internal/sys"
)

const (
	// holderArg, as the program's only argument, makes a process of it that Hold is for.
	holderArg = "hold-namespaces"
	// holderReady is the descriptor on which it tells that it is set up, by holderDone, or the reason why not.
	holderReady = 3
	holderDone  = "+"
	// nobody is the user that a holder is, in whatever user namespace.
	nobody = 65534
	// holderWait bounds the wait for it.
	holderWait = 20 * time.Second
	// maxReason bounds what a holder may have to say, in bytes.
	maxReason = 4096
)

// holder is a process that does nothing but be process 1 of a PID namespace, and in the other namespaces that it was
// started in.
type holder struct {
	pid   int
	ended chan struct{} // closed when it has
}

// Hold does not return in a process that was started to hold namespaces. A program that has an agent calls it first.
func Hold() {
	if len(os.Args) != 2 || os.Args[1] != holderArg {
		return
	}
	// What containers send to their process 1 is not for it, and the kernel waits for the orphans of a parent that ignores
	// their ends (waitpid(2)).
	signal.Ignore()
	if err := nothing(); err != nil {
		_, _ = syscall.Write(holderReady, []byte(err.Error())) // there is no other way to tell
		os.Exit(1)
	}
	if _, err := syscall.Write(holderReady, []byte(holderDone)); err != nil {
		os.Exit(1)
	}
	_ = syscall.Close(holderReady) // it is open
	for {
		_ = syscall.Pause() // nothing comes
	}
}

// nothing takes all from this process that one of a container could get hold of through it: files, user, capabilities.
// A process that has changed its user has no capabilities, and cannot be traced by another without the right to trace any
// (ptrace(2)). In a user namespace that has none of the users that it could become it stays root, and drops them itself.
func nothing() error {
	if err := sys.EmptyRoot(); err != nil {
		return err
	}
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("leave all groups: %w", err)
	}
	for _, become := range []func(int) error{syscall.Setgid, syscall.Setuid} {
		err := become(nobody)
		if err == syscall.EINVAL { // a small user namespace may not have it
			err = become(1)
		}
		if err != nil && err != syscall.EINVAL {
			return fmt.Errorf("become nobody: %w", err)
		}
	}
	if syscall.Getuid() != 0 {
		return nil
	}
	return sys.DropCapabilities()
}

// hold starts a holder with namespaces of its own, the PID namespace and those that attr names, and waits until it is set up.
func (a *Agent) hold(attr syscall.SysProcAttr) (*holder, error) {
	ready, theirs, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("hold namespaces: %w", err)
	}
	defer ready.Close()
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("hold namespaces: %w", err)
	}
	defer null.Close()
	attr.Cloneflags |= syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
	attr.Setsid = true
	pid, exited, err := a.reaper.Start("/proc/self/exe", []string{"husk-agent", holderArg}, &syscall.ProcAttr{
		Dir: "/", Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), theirs.Fd()}, Sys: &attr,
	})
	if err != nil {
		return nil, fmt.Errorf("hold namespaces: %w", err)
	}
	h := &holder{pid: pid, ended: make(chan struct{})}
	go func() {
		<-exited
		close(h.ended)
	}()
	theirs.Close()
	err = ready.SetReadDeadline(time.Now().Add(holderWait))
	if err == nil {
		err = isSetUp(ready)
	}
	if err != nil {
		_ = a.reaper.Signal(pid, syscall.SIGKILL) // it may have exited
		return nil, fmt.Errorf("hold namespaces: %w", err)
	}
	return h, nil
}

// isSetUp takes what a holder tells of itself. One that was killed before tells nothing.
func isSetUp(ready io.Reader) error {
	told, err := io.ReadAll(io.LimitReader(ready, maxReason))
	switch {
	case string(told) == holderDone:
		return nil
	case len(told) > 0:
		return errors.New(string(told))
	case err != nil:
		return err
	}
	return errors.New("it ended before it was set up")
}

// namespace is the path of the holder's namespace of a kind, and whether the holder is there.
func (h *holder) namespace(kind string) (path string, found bool) {
	select {
	case <-h.ended:
		return "", false
	default:
		return fmt.Sprintf("/proc/%d/ns/%s", h.pid, kind), true
	}
}
