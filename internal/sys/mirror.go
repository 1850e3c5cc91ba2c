package sys

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// CloneBelow is CloneMount for name below the open directory dir, which no part of name leads out of, without what is
// mounted further below. id is the copy's, for UnmountBelow.
func CloneBelow(dir *os.File, name string, flags MountFlags) (copied *os.File, id uint64, err error) {
	source, err := openBelow(int(dir.Fd()), name)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(source)
	if copied, err = cloneMount(source, name, false, flags); err != nil {
		return nil, 0, err
	}
	if id, err = mountID(int(copied.Fd())); err != nil {
		copied.Close()
		return nil, 0, err
	}
	return copied, id, nil
}

// AttachBelow puts a detached mount over name below the directory top, in this thread's mount namespace. No part of name
// leads out of top, and neither follows symlinks.
func AttachBelow(mount *os.File, top, name string) error {
	point, err := openAt(top, name)
	if err != nil {
		return err
	}
	defer unix.Close(point)
	return attach(mount, point, name)
}

// attach puts a detached mount over the open file or directory point.
func attach(mount *os.File, point int, name string) error {
	err := unix.MoveMount(int(mount.Fd()), "", point, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("mount on %s: %w", name, err)
	}
	return nil
}

// AttachIn is AttachBelow for an open directory.
func AttachIn(mount, dir *os.File, name string) error {
	point, err := openBelow(int(dir.Fd()), name)
	if err != nil {
		return err
	}
	defer unix.Close(point)
	return attach(mount, point, name)
}

// ofMount has statx(2) tell of the mount of an open file and ask no file system, which may not answer.
const ofMount = unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC

// maxStacked bounds the mounts on one mount point.
const maxStacked = 16

// UnmountIn takes away all that is mounted on name below the open directory dir, even while it is in use. Where nothing is, it
// does nothing.
func UnmountIn(dir *os.File, name string) error {
	for range maxStacked {
		if more, err := unmountOne(dir, name); err != nil || !more {
			return err
		}
	}
	return fmt.Errorf("unmount %s: there are more than %d mounts on it", name, maxStacked)
}

func unmountOne(dir *os.File, name string) (more bool, err error) {
	point, err := openBelow(int(dir.Fd()), name)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(point)
	var st unix.Statx_t
	if err := unix.Statx(point, "", ofMount, 0, &st); err != nil {
		return false, fmt.Errorf("look at mount: %w", err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, nil
	}
	return true, detach(point, name)
}

// UnmountBelow undoes AttachBelow, wherever below top the mount has got to: whoever may rename a directory above a mount point
// takes the mount along. A mount that is not there any more is no error.
func UnmountBelow(top, name string, id uint64) error {
	found, err := unmountIf(top, name, id)
	if found || err != nil {
		return err
	}
	table, err := MountTable()
	if err != nil {
		return err
	}
	for _, m := range table {
		now, below := strings.CutPrefix(m.Path, strings.TrimSuffix(top, "/")+"/")
		if !below || now == name {
			continue
		}
		if found, err := unmountIf(top, now, id); found || err != nil {
			return err
		}
	}
	return nil
}

// unmountIf unmounts what is mounted on name below top where it is the mount id.
func unmountIf(top, name string, id uint64) (found bool, err error) {
	point, err := openAt(top, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(point)
	if now, err := mountID(point); err != nil || now != id {
		return false, err
	}
	return true, detach(point, name)
}

// detach unmounts the mount whose root is open as point.
func detach(point int, name string) error {
	if err := unix.Unmount(fmt.Sprintf("/proc/thread-self/fd/%d", point), unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", name, err)
	}
	return nil
}

// openAt opens name below the directory top of this thread's mount namespace.
func openAt(top, name string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_DIRECTORY, Resolve: unix.RESOLVE_NO_SYMLINKS}
	dir, err := unix.Openat2(unix.AT_FDCWD, top, &how)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: top, Err: err}
	}
	defer unix.Close(dir)
	return openBelow(dir, name)
}

func openBelow(dir int, name string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(dir, name, &how)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return fd, nil
}

// mountID is the id of the mount that an open file is on (statx(2)): from Linux 6.8 on one that no other mount ever gets, before
// that one that later mounts may get.
func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", ofMount, unix.STATX_MNT_ID_UNIQUE, &st)
	if err == nil && st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		err = unix.Statx(fd, "", ofMount, unix.STATX_MNT_ID, &st)
	}
	if err != nil {
		return 0, fmt.Errorf("look at mount: %w", err)
	}
	return st.Mnt_id, nil
}
