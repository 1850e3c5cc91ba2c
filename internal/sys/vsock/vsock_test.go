package vsock

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func listen(t *testing.T) *Listener {
	t.Helper()
	l, err := Listen(unix.VMADDR_PORT_ANY)
	if err != nil {
		t.Skipf("no vsock here: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestCloseEndsAccept(t *testing.T) {
	l := listen(t)
	failed := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		failed <- err
	}()
	time.Sleep(20 * time.Millisecond)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-failed:
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v, want net.ErrClosed", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Accept still waits after Close")
	}
}

func TestDialNobodyFails(t *testing.T) {
	listen(t)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if c, err := Dial(ctx, 0xfffffff0, 1024); err == nil {
		c.Close()
		t.Fatal("connected to a guest that does not exist")
	}
}

func TestLoopback(t *testing.T) {
	l := listen(t)
	port := l.Addr().(Addr).Port
	c, err := Dial(t.Context(), unix.VMADDR_CID_LOCAL, port)
	if err != nil {
		t.Skipf("no loopback in vsock here: %v", err)
	}
	defer c.Close()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := c.(*Conn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(peer); err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestConnOverASocketPair(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a := newConn(os.NewFile(uintptr(fds[0]), "a"), Addr{CID: 3, Port: 4})
	b := newConn(os.NewFile(uintptr(fds[1]), "b"), Addr{})
	defer b.Close()
	if a.RemoteAddr().String() != "3:4" {
		t.Errorf("remote address %s", a.RemoteAddr())
	}
	_ = a.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read past the deadline: %v", err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read after the other side's CloseWrite: %v, want EOF", err)
	}
	a.Close()
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close: %v, want net.ErrClosed", err)
	}
}

func TestOpenVhost(t *testing.T) {
	f, cid, err := OpenVhost()
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if cid < 3 || cid == 1<<32-1 {
		t.Errorf("context %d is reserved", cid)
	}
}
