package storage

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"husk.dev/husk/internal/sys"
)

// followPace is how long the tree takes at least from one look at the host's mounts to the next.
const followPace = 100 * time.Millisecond

// follow begins to bring what is mounted and unmounted on the host below a part of the tree into it. Copies that the kernel would
// bring itself (MS_SLAVE, mount_namespaces(7)) keep the host from unmounting them for as long as the guest remembers a file of
// theirs. Preconditions: t.mu is held.
func (t *Tree) follow(part string, l *lent, c *Copy) error {
	if t.unfollow == nil {
		err := t.onHost(func() (err error) {
			t.unfollow, err = sys.FollowMounts(func() {
				t.catchUp()
				time.Sleep(followPace)
			})
			return err
		})
		if err != nil {
			return err
		}
	}
	table, err := t.hostTable()
	if err != nil {
		return err
	}
	now := t.foreign(table, l.hostPath)
	l.below = now
	if c.how.Recursive { // what changed after the copy is made good
		l.below = c.below
		t.catchUpWith(part, l, now)
	}
	return nil
}

// onHost calls f on a thread that sees the host's mounts as the host does: what this process has mounted for itself, the tree too,
// is none of them.
func (t *Tree) onHost(f func() error) error {
	if t.host.Mounts == "" {
		return f()
	}
	return sys.InMountNamespace(t.host.Mounts, f)
}

func (t *Tree) hostTable() (table []sys.MountPoint, err error) {
	err = t.onHost(func() (err error) {
		table, err = sys.MountTable()
		return err
	})
	return table, err
}

// catchUp makes the mounts below what is followed those of the host.
func (t *Tree) catchUp() {
	table, err := t.hostTable()
	if err != nil {
		t.host.warn(err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir == nil {
		return
	}
	for name, l := range t.lent {
		if l.below != nil {
			t.catchUpWith(name, l, t.foreign(table, l.hostPath))
		}
	}
}

// mountsBelow are what is mounted below a directory of the host, by their paths below it. Of several on one mount point it is the
// last one.
func mountsBelow(table []sys.MountPoint, dir string) map[string]string {
	below := map[string]string{}
	for _, m := range table {
		if name, found := strings.CutPrefix(m.Path, strings.TrimSuffix(dir, "/")+"/"); found && name != "" {
			below[name] = m.Device + " " + m.Root // a copy in the tree keeps the number from being another's
		}
	}
	return below
}

// foreign is mountsBelow without what the guest itself has mounted, and without the tree.
func (t *Tree) foreign(table []sys.MountPoint, dir string) map[string]string {
	below := mountsBelow(table, dir)
	maps.DeleteFunc(below, func(name, _ string) bool {
		path := filepath.Join(dir, name)
		return path == t.path || strings.HasPrefix(path, t.path+"/") || t.mirror != nil && t.mirror.isImage(path)
	})
	return below
}

// catchUpWith makes the mounts below one part of the tree those of now. Preconditions: t.mu is held.
func (t *Tree) catchUpWith(part string, l *lent, now map[string]string) {
	gone, come := changes(l.below, now)
	var errs []error
	for _, name := range slices.Backward(gone) {
		errs = append(errs, sys.UnmountIn(t.dir, filepath.Join(part, name)))
	}
	for _, name := range come {
		errs = append(errs, t.bring(part, l, name))
	}
	l.below = now
	if err := errors.Join(errs...); err != nil { // as where it was unmounted again meanwhile
		t.host.warn(fmt.Errorf("bring mounts of the host to the guest: %w", err))
	}
}

// changes are the mount points whose mounts have ended, or are others, and those that have new ones, each in the order of paths:
// what is on another mount comes after it, and ends with it.
func changes(before, now map[string]string) (gone, come []string) {
	for _, name := range slices.Sorted(maps.Keys(before)) {
		ended := slices.ContainsFunc(gone, func(above string) bool { return strings.HasPrefix(name, above+"/") })
		if ended || now[name] != before[name] {
			gone = append(gone, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if before[name] != now[name] || slices.Contains(gone, name) {
			come = append(come, name)
		}
	}
	return gone, come
}

// bring copies one mount of the host.
func (t *Tree) bring(part string, l *lent, name string) error {
	var mount *os.File
	err := t.onHost(func() (err error) {
		mount, err = sys.CloneMount(filepath.Join(l.hostPath, name), false, l.how.flags())
		return err
	})
	if err != nil {
		return err
	}
	defer mount.Close()
	return sys.AttachIn(mount, t.dir, filepath.Join(part, name))
}
