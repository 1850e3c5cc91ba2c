//go:build !amd64

package kvm

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// createVM is KVM_CREATE_VM of linux/kvm.h.
const createVM = 0xae01

// loop creates a VM and runs nothing: KVM interprets whole guests only on x86.
func loop(device *os.File, _ time.Duration) (times, error) {
	vm, err := again(func() (uintptr, unix.Errno) {
		vm, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), createVM, 0)
		return vm, errno
	})
	if err != nil {
		return times{}, fmt.Errorf("create VM: %w", err)
	}
	return times{}, unix.Close(int(vm))
}
