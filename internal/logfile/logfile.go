// Package logfile writes a log that never grows past its bound, whatever a guest prints.
package logfile

import (
	"fmt"
	"os"
	"sync"
)

// Writer appends to a file and, when the file is full, moves it to the same name with ".1" after it and
// begins anew: at least half of the bound is always the newest.
type Writer struct {
	path string
	half int64

	mu   sync.Mutex // guards the fields below
	file *os.File
	size int64
	tail []byte
}

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
		if w.size >= w.half && !w.rotate() {
			return len(p), nil
		}
		n, err := w.file.Write(rest[:min(int64(len(rest)), w.half-w.size)])
		w.size += int64(n)
		rest = rest[n:]
		if err != nil {
			return len(p), nil
		}
	}
	return len(p), nil
}

// rotate begins a new file. Preconditions: mu is held, file is open.
func (w *Writer) rotate() bool {
	if err := os.Rename(w.path, w.path+".1"); err != nil {
		return false
	}
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return false
	}
	w.file.Close()
	w.file, w.size = f, 0
	return true
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
