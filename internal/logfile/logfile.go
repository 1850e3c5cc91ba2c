// Package logfile writes logs that never grow past their bound, whatever a guest prints, and reads those of containers' output.
package logfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
)

// Writer appends to a file and, when a write does not fit, moves it to the same name with ".1" after it and
// begins anew: half of the bound, less one write, is always there of the newest. What is written at once is in one file whole,
// unless it is larger than that half.
type Writer struct {
	// Failed is told of the first write that fails. Set before the first write; nil: nobody is.
	Failed func(error)

	path string
	half int64

	mu   sync.Mutex // guards the fields below
	file *os.File
	size int64
	told bool // Failed was
	tail []byte
}

// oldSuffix follows the name of a log in that of its older half.
const oldSuffix = ".1"

// tailBytes is how much of the end Tail remembers.
const tailBytes = 2048

// Open opens path for appending, private to its owner, and keeps it and its predecessor below limit bytes.
func Open(path string, limit int64) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open log: %w", err)
	}
	return &Writer{path: path, half: limit / 2, file: f, size: info.Size()}, nil
}

// Write appends p. It always takes all of p: a disk that is full loses log lines, not the container.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tail = append(w.tail, p[max(0, len(p)-tailBytes):]...)
	w.tail = w.tail[max(0, len(w.tail)-tailBytes):]
	if w.file == nil {
		return len(p), nil
	}
	for rest := p; len(rest) > 0; {
		part := rest[:min(int64(len(rest)), w.half)]
		if w.size+int64(len(part)) > w.half {
			if err := w.rotate(); err != nil {
				w.tell(err)
				return len(p), nil
			}
		}
		n, err := w.file.Write(part)
		if err != nil {
			if n > 0 && w.file.Truncate(w.size) != nil { // no half of a write stays
				w.size += int64(n)
			}
			w.tell(err)
			return len(p), nil
		}
		w.size += int64(n)
		rest = rest[n:]
	}
	return len(p), nil
}

// tell tells Failed of the first error. Preconditions: mu is held.
func (w *Writer) tell(err error) {
	if w.Failed != nil && !w.told {
		w.Failed(fmt.Errorf("write log %s: %w", w.path, err))
	}
	w.told = true
}

// rotate begins a new file, which is there before the old one goes: a disk that is full ends no log. Preconditions: mu is held, file
// is open.
func (w *Writer) rotate() error {
	next := w.path + ".new"
	f, err := os.OpenFile(next, os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = os.Rename(w.path, w.path+oldSuffix)
	if err == nil || errors.Is(err, fs.ErrNotExist) { // it is not there where the rename below has failed before
		err = os.Rename(next, w.path)
	}
	if err != nil {
		f.Close()
		return err
	}
	w.file.Close()
	w.file, w.size = f, 0
	return nil
}

// Tail returns the last bytes written, at most 2 KiB.
func (w *Writer) Tail() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.tail)
}

// Close closes the file; later writes are remembered by Tail only.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return nil
	}
	err := w.file.Close()
	w.file = nil
	return err
}
