package mnt

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/cleanup"
)

const (
	// maxMemories bounds the file systems in memory that one container names.
	maxMemories = 64
	// memoryFlags are those that every container has on /dev/shm.
	memoryFlags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
)

// Memory mounts the file systems in memory that are not mounted yet. undo gives them back; each goes with its last
// user.
func (t *Table) Memory(all []*agentv1.Memory, undo *cleanup.Stack) error {
	if len(all) > maxMemories {
		return fmt.Errorf("%d file systems in memory, at most %d: %w", len(all), maxMemories, ErrInvalid)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range all {
		name := m.GetName()
		if !fileName(name) {
			return fmt.Errorf("file system in memory %q: %w", name, ErrInvalid)
		}
		if t.users[name] == 0 {
			if err := mountMemory(filepath.Join(t.memory, name), m.GetBytes()); err != nil {
				return err
			}
		}
		t.users[name]++
		undo.Add(func() error { return t.giveMemory(name) })
	}
	return nil
}

func mountMemory(dir string, bytes uint64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	options := "mode=1777"
	if bytes > 0 {
		options += fmt.Sprintf(",size=%dk", bytes>>10)
	}
	if err := syscall.Mount("shm", dir, "tmpfs", memoryFlags, options); err != nil {
		return fmt.Errorf("mount file system in memory: %w", err)
	}
	return nil
}

func (t *Table) giveMemory(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.users[name]--; t.users[name] > 0 {
		return nil
	}
	delete(t.users, name)
	dir := filepath.Join(t.memory, name)
	if err := unmount(dir); err != nil {
		return err
	}
	return os.Remove(dir)
}
