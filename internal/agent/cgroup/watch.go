package cgroup

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"husk.dev/husk/internal/sys"
)

// Watcher tells of out-of-memory kills in groups, by inotify(7) on their memory.events: one descriptor
// for all groups, and nothing is polled.
type Watcher struct {
	file *os.File
	fd   int // of file, which outlives every use

	mu sync.Mutex
	// groups are the watched ones by inotify's number. Guarded by mu.
	groups map[int32]*watched
}

type watched struct {
	group Group
	kills uint64 // reported so far; guarded by Watcher.mu
	tell  func()
}

// NewWatcher makes a watcher. Run must run for it to tell anything.
func NewWatcher() (*Watcher, error) {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch cgroups: %w", err)
	}
	f, err := sys.Pollable(fd, "inotify")
	if err != nil {
		return nil, fmt.Errorf("watch cgroups: %w", err)
	}
	return &Watcher{file: f, fd: fd, groups: map[int32]*watched{}}, nil
}

// Close ends Run.
func (w *Watcher) Close() error { return w.file.Close() }

// Watch calls tell once for each time that OOM kills in the group are noticed, from any goroutine, until
// forget is called. check looks at once, so that a kill is told before what followed from it.
func (w *Watcher) Watch(g Group, tell func()) (check, forget func(), err error) {
	path := filepath.Join(g.Dir, "memory.events")
	w.mu.Lock()
	defer w.mu.Unlock()
	wd, err := syscall.InotifyAddWatch(w.fd, path, syscall.IN_MODIFY)
	if err != nil {
		return nil, nil, fmt.Errorf("watch %s: %w", path, none(err))
	}
	entry := &watched{group: g, tell: tell}
	w.groups[int32(wd)] = entry
	forget = func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.groups[int32(wd)] == entry {
			delete(w.groups, int32(wd))
			_, _ = syscall.InotifyRmWatch(w.fd, uint32(wd)) // fails when the group is gone already
		}
	}
	return func() { w.check(entry) }, forget, nil
}

// check tells of kills that were not told of.
func (w *Watcher) check(entry *watched) {
	kills, err := entry.group.OOMKills()
	if err != nil {
		return // the group is gone
	}
	w.mu.Lock()
	more := kills > entry.kills
	entry.kills = max(entry.kills, kills)
	w.mu.Unlock()
	if more {
		entry.tell()
	}
}

// Run handles notifications until Close.
func (w *Watcher) Run() {
	buf := make([]byte, 4096)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			return
		}
		for _, wd := range watchNumbers(buf[:n]) {
			w.mu.Lock()
			entry := w.groups[wd]
			w.mu.Unlock()
			if entry != nil {
				w.check(entry)
			}
		}
	}
}

// watchNumbers returns which watches a buffer of inotify events is about: each has a header of 16 bytes,
// of which the first four are the watch and the last four the length of the name that follows.
func watchNumbers(buf []byte) []int32 {
	var numbers []int32
	for len(buf) >= syscall.SizeofInotifyEvent {
		numbers = append(numbers, int32(binary.NativeEndian.Uint32(buf)))
		size := syscall.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(buf[12:]))
		if size > len(buf) {
			break
		}
		buf = buf[size:]
	}
	return numbers
}
