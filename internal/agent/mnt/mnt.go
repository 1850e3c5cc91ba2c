package mnt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/sys"
)

const (
	// maxLowers bounds the read-only layers of a root.
	maxLowers = 128
	// maxOptions is what mount(2) takes of options, in bytes: a page. Short names of layers keep below it.
	maxOptions = 4096
)

// maxTag is how long the tag of a virtio-fs share may be (virtio's specification, 5.11.4).
const maxTag = 36

// Table knows what is mounted for containers, below one directory.
type Table struct {
	dir    string // where disks and overlays are mounted, in short names
	share  string // where shares are
	memory string // where file systems in memory are

	mu sync.Mutex
	// next numbers the directories, shares are the tags mounted, writable the file systems that hold
	// data which Sync must write, users how many containers have a file system in memory, holds how many have a
	// part of a share. Guarded by mu.
	next     int
	shares   map[string]bool
	writable map[string]bool
	users    map[string]int
	holds    map[string]int
}

// NewTable makes an empty table that mounts below dir, shares below share, and file systems in memory below memory.
func NewTable(dir, share, memory string) *Table {
	return &Table{
		dir: dir, share: share, memory: memory,
		shares: map[string]bool{}, writable: map[string]bool{}, users: map[string]int{}, holds: map[string]int{},
	}
}

// Shares mounts the virtio-fs shares with these tags that are not mounted yet. They stay mounted: other
// containers of the VM may use them too.
func (t *Table) Shares(all []string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tag := range all {
		if !fileName(tag) {
			return fmt.Errorf("share %q: %w", tag, ErrInvalid)
		}
		if t.shares[tag] {
			continue
		}
		dir := filepath.Join(t.share, tag)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("mount share %s: %w", tag, err)
		}
		if mountPoint(dir) {
			t.shares[tag] = true
			continue
		}
		if err := syscall.Mount(tag, dir, "virtiofs", 0, ""); err != nil {
			return fmt.Errorf("mount share %s: %w", tag, err)
		}
		// Containers that ask for mount propagation get it among each other: what one mounts on a shared
		// volume the others see.
		if err := syscall.Mount("", dir, "", syscall.MS_SHARED, ""); err != nil {
			return errors.Join(fmt.Errorf("make share %s propagate mounts: %w", tag, err), syscall.Unmount(dir, 0))
		}
		t.shares[tag] = true
		t.writable[dir] = true
	}
	return nil
}

// Root is the mounted root of a container.
type Root struct {
	Path string
	undo *cleanup.Stack
}

// Unmount takes the root apart. The container must be gone.
func (r *Root) Unmount() error { return r.undo.Clean() }

// Assemble mounts a container's root.
func (t *Table) Assemble(ctx context.Context, want *agentv1.Rootfs) (*Root, error) {
	path, layers := want.GetPath(), len(want.GetLower()) > 0 || want.GetUpper() != nil
	switch {
	case path != "" && (layers || want.GetWhole() != nil), want.GetWhole() != nil && layers:
		return nil, fmt.Errorf("root is more than one of a directory, a disk and layers: %w", ErrInvalid)
	case path != "":
		return t.directory(path)
	case want.GetWhole() != nil:
		return t.whole(ctx, want.GetWhole())
	}
	if n := len(want.GetLower()); n == 0 || n > maxLowers {
		return nil, fmt.Errorf("root has %d read-only layers, want 1 to %d: %w", n, maxLowers, ErrInvalid)
	}
	var undo cleanup.Stack
	defer undo.Clean()
	var lowers []string
	for _, disk := range want.GetLower() {
		dir, err := t.newDir(&undo)
		if err != nil {
			return nil, err
		}
		if err := mountDisk(ctx, disk, dir, true); err != nil {
			return nil, fmt.Errorf("mount layer of the root: %w", err)
		}
		undo.Add(func() error { return unmount(dir) })
		lowers = append(lowers, dir)
	}
	upper, err := t.upper(ctx, want.GetUpper(), &undo)
	if err != nil {
		return nil, err
	}
	path, err = t.overlay(lowers, upper, &undo)
	if err != nil {
		return nil, err
	}
	return &Root{Path: path, undo: undo.Release()}, nil
}

// directory checks a root that is a directory of a share.
func (t *Table) directory(path string) (*Root, error) {
	if filepath.Clean(path) != path || !strings.HasPrefix(path, t.share+"/") {
		return nil, fmt.Errorf("root %q is not below %s: %w", path, t.share, ErrInvalid)
	}
	var undo cleanup.Stack
	defer undo.Clean()
	if err := t.Hold([]string{path}, &undo); err != nil {
		return nil, fmt.Errorf("open root: %w", err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("look at root: %w", err)
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("root %s is not a directory: %w", path, ErrInvalid)
	}
	return &Root{Path: path, undo: undo.Release()}, nil
}

// whole mounts a disk that is a root by itself.
func (t *Table) whole(ctx context.Context, disk *agentv1.Disk) (*Root, error) {
	var undo cleanup.Stack
	defer undo.Clean()
	dir, err := t.newDir(&undo)
	if err != nil {
		return nil, err
	}
	if err := mountDisk(ctx, disk, dir, disk.GetReadonly()); err != nil {
		return nil, fmt.Errorf("mount the root: %w", err)
	}
	undo.Add(func() error { return unmount(dir) })
	if !disk.GetReadonly() {
		t.setWritable(dir, true)
		undo.Add(func() error { t.setWritable(dir, false); return nil })
	}
	return &Root{Path: dir, undo: undo.Release()}, nil
}

// upper makes the writable layer: a disk, or guest memory. It returns where it is mounted, with the
// directories upper and work in it.
func (t *Table) upper(ctx context.Context, disk *agentv1.Disk, undo *cleanup.Stack) (string, error) {
	dir, err := t.newDir(undo)
	if err != nil {
		return "", err
	}
	if disk == nil {
		err = syscall.Mount("husk", dir, "tmpfs", 0, "mode=0700")
	} else {
		err = mountDisk(ctx, disk, dir, false)
	}
	if err != nil {
		return "", fmt.Errorf("mount writable layer of the root: %w", err)
	}
	undo.Add(func() error { return unmount(dir) })
	if disk != nil {
		t.setWritable(dir, true)
		undo.Add(func() error { t.setWritable(dir, false); return nil })
	}
	for _, sub := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("make writable layer of the root: %w", err)
		}
	}
	return dir, nil
}

// overlay mounts the layers over each other, the lowest first in lowers.
func (t *Table) overlay(lowers []string, upper string, undo *cleanup.Stack) (string, error) {
	dir, err := t.newDir(undo)
	if err != nil {
		return "", err
	}
	var options strings.Builder
	options.WriteString("lowerdir=")
	for i := len(lowers) - 1; i >= 0; i-- { // overlayfs wants the uppermost first
		options.WriteString(lowers[i])
		if i > 0 {
			options.WriteByte(':')
		}
	}
	fmt.Fprintf(&options, ",upperdir=%s/upper,workdir=%s/work", upper, upper)
	if options.Len() >= maxOptions {
		return "", fmt.Errorf("root has too many layers: %w", ErrInvalid)
	}
	if err := syscall.Mount("overlay", dir, "overlay", 0, options.String()); err != nil {
		return "", fmt.Errorf("mount overlay of %d layers: %w", len(lowers), err)
	}
	undo.Add(func() error { return unmount(dir) })
	return dir, nil
}

// mountPoint tells whether another file system is mounted on dir.
func mountPoint(dir string) bool {
	var own, parent syscall.Stat_t
	return syscall.Stat(dir, &own) == nil && syscall.Stat(filepath.Dir(dir), &parent) == nil && own.Dev != parent.Dev
}

// newDir makes a directory with a short name.
func (t *Table) newDir(undo *cleanup.Stack) (string, error) {
	t.mu.Lock()
	t.next++
	dir := filepath.Join(t.dir, strconv.Itoa(t.next))
	t.mu.Unlock()
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", fmt.Errorf("make mount point: %w", err)
	}
	undo.Add(func() error { return os.Remove(dir) })
	return dir, nil
}

func (t *Table) setWritable(dir string, writable bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if writable {
		t.writable[dir] = true
	} else {
		delete(t.writable, dir)
	}
}

// Sync writes everything that is dirty to writable disks and shares.
func (t *Table) Sync() error {
	t.mu.Lock()
	var dirs []string
	for dir := range t.writable {
		dirs = append(dirs, dir)
	}
	t.mu.Unlock()
	var errs []error
	for _, dir := range dirs {
		if err := sys.SyncFS(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// unmount takes a mount away. What still uses it keeps it alive, out of sight.
func unmount(dir string) error {
	if err := syscall.Unmount(dir, 0); err == nil {
		return nil
	}
	if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}
