package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/sys/vsock"
	"husk.dev/husk/internal/vmm"
)

// pmemUnit is what the size of a virtio-pmem disk must be a multiple of, in bytes.
const pmemUnit = 2 << 20

// resources are the open files of a VM that is about to start: what QEMU inherits, and our ends of the
// sockets to it.
type resources struct {
	inherit []*os.File // QEMU's descriptors from 3 on
	qmp     net.Conn
	agent   net.Conn // nil where the channel is a vsock
	ram     *os.File // guest RAM that must outlive the start: to be saved, or lent to QEMU
	undo    cleanup.Stack
}

// give lets QEMU inherit f, which is closed here once QEMU has it, and returns its number there.
func (r *resources) give(f *os.File) int {
	r.inherit = append(r.inherit, f)
	return 2 + len(r.inherit)
}

// given closes what QEMU has inherited.
func (r *resources) given() {
	for _, f := range r.inherit {
		f.Close()
	}
	r.inherit = nil
}

// close frees everything: the VM did not start.
func (r *resources) close() {
	r.given()
	_ = r.undo.Clean() // closing sockets that nobody uses any more
}

// open opens all files of s and fills in their numbers.
func (r *resources) open(ctx context.Context, s vmm.Spec, f *facts) error {
	if err := r.start(s, f); err != nil {
		return err
	}
	var err error
	for _, d := range s.Disks {
		fact, err := r.disk(s, d)
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.Serial, err)
		}
		f.disks = append(f.disks, fact)
	}
	for _, share := range s.Shares {
		fd, err := r.share(ctx, share)
		if err != nil {
			return fmt.Errorf("share %s: connect to its file service: %w", share.Tag, err)
		}
		f.shares = append(f.shares, fd)
	}
	for _, nic := range s.NICs {
		f.nics = append(f.nics, r.nic(nic))
	}
	if r.qmp, f.qmp, err = r.socket("qmp"); err != nil {
		return err
	}
	return r.channel(f)
}

// start opens what the guest starts from: a kernel, or a saved VM.
func (r *resources) start(s vmm.Spec, f *facts) error {
	if s.From != nil {
		return r.snapshot(s, f)
	}
	var err error
	if f.kernel, err = r.image(s, "kernel", s.Kernel); err != nil {
		return err
	}
	if s.Initrd != "" {
		if f.initrd, err = r.image(s, "initrd", s.Initrd); err != nil {
			return err
		}
	}
	if s.Savable {
		return r.savable(s, f)
	}
	return nil
}

// channel makes the way to the agent: a vsock where the host has one, else a serial port.
func (r *resources) channel(f *facts) error {
	vhost, cid, err := vsock.OpenVhost()
	if err == nil {
		f.vhost, f.cid = r.give(vhost), cid
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) && !errors.Is(err, syscall.ENODEV) && !errors.Is(err, syscall.ENXIO) {
		return err
	}
	r.agent, f.agent, err = r.socket("agent")
	return err
}

func (r *resources) image(s vmm.Spec, what, path string) (int, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", what, err)
	}
	fd := r.give(f)
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", what, err)
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("open %s: %s is not a regular file", what, path)
	}
	return fd, reopenable(s, info, path, 4)
}

func (r *resources) disk(s vmm.Spec, d vmm.Disk) (diskFact, error) {
	f, info, size, err := openDisk(d)
	if err != nil {
		return diskFact{}, err
	}
	fact := diskFact{fd: r.give(f), size: size, device: info.Mode()&os.ModeDevice != 0}
	if !d.Pmem {
		return fact, nil
	}
	if size%pmemUnit != 0 {
		return diskFact{}, fmt.Errorf("%s of %d bytes: virtio-pmem needs a multiple of 2 MiB", f.Name(), size)
	}
	right := os.FileMode(6)
	if d.ReadOnly {
		right = 4
	}
	return fact, reopenable(s, info, f.Name(), right)
}

// openDisk opens what is behind a disk, or copies the descriptor that it comes with. The caller closes the file.
func openDisk(d vmm.Disk) (f *os.File, info os.FileInfo, size int64, err error) {
	if d.File != nil {
		f, err = sys.CopyFile(d.File)
	} else {
		flags := os.O_RDWR
		if d.ReadOnly {
			flags = os.O_RDONLY
		}
		// A pipe must not hold us up before we see that it is one.
		f, err = os.OpenFile(d.Path, flags|syscall.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, nil, 0, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if info, err = f.Stat(); err != nil {
		return nil, nil, 0, err
	}
	if kind := info.Mode().Type(); kind != 0 && kind != os.ModeDevice {
		return nil, nil, 0, fmt.Errorf("%s is neither a regular file nor a block device", f.Name())
	}
	if size, err = f.Seek(0, io.SeekEnd); err != nil {
		return nil, nil, 0, fmt.Errorf("find the size of %s: %w", f.Name(), err)
	}
	if size == 0 {
		return nil, nil, 0, fmt.Errorf("%s is empty", f.Name())
	}
	return f, info, size, nil
}

// reopenable says whether the user that QEMU runs as may open a file again by its descriptor, which
// QEMU does with kernels and memory. It asks for less than QEMU may be denied: access lists are not seen.
func reopenable(s vmm.Spec, info os.FileInfo, path string, right os.FileMode) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if s.UID == 0 || !ok {
		return nil
	}
	mode := info.Mode().Perm()
	switch {
	case stat.Uid == s.UID:
		mode >>= 6
	case s.GID != 0 && stat.Gid == s.GID:
		mode >>= 3
	}
	if mode&right != right {
		return fmt.Errorf("%s: user %d, which QEMU runs as, may not open it (mode %v)", path, s.UID, info.Mode())
	}
	return nil
}

func (r *resources) share(ctx context.Context, share vmm.Share) (int, error) {
	var d net.Dialer
	var conn net.Conn
	err := sys.SocketAt(share.Socket, func(short string) (err error) {
		conn, err = d.DialContext(ctx, "unix", short)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		return 0, err
	}
	return r.give(f), nil
}

// socket makes a socket pair and returns our end and the number of QEMU's.
func (r *resources) socket(name string) (net.Conn, int, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("make %s socket: %w", name, err)
	}
	theirs := r.give(os.NewFile(uintptr(fds[1]), name))
	ours := os.NewFile(uintptr(fds[0]), name)
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, 0, fmt.Errorf("make %s socket: %w", name, err)
	}
	r.undo.Add(conn.Close)
	return conn, theirs, nil
}
