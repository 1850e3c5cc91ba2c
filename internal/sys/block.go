package sys

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNotBlock is matched by OpenBlock where this machine has no block device of a number.
var ErrNotBlock = errors.New("no such block device")

// DeviceNumber takes the device number of stat(2) apart.
func DeviceNumber(number uint64) (major, minor int64) {
	return int64(unix.Major(number)), int64(unix.Minor(number))
}

// CopyFile returns another descriptor of an open file.
func CopyFile(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var copied int
	var failed error
	err = raw.Control(func(fd uintptr) { copied, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3) })
	if err = errors.Join(err, failed); err != nil {
		return nil, &os.PathError{Op: "copy descriptor of", Path: f.Name(), Err: err}
	}
	return os.NewFile(uintptr(copied), f.Name()), nil
}

// OpenBlock opens the block device of a number, for reading only where readOnly is set or the device is read-only, and
// tells which. It looks at the nodes that the kernel names or, where there are none in /dev, the caller. Nothing is opened but
// that device.
func OpenBlock(major, minor int64, readOnly bool, others ...string) (f *os.File, onlyRead bool, err error) {
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)
	uevent, err := os.Open(filepath.Join(dir, "uevent"))
	if err != nil {
		return nil, false, fmt.Errorf("block device %d:%d: %w", major, minor, ErrNotBlock)
	}
	defer uevent.Close()
	var nodes []string
	for lines := bufio.NewScanner(uevent); lines.Scan(); {
		if name, ok := strings.CutPrefix(lines.Text(), "DEVNAME="); ok {
			nodes = append(nodes, filepath.Join("/dev", name))
		}
	}
	if ro, err := os.ReadFile(filepath.Join(dir, "ro")); err == nil && strings.TrimSpace(string(ro)) == "1" {
		readOnly = true
	}
	f, err = openFirst(append(nodes, others...), unix.Mkdev(uint32(major), uint32(minor)), readOnly)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("block device %d:%d has no node in /dev: %w", major, minor, ErrNotBlock)
	}
	if err != nil {
		return nil, false, err
	}
	return f, readOnly, nil
}

// openFirst opens the first of nodes that exists.
func openFirst(nodes []string, number uint64, readOnly bool) (*os.File, error) {
	for _, node := range nodes {
		f, err := openBlockNode(node, number, readOnly)
		if !errors.Is(err, os.ErrNotExist) {
			return f, err
		}
	}
	return nil, os.ErrNotExist
}

// openBlockNode opens a block device's node. Of what may be there in its place to open alone can have effects, as it has of
// a watchdog or a tape: that is looked at and left alone.
func openBlockNode(node string, number uint64, readOnly bool) (*os.File, error) {
	held, err := os.OpenFile(node, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer held.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(held.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: node, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || uint64(st.Rdev) != number {
		return nil, fmt.Errorf("%s is another device", node)
	}
	flags := unix.O_RDWR
	if readOnly {
		flags = unix.O_RDONLY
	}
	for {
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", held.Fd()), flags|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), node), nil
		case !errors.Is(err, unix.EINTR):
			return nil, &os.PathError{Op: "open", Path: node, Err: err}
		}
	}
}

// MarkFile sets an extended attribute that only this machine's root can set and see, which Marked finds and UnmarkFile takes
// away. It tells whether the file had none yet.
func MarkFile(f *os.File, name string) (fresh bool, err error) {
	err = unix.Fsetxattr(int(f.Fd()), "trusted."+name, []byte("1"), unix.XATTR_CREATE)
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("mark %s: %w", f.Name(), err)
	}
	return true, nil
}

// UnmarkFile undoes MarkFile.
func UnmarkFile(f *os.File, name string) error {
	if err := unix.Fremovexattr(int(f.Fd()), "trusted."+name); err != nil {
		return fmt.Errorf("unmark %s: %w", f.Name(), err)
	}
	return nil
}

// Marked tells whether MarkFile was called for the file at path.
func Marked(path, name string) bool {
	n, err := unix.Getxattr(path, "trusted."+name, make([]byte, 1))
	return err == nil && n > 0
}
