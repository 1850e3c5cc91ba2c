package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Loopback is a TCP connection to this machine itself. It is made without package net's dialer, which would bring a
// resolver of names into every program that has it.
type Loopback struct{ *os.File }

// DialLoopback connects to a port of the loopback's IPv4 address, or where nothing listens there of its IPv6 address.
func DialLoopback(port uint16) (Loopback, error) {
	four := &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}}
	six := &unix.SockaddrInet6{Port: int(port), Addr: [16]byte{15: 1}}
	conn, err := dial(unix.AF_INET, four)
	if err != nil {
		if other, err := dial(unix.AF_INET6, six); err == nil {
			return other, nil
		}
		return Loopback{}, fmt.Errorf("connect to port %d: %w", port, err)
	}
	return conn, nil
}

func dial(family int, to unix.Sockaddr) (Loopback, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Loopback{}, err
	}
	if err := unix.Connect(fd, to); err != nil { // answered at once: no packet leaves the machine
		unix.Close(fd)
		return Loopback{}, err
	}
	file, err := Pollable(fd, "connection")
	return Loopback{file}, err
}

// CloseWrite ends what this side sends.
func (l Loopback) CloseWrite() error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = unix.Shutdown(int(fd), unix.SHUT_WR) }); err != nil {
		return err
	}
	return inner
}
