// Package seccomp answers system calls of a child process in its place (seccomp_unotify(2)).
package seccomp

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxPath bounds how much of a path in the child's memory is read, in bytes.
	maxPath = 256
	// Offsets in struct seccomp_data.
	offsetNumber, offsetArch, offsetFlags = 0, 4, 16 + 8*2
)

// archs are the numbers that the kernel names instruction sets by (AUDIT_ARCH_*, linux/audit.h).
var archs = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// Opener answers an open of one path, for reading and writing and with no further flag (openat(2)), with a
// file of ours, which may be open for reading only. Every other call it lets through.
type Opener struct {
	path string
	file *os.File

	mu       sync.Mutex
	listener *os.File // guarded by mu: nil before Install
}

// NewOpener returns an opener that answers opens of path with file. It does not own the file, which must
// stay open as long as the child may ask for it.
func NewOpener(path string, file *os.File) *Opener { return &Opener{path: path, file: file} }

// Install puts the calling thread, and with it every process that it starts from now on, under the opener.
// The goroutine must be locked to its thread, and never give that back. It cannot be taken away again.
func (o *Opener) Install() error {
	arch, known := archs[runtime.GOARCH]
	if !known {
		return fmt.Errorf("install seccomp filter: instruction set %s is not known", runtime.GOARCH)
	}
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	unless := func(value uint32, skip uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: skip}
	}
	answer := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	filter := []unix.SockFilter{
		load(offsetArch), unless(arch, 5),
		load(offsetNumber), unless(unix.SYS_OPENAT, 3),
		load(offsetFlags), unless(unix.O_RDWR, 1),
		answer(unix.SECCOMP_RET_USER_NOTIF),
		answer(unix.SECCOMP_RET_ALLOW),
	}
	fd, err := install(filter)
	if err != nil {
		return fmt.Errorf("install seccomp filter: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.listener = os.NewFile(uintptr(fd), "seccomp")
	return nil
}

// Serve answers until no process is left under the filter. It must run, on another thread, before the first
// child opens anything.
func (o *Opener) Serve() error {
	o.mu.Lock()
	listener := o.listener
	o.mu.Unlock()
	if listener == nil {
		return errors.New("serve seccomp filter: it is not installed")
	}
	defer listener.Close()
	for {
		if gone, err := waitCall(listener); err != nil || gone {
			return err
		}
		call, err := receive(listener)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
			continue // the caller is gone
		}
		if err != nil {
			return fmt.Errorf("receive system call: %w", err)
		}
		if o.asked(call) {
			err = answerFile(listener, call, o.file)
		} else {
			err = letThrough(listener, call)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("answer system call: %w", err)
		}
	}
}

// waitCall waits for the next call. It says gone when no process is left that could make one.
func waitCall(listener *os.File) (gone bool, err error) {
	fds := []unix.PollFd{{Fd: int32(listener.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("wait for system call: %w", err)
		}
		return fds[0].Revents&unix.POLLIN == 0, nil
	}
}

// asked tells whether a call opens the path. A path that cannot be read is not ours.
func (o *Opener) asked(c call) bool {
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", c.pid))
	if err != nil {
		return false
	}
	defer memory.Close()
	text := make([]byte, maxPath)
	n, _ := memory.ReadAt(text, int64(c.args[1])) // short at the end of what is mapped
	path, _, ended := bytes.Cut(text[:n], []byte{0})
	return ended && string(path) == o.path
}
