package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// Place is something that is mounted in a root directory.
type Place struct {
	// Path in the root: absolute, with symlinks as the root has them.
	Path string
	// Source is the host's file or directory, a path without symlinks. Empty: nothing that the host could show.
	Source    string
	ReadOnly  bool
	Recursive bool
}

// Enter gives the calling thread, and no other of the process, a mount namespace of its own whose root is the
// directory root with places mounted in it, and nothing else of this machine. The caller has locked its goroutine to
// the thread, and looks up no paths of the host on it any more. Mount points that are missing are made, with
// their parents. Places that the host cannot show are empty there and cannot be written to.
// After an error the thread must not be used for anything: it may see the host.
func Enter(root string, readOnly bool, places []Place) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	if err := PrivateMounts(); err != nil {
		return err
	}
	// Not read-only before all mount points are there.
	tree, err := CloneMount(root, true, MountFlags{NoExec: true, NoDev: true, NoSUID: true})
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := attachOver(tree, root); err != nil {
		return err
	}
	dir, err := OpenDir(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	for _, p := range places {
		if err := putPlace(dir, p); err != nil {
			return fmt.Errorf("mount %s: %w", p.Path, err)
		}
	}
	if readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(int(tree.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("make %s read-only: %w", root, err)
		}
	}
	return pivot(root)
}

// EnterNothing is Enter with an empty root.
func EnterNothing() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	return EmptyRoot()
}

// EmptyRoot gives whoever is in the calling thread's mount namespace an empty root. The namespace must be its own.
func EmptyRoot() error {
	if err := PrivateMounts(); err != nil {
		return err
	}
	const over = "/proc" // any directory does: it is hidden in this namespace alone
	if err := unix.Mount("husk", over, "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0555,size=4k"); err != nil {
		return fmt.Errorf("mount empty root: %w", err)
	}
	return pivot(over)
}

func attachOver(tree *os.File, root string) error {
	err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, root, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mount %s: %w", root, err)
	}
	return nil
}

// pivot makes the mount point root the thread's root and forgets the old one (pivot_root(2), "pivot_root(".", ".")").
func pivot(root string) error {
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter %s: %w", root, err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("make %s the root: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("forget the old root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	return nil
}

// putPlace mounts p in the root that is open as dir.
func putPlace(dir *os.File, p Place) error {
	tree, isDir, err := source(p)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	point, err := mountPoint(dir, p.Path, isDir)
	if err != nil {
		return err
	}
	defer unix.Close(point)
	return unix.MoveMount(tree, "", point, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// source is the detached mount that p puts into a root.
func source(p Place) (fd int, isDir bool, err error) {
	if p.Source == "" {
		fd, err = emptyMount()
		return fd, true, err
	}
	f, err := CloneMount(p.Source, p.Recursive, MountFlags{ReadOnly: p.ReadOnly, NoExec: true, NoDev: true, NoSUID: true})
	if err != nil {
		return -1, false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return -1, false, err
	}
	fd, err = unix.Dup(int(f.Fd()))
	return fd, info.IsDir(), err
}

// emptyMount is a detached file system with nothing in it that cannot be written to.
func emptyMount() (int, error) {
	fsfd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make empty file system: %w", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigSetString(fsfd, "size", "4k"); err != nil {
		return -1, fmt.Errorf("make empty file system: %w", err)
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("make empty file system: %w", err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make empty file system: %w", err)
	}
	return fd, nil
}

// maxDepth bounds the parents that a mount point is given.
const maxDepth = 255

// mountPoint opens name in the root that is open as dir, whatever symlinks are in it, and makes it where it is missing.
func mountPoint(dir *os.File, name string, isDir bool) (int, error) {
	fd, err := openIn(dir, name)
	if !errors.Is(err, fs.ErrNotExist) {
		return fd, err
	}
	parent, base := path.Split(path.Clean("/" + name))
	if base == "" || len(name) > unix.PathMax {
		return -1, fmt.Errorf("%s is no mount point: %w", name, fs.ErrInvalid)
	}
	above, err := mountPointDir(dir, parent, maxDepth)
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	if isDir {
		err = unix.Mkdirat(above, base, 0o755)
	} else {
		var file int
		if file, err = unix.Openat(above, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644); err == nil {
			err = unix.Close(file)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("make mount point %s: %w", name, err)
	}
	return openIn(dir, name)
}

// mountPointDir is mountPoint for a directory's parents.
func mountPointDir(dir *os.File, name string, depth int) (int, error) {
	fd, err := openIn(dir, name)
	if !errors.Is(err, fs.ErrNotExist) {
		return fd, err
	}
	if depth == 0 {
		return -1, fmt.Errorf("%s is too deep: %w", name, fs.ErrInvalid)
	}
	parent, base := path.Split(path.Clean(name))
	above, err := mountPointDir(dir, parent, depth-1)
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	if err := unix.Mkdirat(above, base, 0o755); err != nil {
		return -1, fmt.Errorf("make directory %s: %w", name, err)
	}
	return openIn(dir, name)
}

func openIn(dir *os.File, name string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(dir.Fd()), name, &how)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// JoinNetwork puts the calling thread, which its goroutine is locked to, into the network namespace at path.
func JoinNetwork(path string) error { return enterNetwork(path, func() error { return nil }) }
