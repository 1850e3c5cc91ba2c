package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"husk.dev/husk/internal/sys"
)

// maxMirrored bounds what one guest can have mounted on the host at once.
const maxMirrored = 64

// Mounted is something that a guest has mounted below what it was lent. Both are paths in the tree.
type Mounted struct {
	Target string // where
	Source string // what
}

// Mirrored is a Mounted as the host has it.
type Mirrored struct {
	Top  string `json:"top"`  // the directory of the host that was lent
	Name string `json:"name"` // the mount point below it
	ID   uint64 `json:"id"`   // of the mount
}

// Mirror has the host see what a guest has mounted below what it was lent with How.Return: it makes the same mounts in the
// mount namespace that NewTree was given, and ends those that all does not name any more. A guest is believed nothing: what
// it names is looked for in the tree only, and mounted below the lent directory only; no program of it runs on the host. What
// cannot be mounted is left out and is part of the error, once. now is what is mounted then.
func (t *Tree) Mirror(all []Mounted) (now []Mirrored, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dir == nil || t.host == "" {
		return nil, nil
	}
	var errs []error
	if len(all) > maxMirrored {
		errs = append(errs, fmt.Errorf("the guest has %d mounts to show on the host, which are more than %d", len(all), maxMirrored))
		all = all[:maxMirrored]
	}
	wanted := map[string]string{}
	for _, m := range all {
		wanted[m.Target] = m.Source
	}
	for target, m := range t.mirrored {
		if source, found := wanted[target]; !found || source != m.source {
			errs = append(errs, t.unmirror(target))
		}
	}
	for _, m := range all { // in the order in which they were made: one may be on another
		if _, found := t.mirrored[m.Target]; found {
			continue
		}
		made, err := t.mirror(m)
		if err != nil {
			errs = append(errs, fmt.Errorf("show on the host what is mounted on %q: %w", m.Target, err))
		}
		t.mirrored[m.Target] = made // one that failed is not tried again
	}
	for _, m := range t.mirrored {
		if m.ID != 0 {
			now = append(now, m.Mirrored)
		}
	}
	return now, errors.Join(errs...)
}

// mirrored is a Mirrored with its source in the tree.
type mirrored struct {
	Mirrored
	source string
}

// mirror makes one mount. Preconditions: t.mu is held.
func (t *Tree) mirror(m Mounted) (mirrored, error) {
	made := mirrored{source: m.Source}
	part, name, below := strings.Cut(m.Target, "/")
	l := t.lent[part]
	if !below || !filepath.IsLocal(name) || !filepath.IsLocal(m.Source) || l == nil || !l.how.Return {
		return made, fmt.Errorf("%w: no such place was lent for that", fs.ErrPermission)
	}
	copied, err := sys.CloneBelow(t.dir, m.Source, sys.MountFlags{NoExec: true, NoDev: true, NoSUID: true})
	if err != nil {
		return made, err
	}
	defer copied.Close()
	made.Top, made.Name = l.hostPath, name
	err = sys.InMountNamespace(t.host, func() (err error) {
		made.ID, err = sys.AttachBelow(copied, made.Top, made.Name)
		return err
	})
	return made, err
}

// unmirror ends one mount. Preconditions: t.mu is held.
func (t *Tree) unmirror(target string) error {
	m := t.mirrored[target]
	delete(t.mirrored, target)
	if m.ID == 0 {
		return nil
	}
	return sys.InMountNamespace(t.host, func() error { return sys.UnmountBelow(m.Top, m.Name, m.ID) })
}

// unmirrorPart ends the mounts on one part of the tree, or on all for "". Preconditions: t.mu is held.
func (t *Tree) unmirrorPart(name string) error {
	var errs []error
	for target := range t.mirrored {
		if part, _, _ := strings.Cut(target, "/"); name == "" || part == name {
			errs = append(errs, t.unmirror(target))
		}
	}
	return errors.Join(errs...)
}

// Unmirror ends what the tree of a process that was killed had mounted in this mount namespace, of which file has the list, as
// JSON. A file that is not there is no error.
func Unmirror(file string) error {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var all []Mirrored
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil {
		return fmt.Errorf("read which mounts of a guest are on the host: %w", err)
	}
	var errs []error
	for _, m := range all {
		errs = append(errs, sys.UnmountBelow(m.Top, m.Name, m.ID))
	}
	return errors.Join(errs...)
}
