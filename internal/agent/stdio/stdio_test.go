package stdio

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/sys"
)

// connected returns an IO with pipes, the process' ends of them and the host's ends of the streams.
func connected(t *testing.T) (p *IO, process [3]*os.File, host [3]net.Conn) {
	t.Helper()
	var ends [3]net.Conn
	for i := range ends {
		host[i], ends[i] = net.Pipe()
	}
	p = &IO{stdin: ends[0], stdout: ends[1], stderr: ends[2]}
	if err := p.plumb(); err != nil {
		t.Fatal(err)
	}
	for i, fd := range p.Files() { // as a child gets them
		own, err := syscall.Dup(int(fd))
		if err != nil {
			t.Fatal(err)
		}
		process[i] = os.NewFile(uintptr(own), "process")
		t.Cleanup(func() { process[i].Close() })
	}
	return p, process, host
}

// all reads a stream to its end.
func all(t *testing.T, c net.Conn) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second)) // fails when the other side is closed already
	text, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("after %d bytes: %v", len(text), err)
	}
	return string(text)
}

// TestDrain ends a process whose child holds the pipe: what was written comes, then the end.
func TestDrain(t *testing.T) {
	p, process, host := connected(t)
	text := strings.Repeat("0123456789", 60_000) // fits the pipe
	if _, err := process[1].WriteString(text); err != nil {
		t.Fatal(err)
	}
	p.Run()
	p.Finish() // process[1] stays open, as a child's
	if got := all(t, host[1]); got != text {
		t.Errorf("%d bytes came, want %d", len(got), len(text))
	}
	if got := all(t, host[2]); got != "" {
		t.Errorf("stderr %q", got)
	}
	if _, err := process[1].WriteString("late"); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a write after the end: %v, want EPIPE", err)
	}
	if _, err := host[0].Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("input after the end: %v", err)
	}
}

// TestDrainIsBounded has a child write for ever.
func TestDrainIsBounded(t *testing.T) {
	p, process, host := connected(t)
	go func() {
		junk := make([]byte, 4096)
		for {
			if _, err := process[1].Write(junk); err != nil {
				return
			}
		}
	}()
	p.Run()
	go func() {
		time.Sleep(20 * time.Millisecond)
		p.Finish()
	}()
	if got := all(t, host[1]); len(got) == 0 {
		t.Error("nothing came")
	}
}

func TestInput(t *testing.T) {
	p, process, host := connected(t)
	p.Run()
	go func() {
		_, _ = io.WriteString(host[0], "to the process")
		host[0].Close()
	}()
	text, err := io.ReadAll(process[0])
	if err != nil || string(text) != "to the process" {
		t.Errorf("%q, %v", text, err)
	}
	p.Finish()
}

// TestReaderGone closes a stream while the process writes nothing: the next write fails.
func TestReaderGone(t *testing.T) {
	p, process, host := connected(t)
	p.Run()
	host[2].Close()
	var err error
	for end := time.Now().Add(10 * time.Second); err == nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
		_, err = process[2].WriteString("x")
	}
	if !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write: %v, want EPIPE", err)
	}
	if _, err := process[1].WriteString("other"); err != nil {
		t.Errorf("the other stream: %v", err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(host[1], buf); err != nil || string(buf) != "other" {
		t.Errorf("the other stream: %q, %v", buf, err)
	}
	p.Finish()
}

// TestTerminal passes a terminal over a socket, as the container runner does.
func TestTerminal(t *testing.T) {
	console, err := ListenConsole(filepath.Join(t.TempDir(), "tty"))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	master, slave, err := sys.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	runner, err := net.Dial("unix", console.Path())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := runner.(*net.UnixConn).WriteMsgUnix([]byte("/dev/ptmx\x00"), syscall.UnixRights(int(master.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	runner.Close()
	master.Close()
	received, err := console.Master()
	if err != nil {
		t.Fatal(err)
	}
	host, end := net.Pipe()
	p := &IO{terminal: true, stdout: end, size: sys.Winsize{Rows: 24, Columns: 80}}
	if err := p.plumb(); err != nil {
		t.Fatal(err)
	}
	if err := p.Resize(1, 1); !errors.Is(err, ErrNoTerminal) {
		t.Errorf("resize of no terminal: %v", err)
	}
	if err := p.Attach(received); err != nil {
		t.Fatal(err)
	}
	if got, err := sys.GetWinsize(slave); err != nil || got != p.Size() {
		t.Errorf("window is %v, %v", got, err)
	}
	p.Run()
	if err := p.Resize(70000, 5); err != nil {
		t.Error(err)
	}
	if got, err := sys.GetWinsize(slave); err != nil || got != (sys.Winsize{Rows: 65535, Columns: 5}) {
		t.Errorf("window is %v, %v", got, err)
	}
	if _, err := slave.WriteString("last words\n"); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	p.Finish()
	if got := all(t, host); got != "last words\r\n" {
		t.Errorf("output %q", got)
	}
	if err := p.Resize(1, 1); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("resize after the end: %v", err)
	}
}

// TestConsoleRefuses gets messages without exactly one descriptor.
func TestConsoleRefuses(t *testing.T) {
	for name, rights := range map[string][]byte{"none": nil, "two": syscall.UnixRights(0, 1)} {
		console, err := ListenConsole(filepath.Join(t.TempDir(), "tty"))
		if err != nil {
			t.Fatal(err)
		}
		runner, err := net.Dial("unix", console.Path())
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := runner.(*net.UnixConn).WriteMsgUnix([]byte("x"), rights, nil); err != nil {
			t.Fatal(err)
		}
		if f, err := console.Master(); err == nil {
			t.Errorf("%s: got %v", name, f.Name())
		}
		runner.Close()
		console.Close()
	}
}

func TestAbort(t *testing.T) {
	p, process, host := connected(t)
	p.Abort()
	if got := all(t, host[1]) + all(t, host[2]); got != "" {
		t.Errorf("streams carried %q", got)
	}
	if _, err := process[1].Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write: %v, want EPIPE", err)
	}
}

// BenchmarkOutput carries output in the sizes that programs write.
func BenchmarkOutput(b *testing.B) {
	for _, size := range []int{100, 64 << 10} {
		b.Run(map[int]string{100: "100B", 64 << 10: "64KiB"}[size], func(b *testing.B) {
			kept, given, err := sys.NewPipe(false, pipeSize)
			if err != nil {
				b.Fatal(err)
			}
			fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			if err != nil {
				b.Fatal(err)
			}
			conn := func(fd int) net.Conn {
				f := os.NewFile(uintptr(fd), "stream")
				defer f.Close()
				c, err := net.FileConn(f)
				if err != nil {
					b.Fatal(err)
				}
				return c
			}
			ours, theirs := conn(fds[0]), conn(fds[1])
			go (&output{src: kept, dst: ours}).copy()
			go func() {
				block := bytes.Repeat([]byte("x"), size)
				for range b.N {
					if _, err := given.Write(block); err != nil {
						b.Error(err)
					}
				}
				given.Close()
			}()
			b.SetBytes(int64(size))
			n, err := io.Copy(io.Discard, theirs)
			if err != nil || n != int64(size)*int64(b.N) {
				b.Errorf("%d bytes, %v", n, err)
			}
		})
	}
}
