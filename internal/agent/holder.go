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
	// holderReady is the descriptor on which it tells that it is set up: by its end, after a reason where it is not.
	holderReady = 3
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
	_ = syscall.Close(holderReady) // it is open
	for {
		_ = syscall.Pause() // nothing comes
	}
}

// nothing takes all from this process that one of a container could get hold of through it: files, user, capabilities.
// A process that has changed its user cannot be traced by another without the right to trace any (ptrace(2)).
func nothing() error {
	if err := sys.EmptyRoot(); err != nil {
		return err
	}
	err := syscall.Setgroups(nil)
	for _, id := range []int{nobody, 1} { // a small user namespace may not have the first
		if err == nil {
			err = syscall.Setgid(id)
		}
		if err == nil {
			err = syscall.Setuid(id)
		}
		if err != syscall.EINVAL {
			break
		}
		err = nil
	}
	if err != nil {
		return fmt.Errorf("become nobody: %w", err)
	}
	return nil
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
		var reason []byte
		if reason, err = io.ReadAll(io.LimitReader(ready, maxReason)); len(reason) > 0 {
			err = errors.New(string(reason))
		}
	}
	if err != nil {
		_ = a.reaper.Signal(pid, syscall.SIGKILL) // it may have exited
		return nil, fmt.Errorf("hold namespaces: %w", err)
	}
	return h, nil
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
