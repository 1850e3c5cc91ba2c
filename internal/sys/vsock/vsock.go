// Package vsock is the socket family between a host and its guests, vsock(7), as net.Conn and
// net.Listener.
package vsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Addr is a context, that is a machine, and a port there.
type Addr struct{ CID, Port uint32 }

// Network is "vsock".
func (a Addr) Network() string { return "vsock" }

// String is CID:port.
func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// Dial connects to a port of a guest, given by its context. A guest that does not run yet, or does not
// listen, is an error after at most two seconds.
func Dial(ctx context.Context, cid, port uint32) (net.Conn, error) {
	remote := Addr{CID: cid, Port: port}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open vsock: %w", err)
	}
	err = unix.Connect(fd, &unix.SockaddrVM{CID: cid, Port: port})
	f := os.NewFile(uintptr(fd), "vsock "+remote.String())
	if err == nil {
		return newConn(f, remote), nil
	}
	if !errors.Is(err, unix.EINPROGRESS) {
		f.Close()
		return nil, fmt.Errorf("connect to vsock %s: %w", remote, err)
	}
	if err := connected(ctx, f); err != nil {
		f.Close()
		return nil, fmt.Errorf("connect to vsock %s: %w", remote, err)
	}
	return newConn(f, remote), nil
}

// connected waits for the outcome of a connect in progress.
func connected(ctx context.Context, f *os.File) error {
	// A deadline in the past wakes the wait below.
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var outcome error
	err = raw.Write(func(fd uintptr) bool {
		var pending []unix.PollFd
		pending = append(pending, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
		if n, err := unix.Poll(pending, 0); n == 0 || err != nil {
			return false
		}
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			outcome = err
		} else if code != 0 {
			outcome = unix.Errno(code)
		}
		return true
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return outcome
}

// Conn is a connection. Its file methods give deadlines, and its errors are those of package net.
type Conn struct {
	*os.File
	remote Addr
}

func newConn(f *os.File, remote Addr) *Conn { return &Conn{File: f, remote: remote} }

// Read reads from the other side; io.EOF says that it closed.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.File.Read(p)
	return n, netError(err)
}

// Write writes to the other side.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.File.Write(p)
	return n, netError(err)
}

// CloseWrite tells the other side that nothing more comes.
func (c *Conn) CloseWrite() error {
	raw, err := c.File.SyscallConn()
	if err != nil {
		return netError(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.Shutdown(int(fd), unix.SHUT_WR) }); err != nil {
		return netError(err)
	}
	return failed
}

// LocalAddr is the address on this machine.
func (c *Conn) LocalAddr() net.Addr { return localAddr(c.File) }

// RemoteAddr is the address on the other machine.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// Listener accepts connections to one port.
type Listener struct {
	file   *os.File
	closed atomic.Bool
}

// Listen takes connections to a port of this machine, whatever its context.
func Listen(port uint32) (*Listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open vsock: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind vsock port %d: %w", port, err)
	}
	if err := unix.Listen(fd, 64); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	return &Listener{file: os.NewFile(uintptr(fd), fmt.Sprintf("vsock port %d", port))}, nil
}

// Accept waits for a connection.
func (l *Listener) Accept() (net.Conn, error) {
	raw, err := l.file.SyscallConn()
	if err != nil {
		return nil, netError(err)
	}
	var (
		conn   int
		peer   unix.Sockaddr
		failed error
	)
	err = raw.Read(func(fd uintptr) bool {
		conn, peer, failed = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		return !errors.Is(failed, unix.EAGAIN)
	})
	if l.closed.Load() {
		if err == nil && failed == nil {
			unix.Close(conn)
		}
		return nil, net.ErrClosed
	}
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("accept on %s: %w", l.file.Name(), err)
	}
	return newConn(os.NewFile(uintptr(conn), l.file.Name()), toAddr(peer)), nil
}

// Close ends a waiting Accept with net.ErrClosed.
func (l *Listener) Close() error {
	l.closed.Store(true)
	return netError(l.file.Close())
}

// Addr is the address that the listener is bound to.
func (l *Listener) Addr() net.Addr { return localAddr(l.file) }

func localAddr(f *os.File) Addr {
	raw, err := f.SyscallConn()
	if err != nil {
		return Addr{}
	}
	var addr Addr
	_ = raw.Control(func(fd uintptr) {
		if name, err := unix.Getsockname(int(fd)); err == nil {
			addr = toAddr(name)
		}
	})
	return addr
}

func toAddr(s unix.Sockaddr) Addr {
	vm, ok := s.(*unix.SockaddrVM)
	if !ok {
		return Addr{}
	}
	return Addr{CID: vm.CID, Port: vm.Port}
}

// netError makes a closed file look like a closed connection.
func netError(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}
