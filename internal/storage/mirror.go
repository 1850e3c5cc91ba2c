package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"husk.dev/husk/internal/sys"
)

const (
	// maxMirrored bounds what one guest can have mounted on the host at once.
	maxMirrored = 64
	// mirrorBurst is how many changes a guest can make at once, and mirrorPace how long each further one takes.
	mirrorBurst = 50
	mirrorPace  = time.Second
	// mirrorWait bounds the wait for a file system of the host that is looked up for a guest.
	mirrorWait = 5 * time.Second
)

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

// Host is the host as a tree sees it.
type Host struct {
	// Mounts is the path of the mount namespace that has what is lent, and in which the host sees what a guest mounts; "": it is
	// this process', and sees nothing.
	Mounts string
	// Record keeps a list of what there is, for Unmirror. It is called before a mount is made and after its end; nil: nobody.
	Record func([]Mirrored) error
	// Warn hears what could not be mounted, on either side; nil: nobody. A guest decides how often, up to a mirrorPace.
	Warn func(error)
}

// warn tells of an error, where there is one and somebody who hears of it.
func (h Host) warn(err error) {
	if err != nil && h.Warn != nil {
		h.Warn(err)
	}
}

// mirror is what a tree has mounted in another mount namespace.
type mirror struct {
	host  Host
	dir   *os.File                                       // the tree's root
	place func(part string) (hostPath string, back bool) // where a part of the tree comes from, and whether mounts on it come back

	turn chan struct{}       // has a value while nobody has it; who waits for a file system keeps it
	made map[string]mirrored // by the target; whoever has the turn has it

	mu      sync.Mutex // guards the fields below
	latest  []Mounted
	due     bool            // a timer will bring latest about
	changes int             // that may come at once
	images  map[string]bool // where on the host it has mounted something, or is about to
	last    time.Time
	ended   bool
}

// mirrored is a Mirrored with its source in the tree. Without an ID there was an error.
type mirrored struct {
	Mirrored
	source string
}

func newMirror(host Host, dir *os.File, place func(string) (string, bool)) *mirror {
	m := &mirror{host: host, dir: dir, place: place, turn: make(chan struct{}, 1), made: map[string]mirrored{}, changes: mirrorBurst, images: map[string]bool{}}
	m.turn <- struct{}{}
	return m
}

// Mirror has the host see what a guest has mounted below what it was lent with How.Return: it makes the same mounts in the
// mount namespace that NewTree was given, and ends those that all does not name any more. A guest is believed nothing: what
// it names is looked for in the tree only, and mounted below the lent directory only; no program of it runs on the host. When
// Mirror returns it is done, unless the guest changes it too often, or a file system of the host does not answer.
func (t *Tree) Mirror(all []Mounted) {
	m := t.mirror
	if m == nil {
		return
	}
	m.mu.Lock()
	m.latest = all
	if now := time.Now(); now.Sub(m.last) > mirrorPace {
		m.changes = min(mirrorBurst, m.changes+int(min(now.Sub(m.last)/mirrorPace, mirrorBurst)))
		m.last = now
	}
	later := m.due || m.changes == 0
	if !later {
		m.changes--
	} else if !m.due {
		m.due = true
		time.AfterFunc(mirrorPace, m.catchUp)
	}
	m.mu.Unlock()
	if !later {
		m.bounded(func() error { return m.update(all) })
	}
}

// catchUp brings about what there was no time for.
func (m *mirror) catchUp() {
	m.mu.Lock()
	all := m.latest
	m.due = false
	m.mu.Unlock()
	m.bounded(func() error { return m.update(all) })
}

// bounded calls f when it has the turn, and waits for both, but not for ever.
func (m *mirror) bounded(f func() error) {
	limit := time.NewTimer(mirrorWait)
	defer limit.Stop()
	done := make(chan struct{})
	select {
	case <-m.turn:
	case <-limit.C:
		m.host.warn(errors.New("a file system of the host still does not answer"))
		return
	}
	go func() {
		defer close(done)
		m.host.warn(f())
		m.turn <- struct{}{}
	}()
	select {
	case <-done:
	case <-limit.C:
		m.host.warn(errors.New("a file system of the host does not answer"))
	}
}

// update makes the mounts those of all. Preconditions: the caller has the turn.
func (m *mirror) update(all []Mounted) error {
	m.mu.Lock()
	ended := m.ended
	m.mu.Unlock()
	if ended {
		return nil
	}
	var errs []error
	if len(all) > maxMirrored {
		errs = append(errs, fmt.Errorf("the guest has %d mounts to show on the host, which are more than %d", len(all), maxMirrored))
		all = all[:maxMirrored]
	}
	wanted := map[string]string{} // the last on a target is the one that shows
	for _, one := range all {
		wanted[one.Target] = one.Source
	}
	var stale []string
	for target, made := range m.made {
		if source, found := wanted[target]; !found || source != made.source {
			stale = append(stale, target)
		}
	}
	errs = append(errs, m.end(stale))

	var fresh []*newMount
	for _, one := range all { // in the order in which they were made: one may be on another
		if _, known := m.made[one.Target]; known || wanted[one.Target] != one.Source {
			continue
		}
		mount, err := m.prepare(one)
		if err != nil {
			errs = append(errs, fmt.Errorf("show on the host what is mounted on %q: %w", one.Target, err))
			m.made[one.Target] = mirrored{source: one.Source} // it is not tried again
			continue
		}
		defer mount.copied.Close()
		fresh = append(fresh, mount)
		m.made[one.Target] = mirrored{Mirrored: mount.Mirrored, source: one.Source}
	}
	if len(fresh) > 0 {
		errs = append(errs, m.record(), m.attach(fresh)) // on record before there is anything to end
	}
	return errors.Join(errs...)
}

// newMount is a mount that is about to be made.
type newMount struct {
	Mirrored
	target string
	copied *os.File
}

// prepare checks and copies what a guest has mounted.
func (m *mirror) prepare(one Mounted) (*newMount, error) {
	part, name, below := strings.Cut(one.Target, "/")
	top, back := m.place(part)
	if !below || !local(name) || !local(one.Source) || !back {
		return nil, fmt.Errorf("%w: no such place was lent for that", fs.ErrPermission)
	}
	copied, id, err := sys.CloneBelow(m.dir, one.Source, sys.MountFlags{NoExec: true, NoDev: true, NoSUID: true})
	if err != nil {
		return nil, err
	}
	return &newMount{Mirrored: Mirrored{Top: top, Name: name, ID: id}, target: one.Target, copied: copied}, nil
}

// local tells whether a guest's path leads to something below where it begins.
func local(name string) bool {
	return filepath.IsLocal(name) && path.Clean(name) == name && name != "."
}

// attach makes mounts on the host.
func (m *mirror) attach(fresh []*newMount) error {
	err := sys.InMountNamespace(m.host.Mounts, func() error {
		var errs []error
		for _, mount := range fresh {
			err := sys.AttachBelow(mount.copied, mount.Top, mount.Name)
			if err != nil { // there is nothing to end, and it is not tried again
				m.made[mount.target] = mirrored{source: m.made[mount.target].source}
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return fmt.Errorf("show on the host what a guest has mounted: %w", err)
	}
	return nil
}

// end ends the mounts on targets, and those on mount points below them.
func (m *mirror) end(targets []string) error {
	var all []string
	for target := range m.made {
		if slices.ContainsFunc(targets, func(t string) bool { return target == t || strings.HasPrefix(target, t+"/") }) {
			all = append(all, target)
		}
	}
	if len(all) == 0 {
		return nil
	}
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) }) // what is below comes first
	err := sys.InMountNamespace(m.host.Mounts, func() error {
		var errs []error
		for _, target := range all {
			made, err := m.made[target], error(nil)
			if made.ID != 0 {
				err = sys.UnmountBelow(made.Top, made.Name, made.ID)
			}
			if err == nil {
				delete(m.made, target)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return errors.Join(err, m.record())
}

// record tells of what there is, or is about to be.
func (m *mirror) record() error {
	var all []Mirrored
	images := map[string]bool{}
	for _, made := range m.made {
		if made.ID != 0 {
			all = append(all, made.Mirrored)
			images[filepath.Join(made.Top, made.Name)] = true
		}
	}
	m.mu.Lock()
	m.images = images
	m.mu.Unlock()
	if m.host.Record == nil {
		return nil
	}
	return m.host.Record(all)
}

// isImage tells whether path is what the guest has mounted, as the host sees it, or below it.
func (m *mirror) isImage(path string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ; len(path) > 1; path = filepath.Dir(path) {
		if m.images[path] {
			return true
		}
	}
	return false
}

// endMirror ends the mounts on one part of the tree, or all for good where it is "".
func (t *Tree) endMirror(part string) {
	m := t.mirror
	if m == nil {
		return
	}
	if part == "" {
		m.mu.Lock()
		m.ended = true
		m.mu.Unlock()
	}
	m.bounded(func() error {
		var targets []string
		for target := range m.made {
			if of, _, _ := strings.Cut(target, "/"); part == "" || of == part {
				targets = append(targets, target)
			}
		}
		return m.end(targets)
	})
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
