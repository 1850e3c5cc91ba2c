package state

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"husk.dev/husk/internal/sys"
)

const (
	lockFile = "lock"
	// lockWait bounds Lock where its ctx has no deadline.
	lockWait = 10 * time.Second
	// maxID is the longest container id, in bytes: what vmm.Spec takes.
	maxID = 128
)

// ErrExists matches the error of Create for an id that is taken.
var ErrExists = errors.New("in use")

// ErrNotExist matches the error of Open, Lock and Load for a container that is not (or no longer) there.
var ErrNotExist = errors.New("does not exist")

// Dir is the directory of one container. It may be used from several goroutines.
type Dir struct {
	path string // absolute
	id   string

	turn   chan struct{} // holds one token while a goroutine of this process has the lock
	locked atomic.Bool   // the same for Save, which must not block
}

// CheckID tells whether id can name a container.
func CheckID(id string) error {
	if id == "" {
		return errors.New("container id is empty")
	}
	if len(id) > maxID {
		return fmt.Errorf("container id %.16q… is %d bytes long, at most %d", id, len(id), maxID)
	}
	if id == "." || id == ".." {
		return fmt.Errorf("container id %q is not allowed", id)
	}
	for _, r := range id {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !letter && !strings.ContainsRune("_+-.", r) {
			return fmt.Errorf("container id %q: %q is neither letter nor digit nor one of _ + - . in ASCII", id, r)
		}
	}
	return nil
}

// Create makes the directory of a new container. The caller locks it and saves a first state at once.
// The error of an id that is taken matches ErrExists.
func Create(root, id string) (*Dir, error) {
	d, err := at(root, id)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(d.path), 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	err = os.Mkdir(d.path, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("container id %q is %w", id, ErrExists)
	}
	if err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	return d, nil
}

// Open returns the directory of an existing container. The error of a missing one matches ErrNotExist.
func Open(root, id string) (*Dir, error) {
	d, err := at(root, id)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notExist(id)
	}
	if err != nil {
		return nil, fmt.Errorf("open state of container %q: %w", id, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open state of container %q: %s is not a directory", id, d.path)
	}
	return d, nil
}

// List returns the ids of all containers below root, sorted. A missing root has none.
func List(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && CheckID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func at(root, id string) (*Dir, error) {
	if err := CheckID(id); err != nil {
		return nil, err
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("find state directory: %w", err)
	}
	return &Dir{path: filepath.Join(root, id), id: id, turn: make(chan struct{}, 1)}, nil
}

func notExist(id string) error { return fmt.Errorf("container %q %w", id, ErrNotExist) }

// ID is the container's.
func (d *Dir) ID() string { return d.id }

// Path is where name lies in the directory; the directory itself for "".
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Lock waits until no other process or goroutine holds the container's lock and takes it. The wait ends
// with ctx, and after ten seconds in any case. The error of a container that was removed meanwhile
// matches ErrNotExist. The returned function gives the lock back; calling it again does nothing.
func (d *Dir) Lock(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("lock container %q: %w", d.id, ctx.Err())
	}
	file, err := d.flock(ctx)
	if err != nil {
		<-d.turn
		return nil, err
	}
	d.locked.Store(true)
	var released atomic.Bool
	return func() {
		if !released.CompareAndSwap(false, true) {
			return
		}
		d.locked.Store(false)
		file.Close() // drops the lock
		<-d.turn
	}, nil
}

func (d *Dir) flock(ctx context.Context) (*os.File, error) {
	file, err := os.OpenFile(d.Path(lockFile), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notExist(d.id)
	}
	if err != nil {
		return nil, fmt.Errorf("lock container %q: %w", d.id, err)
	}
	if err := sys.Lock(ctx, file); err != nil {
		file.Close()
		return nil, fmt.Errorf("lock container %q: held by another process: %w", d.id, err)
	}
	// Whoever held the lock may have removed the container, and another may have taken its id.
	mine, err := file.Stat()
	if err == nil {
		if now, gone := os.Lstat(d.Path(lockFile)); gone != nil || !os.SameFile(mine, now) {
			err = notExist(d.id)
		}
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// Remove deletes the directory with all that is in it. It refuses while anything is mounted below it:
// what is mounted there are users' files. Removing what is gone is no error.
func (d *Dir) Remove() error {
	if mounted, err := mountBelow(d.path); err != nil {
		return fmt.Errorf("remove container %q: %w", d.id, err)
	} else if mounted != "" {
		return fmt.Errorf("remove container %q: %s is still mounted", d.id, mounted)
	}
	if err := os.RemoveAll(d.path); err != nil {
		return fmt.Errorf("remove container %q: %w", d.id, err)
	}
	return nil
}

// retiredMark stands between the id and the owner's pid in the name of a retired directory. No id has it.
const retiredMark = "@"

// Retire gives the id free and keeps the directory for the owner of a VM that outlives the container it was made for.
// d is of no use afterwards; what it returns is the same directory, to be removed with the VM.
func (d *Dir) Retire(owner int) (*Dir, error) {
	retired := retiredDir(d, owner)
	if err := os.Rename(d.path, retired.path); err != nil {
		return nil, fmt.Errorf("retire state of container %q: %w", d.id, err)
	}
	return retired, nil
}

// Retired returns the directory that Retire made of that of container id. Nobody may have.
func Retired(root, id string, owner int) (*Dir, error) {
	d, err := at(root, id)
	if err != nil {
		return nil, err
	}
	return retiredDir(d, owner), nil
}

func retiredDir(d *Dir, owner int) *Dir {
	return &Dir{path: d.path + retiredMark + strconv.Itoa(owner), id: d.id, turn: make(chan struct{}, 1)}
}

// mountBelow returns a mount point of this mount namespace in or below dir, or nothing.
func mountBelow(dir string) (string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	all, err := sys.MountTable()
	for _, m := range all {
		if m.Path == dir || strings.HasPrefix(m.Path, dir+"/") {
			return m.Path, nil
		}
	}
	return "", err
}
