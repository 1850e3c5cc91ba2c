package mnt

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"time"

	"husk.dev/husk/internal/cleanup"
)

const (
	// holdGrace is how long the agent keeps a part of a share that no container has any more. It is unmounted at last,
	// so that the host frees what it holds for it, but not while reads of it may be under way: see holdMounts in the agent.
	holdGrace = 2 * time.Second
	// forgetTries is how often the agent looks whether the host has taken a part out of its share.
	forgetTries = 5
	// fuseMagic is statfs(2)'s number of FUSE, which virtio-fs is one of (linux/magic.h).
	fuseMagic = 0x65735546
)

// Hold opens the directories of paths that are on a share; undo takes that back. Opening mounts what the share has there in the
// agent's own namespace: mounted by each container for itself it would be a file system of its own for each, with
// caches and locks that know nothing of each other, and a container's end would unmount it.
func (t *Table) Hold(paths []string, undo *cleanup.Stack) error {
	for _, path := range paths {
		if !strings.HasPrefix(path, t.share+"/") {
			continue
		}
		file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY, 0)
		if err == nil {
			file.Close()
		} else if !errors.Is(err, syscall.ENOTDIR) { // a file is part of the share itself, and nothing is mounted for it
			return err
		}
		t.mu.Lock()
		t.holds[path]++
		t.mu.Unlock()
		undo.Add(func() error { t.letGo(path); return nil })
	}
	return nil
}

func (t *Table) letGo(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.holds[path]--; t.holds[path] > 0 {
		return
	}
	delete(t.holds, path)
	time.AfterFunc(holdGrace, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.holds[path] == 0 && onShare(path) {
			if mountPoint(path) {
				_ = unmount(path) // then it stays until the VM ends
			}
			t.forget(path, forgetTries)
		}
	})
}

// forget has the kernel forget a name that the host takes out of its share, which it does not hear of: until it looks
// again it remembers the file, and the host's file service keeps it open.
func (t *Table) forget(path string, tries int) {
	time.AfterFunc(holdGrace, func() {
		t.mu.Lock()
		held := t.holds[path] > 0 // by another container
		t.mu.Unlock()
		if held {
			return
		}
		if _, err := os.Lstat(path); err == nil && tries > 1 { // the host has yet to do it
			t.forget(path, tries-1)
		}
	})
}

// onShare tells whether path lies on a share of the host's.
func onShare(path string) bool {
	var st syscall.Statfs_t
	return syscall.Statfs(path, &st) == nil && uint32(st.Type) == fuseMagic
}
