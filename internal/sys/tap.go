package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// OpenTap makes a tap in the network namespace of the calling thread and returns it as one open file a
// queue. Packets begin with a struct virtio_net_hdr (virtio's specification, 5.1.6). The tap lives as long as
// any of the files is open. A name that is taken is an error that matches unix.EBUSY.
func OpenTap(name string, queues int) ([]*os.File, error) {
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	var files []*os.File
	for i := range queues {
		if i > 0 {
			flags &^= unix.IFF_TUN_EXCL
		}
		file, err := openQueue(name, flags)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, fmt.Errorf("make tap %s: %w", name, err)
		}
		files = append(files, file)
	}
	return files, nil
}

func openQueue(name string, flags uint16) (*os.File, error) {
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: device, Err: err}
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("TUNSETIFF", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
