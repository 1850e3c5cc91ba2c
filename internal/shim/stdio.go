package shim

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"husk.dev/husk/internal/sandbox"
)

// stdio is a process' standard input and output as containerd names them: fifos that it has made, or for
// outputs a file ("file:///var/log/out").
type stdio struct {
	in, out, err string
	terminal     bool
}

// opened is a stdio whose files are open.
type opened struct {
	sandbox.Stdio
	// keep keeps standard input from ending with the client that writes to it: that is for CloseIO to say.
	keep *os.File
	once sync.Once
}

// open opens the files. The process, once it has them, closes them at its end.
func (s stdio) open() (_ *opened, err error) {
	o := &opened{Stdio: sandbox.Stdio{Terminal: s.terminal}}
	defer func() {
		if err != nil {
			o.Stdio.Close()
			o.closeIn()
		}
	}()
	if s.in != "" {
		if o.In, err = os.OpenFile(s.in, os.O_RDONLY|syscall.O_NONBLOCK, 0); err != nil {
			return nil, fmt.Errorf("open standard input: %w", err)
		}
		if o.keep, err = os.OpenFile(s.in, os.O_WRONLY|syscall.O_NONBLOCK, 0); err != nil {
			return nil, fmt.Errorf("open standard input: %w", err)
		}
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

// notClosed is a writer that another one closes.
type notClosed struct{ io.Writer }

func (notClosed) Close() error { return nil }

// openOutput opens where a process' output goes, nil for nowhere.
func openOutput(name string) (io.WriteCloser, error) {
	if name == "" {
		return nil, nil
	}
	flags := os.O_RDWR // of a fifo both ends: a reader that goes, and comes back, ends nothing
	if u, err := url.Parse(name); err == nil && u.Scheme != "" && u.Scheme != "fifo" {
		if u.Scheme != "file" {
			return nil, fmt.Errorf("output to %q: only fifos and file:// are known", name)
		}
		name, flags = filepath.Clean(u.Path), os.O_WRONLY|os.O_APPEND|os.O_CREATE
	} else if err == nil && u.Scheme == "fifo" {
		name = u.Path
	}
	f, err := os.OpenFile(name, flags|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open output: %w", err)
	}
	return f, nil
}

// closeIn ends the standard input once no client writes to it any more.
func (o *opened) closeIn() {
	o.once.Do(func() {
		if o.keep != nil {
			o.keep.Close()
		}
	})
}

var errNoInput = errors.New("the process has no standard input")
