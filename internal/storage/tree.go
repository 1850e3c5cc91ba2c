// Package storage collects the host's files and directories that one guest may see in a tree of its own.
package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"husk.dev/husk/internal/sys"
)

// ShareTag is the tag of the one virtio-fs share of a VM, the tree of all that it may see.
const ShareTag = "husk"

// maxShares bounds how many names a tree holds at once.
const maxShares = 4096

// Tree is a directory of mount points, one for each file or directory of the host that a guest sees. It
// exists in the mount namespace of the process that made it, and in those copied from it later (the file
// service's), which see what is added after they were copied.
type Tree struct {
	mu    sync.Mutex // guards the fields below
	path  string
	dir   *os.File // the tree's root; nil once closed
	names map[string]bool
	lent  map[string]*lent // those of names that Lend gave out
	next  int              // the last number that Lend gave out for a name

	host     Host
	unfollow func() // ends the following of its mounts; nil before it began

	mirror *mirror // nil where the host sees no mounts of the guest's; has locks of its own
}

// NewTree makes a tree at dir, which is created. The process must have a mount namespace of its own (it
// was started with CLONE_NEWNS and called sys.PrivateMounts), so that nobody else sees the tree and it
// is gone, however the process ends. Close undoes NewTree and all that was added.
func NewTree(dir string, host Host) (*Tree, error) {
	if err := ownMounts(); err != nil {
		return nil, fmt.Errorf("make share tree: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make share tree: %w", err)
	}
	// A file system in memory keeps the mount points from the disk below, and lets the tree alone be
	// shared with the file service.
	if err := sys.MountTmpfs(dir, maxShares+16); err != nil {
		os.Remove(dir)
		return nil, fmt.Errorf("make share tree: %w", err)
	}
	root, err := sys.OpenDir(dir)
	if err == nil {
		err = sys.ShareMounts(dir)
	}
	if err != nil {
		if root != nil {
			root.Close()
		}
		return nil, fmt.Errorf("make share tree: %w", errors.Join(err, sys.Unmount(dir), os.Remove(dir)))
	}
	t := &Tree{path: dir, dir: root, names: map[string]bool{}, lent: map[string]*lent{}, host: host}
	if host.Mounts != "" {
		t.mirror = newMirror(host, root, t.place)
	}
	return t, nil
}

// ownMounts refuses to go on in the mount namespace of the parent process or of the host's init: the
// tree would show there, and outlive this process.
func ownMounts() error {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return fmt.Errorf("find own mount namespace: %w", err)
	}
	for _, pid := range []int{os.Getppid(), 1} {
		other, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue // in another PID namespace, or of somebody else: not ours to compare with
		}
		if err != nil {
			return fmt.Errorf("find mount namespace of process %d: %w", pid, err)
		}
		if own == other && pid != os.Getpid() {
			return fmt.Errorf("this process shares its mount namespace with process %d", pid)
		}
	}
	return nil
}

// place is where a part of the tree comes from, and whether mounts on it come back.
func (t *Tree) place(part string) (hostPath string, back bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lent[part]
	if l == nil {
		return "", false
	}
	return l.hostPath, l.how.Return
}

// Path is the directory of the tree, for the file service.
func (t *Tree) Path() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.path
}

// attach puts a detached mount on a mount point that it makes. Preconditions: t.mu is held.
func (t *Tree) attach(mount *os.File, name string) error {
	info, err := mount.Stat()
	if err != nil {
		return err
	}
	point := filepath.Join(t.path, name)
	if info.IsDir() {
		err = os.Mkdir(point, 0o700)
	} else {
		var file *os.File
		if file, err = os.OpenFile(point, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
			err = file.Close()
		}
	}
	if err != nil {
		return err
	}
	if err := sys.AttachIn(mount, t.dir, name); err != nil {
		return errors.Join(err, os.Remove(point))
	}
	return nil
}

// remove unmounts name first: a mount point can only be removed when nothing of a user's is on it.
// Preconditions: t.mu is held.
func (t *Tree) remove(name string) error {
	point := filepath.Join(t.path, name)
	if err := sys.Unmount(point); err != nil {
		return err
	}
	return os.Remove(point) // never recursive
}

// Close takes everything out of the tree and removes it. It is idempotent.
func (t *Tree) Close() error {
	t.endMirror("")
	t.mu.Lock()
	unfollow := t.unfollow
	t.unfollow = nil
	t.mu.Unlock()
	if unfollow != nil {
		unfollow()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir == nil {
		return nil
	}
	var errs []error
	for name := range t.names {
		errs = append(errs, t.remove(name))
	}
	errs = append(errs, t.dir.Close())
	t.dir, t.names, t.lent = nil, nil, nil
	// Also where a name could not be removed: this detaches all that is left.
	errs = append(errs, sys.Unmount(t.path), os.Remove(t.path))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove share tree: %w", err)
	}
	return nil
}
