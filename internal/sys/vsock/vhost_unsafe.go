package vsock

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// VhostDevice is where a monitor gets the host's end of a guest's vsock.
const VhostDevice = "/dev/vhost-vsock"

// setGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h.
const setGuestCID = 0x4008af60

// cidTries bounds the search for a free context: each try hits a taken one with a chance of some 1 in a million.
const cidTries = 64

// OpenVhost opens the host's end of a new guest's vsock, with a context of its own that stays taken until
// the file is closed.
func OpenVhost() (*os.File, uint32, error) {
	f, err := os.OpenFile(VhostDevice, os.O_RDWR, 0)
	if err != nil {
		return nil, 0, err
	}
	for range cidTries {
		// 0 to 2 are the hypervisor, the machine itself and the host; the last one means any.
		cid := 3 + rand.Uint64N(1<<32-1-3)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), setGuestCID, uintptr(unsafe.Pointer(&cid)))
		if errno == 0 {
			return f, uint32(cid), nil
		}
		if !errors.Is(errno, unix.EADDRINUSE) {
			f.Close()
			return nil, 0, fmt.Errorf("set guest context of %s: %w", VhostDevice, errno)
		}
	}
	f.Close()
	return nil, 0, fmt.Errorf("set guest context of %s: no free one in %d tries", VhostDevice, cidTries)
}
