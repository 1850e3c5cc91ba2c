package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MountFlags narrow what can be done through a mount.
type MountFlags struct {
	ReadOnly bool
	// ReadOnlyTop is ReadOnly without what is mounted below.
	ReadOnlyTop bool
	// UserNS is an open user namespace that ids are shown as it maps them (MOUNT_ATTR_IDMAP, mount_setattr(2)); nil for none.
	// What is mounted below keeps its own.
	UserNS *os.File
	// NoExec, NoDev and NoSUID are about programs of this machine, not of a guest that it serves.
	NoExec, NoDev, NoSUID bool
}

// CloneMount returns a detached copy of the mount of the file or directory at path, from path down, with
// what is mounted below it where recursive is set. flags hold for all of it, and nothing that is mounted
// or unmounted elsewhere later shows in it. It follows no symlink in any part of path. The caller
// attaches it with AttachIn; closing it without that frees it.
func CloneMount(path string, recursive bool, flags MountFlags) (*os.File, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	source, err := unix.Openat2(unix.AT_FDCWD, path, &how)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(source)
	return cloneMount(source, path, recursive, flags)
}

// cloneMount is CloneMount for an open file or directory.
func cloneMount(source int, path string, recursive bool, flags MountFlags) (*os.File, error) {
	open, attr := uint(unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC), uint(unix.AT_EMPTY_PATH)
	if recursive {
		open |= unix.AT_RECURSIVE
		attr |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(source, "", open)
	if err != nil {
		return nil, fmt.Errorf("copy mount of %s: %w", path, err)
	}
	set := unix.MountAttr{Propagation: unix.MS_PRIVATE}
	for bit, on := range map[uint64]bool{
		unix.MOUNT_ATTR_RDONLY: flags.ReadOnly, unix.MOUNT_ATTR_NOEXEC: flags.NoExec,
		unix.MOUNT_ATTR_NODEV: flags.NoDev, unix.MOUNT_ATTR_NOSUID: flags.NoSUID,
	} {
		if on {
			set.Attr_set |= bit
		}
	}
	if err := unix.MountSetattr(fd, "", attr, &set); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set flags of the mount of %s: %w", path, err)
	}
	top := unix.MountAttr{}
	if flags.ReadOnlyTop {
		top.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if flags.UserNS != nil {
		top.Attr_set |= unix.MOUNT_ATTR_IDMAP
		top.Userns_fd = uint64(flags.UserNS.Fd())
	}
	if top.Attr_set != 0 {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &top); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("set flags of the mount of %s itself: %w", path, err)
		}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// MountTmpfs mounts an empty file system in memory on the directory path. It holds at most inodes files
// and next to no data: it is for mount points.
func MountTmpfs(path string, inodes int) error {
	options := fmt.Sprintf("mode=0711,size=64k,nr_inodes=%d", inodes)
	if err := unix.Mount("husk", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", path, err)
	}
	return nil
}

// ShareMounts lets later mounts on and below the mount point path appear in copies of this mount
// namespace.
func ShareMounts(path string) error {
	if err := unix.Mount("", path, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts of %s shared: %w", path, err)
	}
	return nil
}

// Unmount takes what is mounted on path, and on mount points below it, out of the mount namespace, even
// while it is in use. It follows no symlink at the end of path.
func Unmount(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// OpenDir opens the directory path itself, not what a symlink in its last part leads to.
func OpenDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}
