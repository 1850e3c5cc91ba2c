package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"

	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/sys"
)

const (
	// scratchFile is the disk for what is written over layers, beside what overlayfs would keep there: it goes with the
	// snapshot, and is no part of what a snapshotter takes for the container's changes.
	scratchFile = "husk-upper.img"
	// mountsDir has the mounts that a root on the host is made of, in a bundle.
	mountsDir = "mounts"
)

// takeRoot makes the container's root available: as disks of the virtual machine where it is made of file systems in files
// or devices, else mounted on this machine. What was plugged in, or may have been, is not mounted here.
func (s *service) takeRoot(ctx context.Context, c *container, from []*types.Mount) error {
	var mounts []mount.Mount
	for _, m := range from {
		mounts = append(mounts, mount.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	if len(mounts) == 0 {
		return nil
	}
	disks, readOnly, err := rootDisks(mounts)
	switch {
	case errors.Is(err, errVerity):
		return err
	case err != nil: // most often it is made of directories
		s.log.Debug("the root is shared", "id", c.id, "reason", err)
		return c.mountRoot(mounts)
	}
	err = s.attachRoot(ctx, c, disks)
	if err != nil && !errors.Is(err, sandbox.ErrNoPlace) { // a guest may have written to them
		return fmt.Errorf("attach root: %w", err)
	}
	if err != nil {
		s.log.Info("the root is shared, not a disk", "id", c.id, "reason", err)
		return c.mountRoot(mounts)
	}
	if c.spec.Root != nil {
		c.spec.Root.Readonly = c.spec.Root.Readonly || readOnly
	}
	return nil
}

// attachRoot has the virtual machine take disks for the container's root.
func (s *service) attachRoot(ctx context.Context, c *container, disks *sandbox.RootDisks) (err error) {
	s.mu.Lock()
	box := s.box
	s.mu.Unlock()
	if box != nil {
		c.attached, err = box.Attach(ctx, disks)
	} else {
		err = disks.Check()
	}
	if err != nil {
		disks.Close()
		return err
	}
	c.disks = disks
	return nil
}

// dropRoot undoes takeRoot.
func (c *container) dropRoot() error {
	err := c.attached.Detach()
	c.closeDisks()
	return errors.Join(err, c.unmountRoot())
}

// closeDisks closes what the virtual machine has copies of.
func (c *container) closeDisks() {
	if c.disks != nil {
		c.disks.Close()
	}
}

// rootDisks opens what a root is made of, and tells whether it cannot be written to. An error says why it cannot be disks.
func rootDisks(mounts []mount.Mount) (_ *sandbox.RootDisks, readOnly bool, err error) {
	plan, err := planRoot(mounts)
	if err != nil {
		return nil, false, err
	}
	r := &sandbox.RootDisks{}
	if err := plan.open(r); err != nil {
		r.Close()
		return nil, false, err
	}
	return r, plan.readOnly, nil
}

// open opens the files of a plan. What is opened by the time of an error is in r.
func (p *rootPlan) open(r *sandbox.RootDisks) (err error) {
	if p.whole != nil {
		r.Whole = &sandbox.Image{}
		return openImage(*p.whole, r.Whole)
	}
	r.Lower = make([]sandbox.Image, len(p.lower))
	for i, layer := range p.lower {
		if err := openImage(layer, &r.Lower[i]); err != nil {
			return err
		}
	}
	if p.upper != nil {
		r.Upper = &sandbox.Image{}
		return openImage(*p.upper, r.Upper)
	}
	if p.upperDir != "" {
		r.Scratch, err = scratch(p.upperDir, p.workDir)
	}
	return err
}

// openImage opens the files of an image. What they are is looked at once they are open: a path may come to lead elsewhere.
func openImage(from rootImage, to *sandbox.Image) (err error) {
	to.Filesystem, to.ReadOnly = from.filesystem, from.readOnly
	if to.File, err = openDisk(from.source, from.readOnly); err != nil {
		return err
	}
	for _, name := range from.data {
		f, err := openDisk(name, true)
		if err != nil {
			return err
		}
		to.Data = append(to.Data, f)
	}
	return nil
}

func openDisk(name string, readOnly bool) (*os.File, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(name, flags|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0) // nothing that it may be is waited for
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		if kind := info.Mode().Type(); kind != 0 && kind != os.ModeDevice {
			err = fmt.Errorf("%s is neither a regular file nor a block device", name)
		}
	}
	if err == nil {
		var size int64
		if size, err = f.Seek(0, 2); err == nil && size == 0 {
			err = fmt.Errorf("%s is empty", name)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// scratch is the file for what is written, in place of the directories of an overlay, unless something was written there.
func scratch(upperDir, workDir string) (string, error) {
	written, err := os.ReadDir(upperDir)
	if err != nil {
		return "", err
	}
	if len(written) > 0 {
		return "", fmt.Errorf("%s has files", upperDir)
	}
	info, err := os.Lstat(workDir)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s is no directory", workDir)
	}
	return filepath.Join(workDir, scratchFile), nil
}

// mountRoot mounts the container's root on the bundle, in the shim's own mount namespace, with what is named before the
// last mount below the bundle.
func (c *container) mountRoot(mounts []mount.Mount) (err error) {
	rootfs := filepath.Join(c.bundle, rootfsDir)
	if err := os.Mkdir(rootfs, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make mount point of root: %w", err)
	}
	c.rootfs = rootfs
	defer func() {
		if err != nil {
			_ = c.unmountRoot() // the error that led here is the one to tell
		}
	}()
	staged := false // whether others are mounted where the last one finds them
	for _, m := range mounts {
		staged = staged || strings.Contains(m.Type, "/")
	}
	if !staged {
		if err := checkHostMounts(mounts); err != nil {
			return err
		}
		if err := mount.All(mounts, rootfs); err != nil {
			_ = mount.UnmountRecursive(rootfs, 0)
			return fmt.Errorf("mount root: %w", err)
		}
		return nil
	}
	return c.mountStaged(mounts)
}

// checkHostMounts refuses to have this machine's kernel read a file system that a guest has written.
func checkHostMounts(mounts []mount.Mount) error {
	for _, m := range mounts {
		if sys.Marked(m.Source, sandbox.GuestMark) {
			return fmt.Errorf("mount root: %s was written by a guest, and is no file system for this machine's kernel", m.Source)
		}
		for _, option := range m.Options {
			work, ok := strings.CutPrefix(option, "workdir=")
			if ok && sys.Marked(filepath.Join(work, scratchFile), sandbox.GuestMark) {
				return fmt.Errorf("mount root: what was written is on a disk, %s", filepath.Join(work, scratchFile))
			}
		}
	}
	return nil
}

// mountStaged mounts each but the last in a directory of its own, and the last, which names them, on the root.
func (c *container) mountStaged(mounts []mount.Mount) error {
	at := func(i int) string { return filepath.Join(c.bundle, mountsDir, fmt.Sprint(i)) }
	for i, m := range mounts {
		target := c.rootfs
		if i < len(mounts)-1 {
			target = at(i)
			if err := os.MkdirAll(target, 0o711); err != nil {
				return fmt.Errorf("make mount point: %w", err)
			}
			c.staged = append(c.staged, target)
		}
		m, err := hostMount(m, i, at)
		if err != nil {
			return err
		}
		if err := checkHostMounts([]mount.Mount{m}); err != nil {
			return err
		}
		if err := m.Mount(target); err != nil {
			return fmt.Errorf("mount root: %w", err)
		}
	}
	return nil
}

// hostMount does to a mount what its type and options ask for beforehand.
func hostMount(m mount.Mount, count int, at func(int) string) (mount.Mount, error) {
	format, makes := strings.CutPrefix(m.Type, formatPrefix)
	m.Type = strings.TrimPrefix(format, mkdirPrefix)
	if strings.Contains(m.Type, "/") {
		return m, fmt.Errorf("mount root: unknown mount type %q", m.Type)
	}
	if !makes {
		return m, nil
	}
	var err error
	if m.Source, err = expandMounts(m.Source, count, at); err != nil {
		return m, fmt.Errorf("mount root: %w", err)
	}
	var options []string
	for _, option := range m.Options {
		if option, err = expandMounts(option, count, at); err != nil {
			return m, fmt.Errorf("mount root: %w", err)
		}
		dir, wanted := strings.CutPrefix(option, mkdirOption)
		if !wanted {
			options = append(options, option)
			continue
		}
		if err := makeBelow(dir, count, at); err != nil {
			return m, fmt.Errorf("mount root: %w", err)
		}
	}
	m.Options = options
	return m, nil
}

// makeBelow makes a directory directly below one of the mounts: PATH or PATH:0755.
func makeBelow(dir string, count int, at func(int) string) error {
	dir, _, _ = strings.Cut(dir, ":")
	for i := range count {
		if filepath.Dir(dir) != at(i) {
			continue
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		info, err := os.Lstat(dir)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is no directory", dir)
		}
		return err
	}
	return fmt.Errorf("make %q: it is in none of the mounts", dir)
}

// unmountRoot undoes mountRoot.
func (c *container) unmountRoot() error {
	if c.rootfs == "" {
		return nil
	}
	err := sys.Unmount(c.rootfs)
	if errors.Is(err, syscall.EINVAL) && len(c.staged) > 0 {
		err = nil // it did not come to that
	}
	for i := len(c.staged) - 1; i >= 0; i-- {
		if failed := sys.Unmount(c.staged[i]); !errors.Is(failed, syscall.EINVAL) {
			err = errors.Join(err, failed)
		}
	}
	if err == nil {
		c.rootfs, c.staged = "", nil
	}
	return err
}
