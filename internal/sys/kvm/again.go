package kvm

import "golang.org/x/sys/unix"

// interruptions is how many signals a call may come upon. Go sends its threads one in 10 ms at most, others may send more.
const interruptions = 1000

// again calls a request of KVM's until no signal cuts it short. KVM_CREATE_VM and its like wait for threads of the kernel's, and
// answer EINTR when a signal comes meanwhile (Documentation/virt/kvm/api.rst); they have done nothing then.
func again(request func() (uintptr, unix.Errno)) (uintptr, error) {
	for range interruptions {
		r, errno := request()
		switch errno {
		case 0:
			return r, nil
		case unix.EINTR:
		default:
			return r, errno
		}
	}
	return 0, unix.EINTR
}
