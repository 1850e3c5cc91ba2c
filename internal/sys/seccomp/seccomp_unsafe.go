package seccomp

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of a listener (linux/seccomp.h).
const (
	ioctlReceive = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
	ioctlSend    = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
	ioctlAddFD   = 0x40182103 // SECCOMP_IOCTL_NOTIF_ADDFD

	flagContinue = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE
	flagSend     = 2 // SECCOMP_ADDFD_FLAG_SEND: the new descriptor is the call's result
)

// call is struct seccomp_notif.
type call struct {
	id   uint64
	pid  uint32
	_    uint32 // flags
	_    int32  // number of the call
	_    uint32 // instruction set
	_    uint64 // instruction pointer
	args [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// addFD is struct seccomp_notif_addfd.
type addFD struct {
	id       uint64
	flags    uint32
	source   uint32
	target   uint32
	newFlags uint32
}

// install loads a filter with a listener for the calling thread and returns the listener.
func install(filter []unix.SockFilter) (int, error) {
	// Without privilege the kernel wants the promise that no program gains any; with it the promise is
	// as welcome.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}

func receive(listener *os.File) (call, error) {
	var c call // the kernel wants it zeroed
	return c, ioctl(listener, ioctlReceive, unsafe.Pointer(&c))
}

// letThrough has the kernel execute the call as if nobody had looked.
func letThrough(listener *os.File, c call) error {
	r := response{id: c.id, flags: flagContinue}
	return ioctl(listener, ioctlSend, unsafe.Pointer(&r))
}

// answerFile makes a copy of file the result of the call.
func answerFile(listener *os.File, c call, file *os.File) error {
	a := addFD{id: c.id, flags: flagSend, source: uint32(file.Fd()), newFlags: unix.O_CLOEXEC}
	return ioctl(listener, ioctlAddFD, unsafe.Pointer(&a))
}

func ioctl(f *os.File, request uintptr, argument unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(argument))
	if errno != 0 {
		return errno
	}
	return nil
}
