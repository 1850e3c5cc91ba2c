package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"syscall"

	"husk.dev/husk/internal/sys"
)

// lent is one name of a tree that Lend gave out.
type lent struct {
	hostPath string
	file     os.FileInfo // of hostPath when it was lent
	how      How
	users    int
	below    map[string]string // the host's mounts below it, see mountsBelow, where they are followed; else nil
}

// How is the way in which the guest sees a file of the host.
type How struct {
	ReadOnly  bool // nothing can be written through it by anybody
	Recursive bool // what is mounted below it is part of it
	// TopOnly narrows ReadOnly to the file itself, without what is mounted below it.
	TopOnly bool
	// Follow has the guest see what is mounted below it later, too.
	Follow bool
	// Return has the host see what the guest mounts below it, see Mirror.
	Return bool
	// UIDs and GIDs show the owners of files as they map them; none of them: as they are.
	UIDs, GIDs []syscall.SysProcIDMap
}

// serves tells whether what is lent already is what another request asks for. Containers that share a file of
// the host must see it by one name: the guest keeps caches and locks for each name apart.
func (l *lent) serves(c *Copy, file os.FileInfo) bool {
	writable := c.how
	writable.ReadOnly, writable.TopOnly = false, false
	return l.hostPath == c.hostPath && os.SameFile(l.file, file) &&
		(reflect.DeepEqual(l.how, c.how) || reflect.DeepEqual(l.how, writable))
}

// Copy is a file of the host, with what is mounted on it, that is to be put into a tree.
type Copy struct {
	mount    *os.File
	hostPath string
	how      How
	below    map[string]string // the mounts below it that were copied with it, see mountsBelow, where they are followed
}

// CopyOf takes hold of the file or directory hostPath, an absolute path without symlinks, as this thread's mount
// namespace has it and as how says. Close frees it.
func CopyOf(hostPath string, how How) (*Copy, error) {
	if !filepath.IsAbs(hostPath) {
		return nil, fmt.Errorf("share %q with the guest: the path is not absolute", hostPath)
	}
	flags := how.flags()
	flags.ReadOnlyTop = how.ReadOnly && how.TopOnly
	if len(how.UIDs)+len(how.GIDs) > 0 {
		ns, err := sys.NewUserNS(how.UIDs, how.GIDs)
		if err != nil {
			return nil, fmt.Errorf("share %s with the guest: %w", hostPath, err)
		}
		defer ns.Close()
		flags.UserNS = ns
	}
	var below map[string]string
	if how.Follow && how.Recursive {
		table, err := sys.MountTable()
		if err != nil {
			return nil, fmt.Errorf("share %s with the guest: %w", hostPath, err)
		}
		below = mountsBelow(table, hostPath)
	}
	mount, err := sys.CloneMount(hostPath, how.Recursive, flags)
	if errors.Is(err, syscall.ELOOP) {
		err = fmt.Errorf("a symlink took the place of a part of the path: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("share %s with the guest: %w", hostPath, err)
	}
	return &Copy{mount: mount, hostPath: hostPath, how: how, below: below}, nil
}

// flags are those of a mount in the tree. The ones beside those of how are about this host: what a guest writes must not run
// here, nor open a device of the host. The guest applies its own.
func (how How) flags() sys.MountFlags {
	return sys.MountFlags{ReadOnly: how.ReadOnly && !how.TopOnly, NoExec: true, NoDev: true, NoSUID: true}
}

// Close frees what was not put into a tree; what was stays there.
func (c *Copy) Close() error { return c.mount.Close() }

// Lend puts c into the tree and returns the name that it has there: that of an earlier Lend of the same file, which
// may be writable where c is not, or one that the tree has never had. Give undoes it.
func (t *Tree) Lend(c *Copy) (name string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir == nil {
		return "", fmt.Errorf("share %s with the guest: the tree is closed", c.hostPath)
	}
	file, err := c.mount.Stat()
	if err != nil {
		return "", fmt.Errorf("share %s with the guest: %w", c.hostPath, err)
	}
	for name, l := range t.lent {
		if l.serves(c, file) {
			l.users++
			return name, nil
		}
	}
	if len(t.names) >= maxShares {
		return "", fmt.Errorf("share %s with the guest: there are %d shares, no more fit", c.hostPath, maxShares)
	}
	t.next++
	name = strconv.Itoa(t.next)
	if err := t.attach(c.mount, name); err != nil {
		return "", fmt.Errorf("share %s with the guest: %w", c.hostPath, err)
	}
	t.names[name] = true
	l := &lent{hostPath: c.hostPath, file: file, how: c.how, users: 1}
	t.lent[name] = l
	if c.how.Follow && file.IsDir() {
		if err := t.follow(name, l, c); err != nil {
			delete(t.lent, name) // and not of names, so that Close removes it
			return "", fmt.Errorf("share %s with the guest: %w", c.hostPath, err)
		}
	}
	return name, nil
}

// Give takes back one Lend of name, and with the last one the name. A name that is not there is no error.
func (t *Tree) Give(name string) error {
	t.mu.Lock()
	l := t.lent[name]
	last := l != nil && l.users == 1
	t.mu.Unlock()
	if last && l.how.Return {
		t.endMirror(name)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	l = t.lent[name]
	if l == nil || t.dir == nil {
		return nil
	}
	if l.users--; l.users > 0 {
		return nil
	}
	delete(t.lent, name)
	if err := t.remove(name); err != nil {
		return fmt.Errorf("remove share %q: %w", name, err)
	}
	delete(t.names, name)
	return nil
}

// Move tells the tree that the directory it was made at is now at path: somebody renamed one above it.
func (t *Tree) Move(path string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.path = path
}
