package fdpass

import (
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
)

func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return conns[0], conns[1]
}

func TestFilesArriveUsable(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := Send(a, "token", w, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	token, files, err := Receive(b, 2)
	if err != nil {
		t.Fatal(err)
	}
	if token != "token" {
		t.Errorf("token = %q, want %q", token, "token")
	}
	io.WriteString(files[0], "one ")
	io.WriteString(files[1], "two")
	files[0].Close()
	files[1].Close()
	got, err := io.ReadAll(r)
	if err != nil || string(got) != "one two" {
		t.Errorf("read %q, %v through the received files, want %q", got, err, "one two")
	}
}

func TestWrongCountIsRefusedAndClosed(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := Send(a, "token", w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, _, err := Receive(b, 3); err == nil || !strings.Contains(err.Error(), "1 files, want 3") {
		t.Errorf("Receive = %v, want a message that names both counts", err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read = %v, want EOF: a refused message's file is still open", err)
	}
}

func TestBadTokens(t *testing.T) {
	a, _ := pair(t)
	for _, token := range []string{"", "two\nlines", strings.Repeat("x", MaxToken+1)} {
		if err := Send(a, token, os.Stdin); err == nil {
			t.Errorf("Send(%q) succeeded", token)
		}
	}
}
