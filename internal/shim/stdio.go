package shim

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"husk.dev/husk/internal/sandbox"
)

// stdio is a process' standard input and output as containerd names them: fifos that it has made, or for
// outputs a file ("file:///var/log/out") or a program ("binary:///usr/bin/logger?flag=value").
type stdio struct {
	in, out, err string
	terminal     bool

	namespace, id string // of the container, for a program
	log           *slog.Logger
}

// opened is a stdio whose files are open.
type opened struct {
	sandbox.Stdio
	feed *os.File // the other end of In, of feedIn once that was called

	mu     sync.Mutex // guards the fields below
	fifo   *os.File   // where input comes from
	keep   *os.File   // keeps it from ending with the client that writes to it: that is for CloseIO to say
	closed bool       // CloseIO was called
}

// open opens what the process gets. The process, once it has them, closes the files at its end.
//
// The fifo of standard input is not opened before feedIn: clients may write to it, come to the end of what
// they have and forget it, before containerd lets them close it (ctr does).
func (s stdio) open() (_ *opened, err error) {
	o := &opened{Stdio: sandbox.Stdio{Terminal: s.terminal}}
	defer func() {
		if err != nil {
			o.Stdio.Close()
			o.end()
		}
	}()
	if s.in != "" {
		if o.In, o.feed, err = os.Pipe(); err != nil {
			return nil, fmt.Errorf("make pipe: %w", err)
		}
	}
	if u, bad := url.Parse(s.out); bad == nil && u.Scheme == binaryScheme {
		out, errs, err := startLogger(u, s.namespace, s.id, s.log)
		if err != nil {
			return nil, err
		}
		o.Out, o.Err = out, errs
		if s.terminal {
			errs.Close()
			o.Err = nil
		}
		return o, nil
	}
	if o.Out, err = openOutput(s.out); err != nil {
		return nil, err
	}
	if s.terminal {
		return o, nil
	}
	if s.err == s.out && o.Out != nil {
		o.Err = notClosed{o.Out}
		return o, nil
	}
	o.Err, err = openOutput(s.err)
	return o, err
}

// feedIn begins to pass on what comes through the fifo name.
func (o *opened) feedIn(name string) error {
	if name == "" {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	fifo, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open standard input: %w", err)
	}
	if !o.closed {
		if o.keep, err = os.OpenFile(name, os.O_WRONLY|syscall.O_NONBLOCK, 0); err != nil {
			fifo.Close()
			return fmt.Errorf("open standard input: %w", err)
		}
	}
	o.fifo = fifo
	go func() {
		_, _ = io.Copy(o.feed, fifo) // ends with the input, or with the process that reads it
		o.feed.Close()
		fifo.Close()
	}()
	return nil
}

// closeIn ends the standard input once no client writes to it any more.
func (o *opened) closeIn() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	if o.keep != nil {
		o.keep.Close()
	}
}

// end frees what feeds a process that has ended, or never began.
func (o *opened) end() {
	o.closeIn()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fifo != nil {
		o.fifo.Close()
	}
	if o.feed != nil {
		o.feed.Close()
	}
}

// notClosed is a writer that another one closes.
type notClosed struct{ io.Writer }

func (notClosed) Close() error { return nil }

// openOutput opens where a process' output goes, nil for nowhere.
func openOutput(name string) (io.WriteCloser, error) {
	if name == "" {
		return nil, nil
	}
	if u, err := url.Parse(name); err == nil && u.Scheme != "" && u.Scheme != "fifo" {
		if u.Scheme != "file" {
			return nil, fmt.Errorf("output to %q: only fifos, file:// and binary:// are known", name)
		}
		f, err := os.OpenFile(filepath.Clean(u.Path), os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open output: %w", err)
		}
		return f, nil
	} else if err == nil && u.Scheme == "fifo" {
		name = u.Path
	}
	f, err := openFifo(name)
	if err != nil {
		return nil, fmt.Errorf("open output: %w", err)
	}
	return f, nil
}

const (
	// readerWait bounds the wait for the reader of a fifo. containerd has one on its way: it opens its end without waiting.
	readerWait = 5 * time.Second
	// readerCheck is how often it is looked for.
	readerCheck = 2 * time.Millisecond
)

// openFifo opens both ends of a fifo, so that a reader that goes, and comes back, ends nothing. It waits for a first reader:
// one that came after the process has ended would wait for a writer for ever, and what was written would be lost.
func openFifo(name string) (*os.File, error) {
	for begun := time.Now(); ; time.Sleep(readerCheck) {
		w, err := os.OpenFile(name, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if errors.Is(err, syscall.ENXIO) && time.Since(begun) < readerWait {
			continue
		}
		if err == nil {
			defer w.Close() // not before both ends are open
		}
		return os.OpenFile(name, os.O_RDWR|syscall.O_NONBLOCK, 0)
	}
}
