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
// tells which. It looks at the nodes that the kernel and the caller name; what it has opened is that device.
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
	err = fmt.Errorf("block device %d:%d has no node in /dev: %w", major, minor, ErrNotBlock)
	for _, node := range append(nodes, others...) {
		f, failed := openBlockNode(node, unix.Mkdev(uint32(major), uint32(minor)), readOnly)
		if failed == nil {
			return f, readOnly, nil
		}
		if !errors.Is(failed, os.ErrNotExist) {
			err = failed
		}
	}
	return nil, false, err
}

func openBlockNode(node string, number uint64, readOnly bool) (*os.File, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	// Not what it may be in place of a device: nothing there is waited for.
	f, err := os.OpenFile(node, flags|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && (st.Mode&unix.S_IFMT != unix.S_IFBLK || uint64(st.Rdev) != number) {
		err = fmt.Errorf("%s is another device", node)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
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
