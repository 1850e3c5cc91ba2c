package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxLinks bounds the symlinks that the end of a path leads through, as the kernel does (path_resolution(7)).
	maxLinks = 40
	// maxLookups bounds how often a path is looked up whose directories move meanwhile (openat2(2), EAGAIN).
	maxLookups = 128
)

// Spot is a name in an open directory, whether anything has that name or not.
type Spot struct {
	Dir  *os.Root
	Name string      // a single name; "." where it is the directory itself
	Info fs.FileInfo // of lstat(2); nil: nothing has that name
}

// Close closes the directory.
func (s *Spot) Close() error { return s.Dir.Close() }

// FindSpot finds where a path leads below root, an open directory, which neither ".." nor a symlink leads out of: an
// absolute one begins there. Magic links (proc(5)) lead nowhere. With follow a symlink that is the path's last element is
// followed, to a name that may not exist. A directory that is missing on the way is an error that matches fs.ErrNotExist.
func FindSpot(root *os.File, name string, follow bool) (*Spot, error) {
	given := name
	for range maxLinks {
		parent, base := path.Split(strings.TrimRight(name, "/"))
		if base == "" || base == "." || base == ".." {
			return directorySpot(root, name)
		}
		dir, err := rootIn(root, parent)
		if err != nil {
			return nil, err
		}
		info, err := dir.Lstat(base)
		if err == nil && info.Mode()&fs.ModeSymlink != 0 && follow {
			var link string
			if link, err = dir.Readlink(base); err == nil {
				dir.Close()
				if name = link; !path.IsAbs(link) {
					name = parent + link
				}
				continue
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			dir.Close()
			return nil, err
		}
		return &Spot{Dir: dir, Name: base, Info: info}, nil
	}
	return nil, &os.PathError{Op: "open", Path: given, Err: syscall.ELOOP}
}

func directorySpot(root *os.File, name string) (*Spot, error) {
	dir, err := rootIn(root, name)
	if err != nil {
		return nil, err
	}
	info, err := dir.Lstat(".")
	if err != nil {
		dir.Close()
		return nil, err
	}
	return &Spot{Dir: dir, Name: ".", Info: info}, nil
}

// rootIn opens the directory name below root.
func rootIn(root *os.File, name string) (*os.Root, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(int(root.Fd()), name, &how)
	for i := 0; i < maxLookups && (err == unix.EAGAIN || err == unix.EINTR); i++ {
		fd, err = unix.Openat2(int(root.Fd()), name, &how)
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	// The directory is opened as what is open already: its name may mean another one by now.
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
}

// MountsRoot opens the root directory of a mount namespace, which path names. What is opened below it is that namespace's.
func MountsRoot(path string) (root *os.File, err error) {
	err = InMountNamespace(path, func() error {
		root, err = OpenDir("/")
		return err
	})
	return root, err
}

// kernelFiles are the file systems whose files are none, but the kernel's words: their magic numbers (statfs(2)).
var kernelFiles = map[int64]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true,
	unix.DEVPTS_SUPER_MAGIC: true, unix.SECURITYFS_MAGIC: true, unix.DEBUGFS_MAGIC: true, unix.TRACEFS_MAGIC: true,
	unix.BPF_FS_MAGIC: true, unix.SELINUX_MAGIC: true, unix.PSTOREFS_MAGIC: true, unix.EFIVARFS_MAGIC: true,
	unix.BINFMTFS_MAGIC: true, mqueueMagic: true, configfsMagic: true,
}

// Magic numbers that golang.org/x/sys/unix lacks: ipc/mqueue.c and fs/configfs/mount.c of Linux.
const (
	mqueueMagic   = 0x19800202
	configfsMagic = 0x62656570
)

// OfKernel tells whether an open file or directory is on a file system that only shows what the kernel says, as proc(5) does.
func OfKernel(f *os.File) (bool, error) {
	var info unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &info); err != nil {
		return false, &os.PathError{Op: "statfs", Path: f.Name(), Err: err}
	}
	return kernelFiles[int64(uint32(info.Type))], nil
}

// SetModified sets when what name stands for in an open directory was changed last, be it a symlink.
func SetModified(dir *os.File, name string, modified time.Time) error {
	at, err := unix.TimeToTimespec(modified)
	if err == nil {
		err = unix.UtimesNanoAt(int(dir.Fd()), name, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, at}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return &os.PathError{Op: "set time of", Path: name, Err: err}
	}
	return nil
}

// MakeNode makes a fifo or a device, by mode and number as mknod(2) has them, in an open directory.
func MakeNode(dir *os.File, name string, mode uint32, major, minor int64) error {
	if err := unix.Mknodat(int(dir.Fd()), name, mode, int(unix.Mkdev(uint32(major), uint32(minor)))); err != nil {
		return &os.PathError{Op: "make", Path: name, Err: err}
	}
	return nil
}

// OpenUnnamed makes a file without a name in an open directory, which goes with the last descriptor of it unless NameFile gives
// it one. Many file systems have no such files: the error then matches errors.ErrUnsupported, or is another one.
func OpenUnnamed(dir *os.File) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "make file in", Path: dir.Name(), Err: err}
	}
	return os.NewFile(uintptr(fd), "unnamed"), nil
}

// NameFile gives what OpenUnnamed has made a name, which nothing else may have.
func NameFile(f, dir *os.File, name string) error {
	err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), int(dir.Fd()), name, unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return &os.PathError{Op: "name", Path: name, Err: err}
	}
	return nil
}
