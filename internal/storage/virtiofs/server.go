// Package virtiofs runs the file service of a VM: one virtiofsd process that shows one directory to it.
package virtiofs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"husk.dev/husk/internal/child"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/sys"
)

const (
	// stderrLimit is how much of what virtiofsd last said is kept, in bytes.
	stderrLimit = 4 << 10
)

// environment is all that virtiofsd gets of ours.
var environment = []string{"LC_ALL=C"}

// Options describe a server.
type Options struct {
	Binary string // of virtiofsd; empty: Find chooses
	Dir    string // what the guest sees, absolute
	Socket string // unix socket to make, absolute, in a private directory
	// UID and GID are the monitor's, who alone may connect.
	UID, GID uint32
}

// Server is a running virtiofsd.
type Server struct {
	socket string
	cmd    *exec.Cmd
	stderr *tail
	done   chan struct{}

	mu      sync.Mutex
	stopped bool  // by Stop; guarded by mu
	err     error // guarded by mu until done is closed
}

// Start starts a server. Its socket listens from the beginning, so the monitor can connect at once. The
// server dies with this process, however that ends, and ends by itself when the monitor hangs up. ctx
// bounds the start.
func Start(ctx context.Context, o Options) (*Server, error) {
	s, err := start(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start file service: %w", err)
	}
	return s, nil
}

func start(ctx context.Context, o Options) (_ *Server, err error) {
	binary, err := Find(o.Binary)
	if err != nil {
		return nil, err
	}
	kind, _, err := Detect(ctx, binary)
	if err != nil {
		return nil, err
	}
	args, err := argv(kind, o.Dir, fileLimit())
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(o.Dir); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is not a directory", o.Dir)
	}
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Clean())
		}
	}()
	listener, err := listen(o)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	undo.Add(func() error { return os.Remove(o.Socket) })
	s := &Server{socket: o.Socket, stderr: &tail{}, done: make(chan struct{})}
	s.cmd = command(binary, args, listener, s.stderr)
	if err := child.Start(s.cmd); err != nil {
		return nil, err
	}
	go s.wait()
	undo.Release()
	return s, nil
}

// command makes virtiofsd the init of a PID namespace. It forks the part that serves into namespaces of
// its own; the kernel kills that with its init, which is tied to this process.
func command(binary string, args []string, listener *os.File, stderr *tail) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Env = environment
	cmd.Dir = "/"
	cmd.Stderr = stderr
	cmd.ExtraFiles = []*os.File{listener} // listenFD
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true, // what a terminal sends to our group is not meant for it
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	return cmd
}

// fileLimit is openFiles, or this process' hard limit where that is lower; 0, to leave it alone, where it
// cannot be read.
func fileLimit() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int(min(limit.Max, openFiles))
}

// listen makes the socket. It uses no net.Listener, whose descriptors do not block: virtiofsd waits in
// accept(2) for the monitor.
func listen(o Options) (*os.File, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), o.Socket)
	err = sys.SocketAt(o.Socket, func(short string) error { return syscall.Bind(fd, &syscall.SockaddrUnix{Name: short}) })
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("make socket %s: %w", o.Socket, err)
	}
	err = os.Chmod(o.Socket, 0o600)
	if err == nil && (o.UID != 0 || o.GID != 0) {
		err = os.Chown(o.Socket, int(o.UID), int(o.GID))
	}
	if err == nil {
		err = syscall.Listen(fd, 1)
	}
	if err != nil {
		file.Close()
		os.Remove(o.Socket)
		return nil, fmt.Errorf("make socket %s: %w", o.Socket, err)
	}
	return file, nil
}

// wait reaps the process and keeps what it had to say.
func (s *Server) wait() {
	err := s.cmd.Wait()
	s.mu.Lock()
	switch {
	case s.stopped || err == nil: // err is nil when the monitor hung up
	case s.stderr.lastLine() != "":
		s.err = fmt.Errorf("file service ended: %w: %s", err, s.stderr.lastLine())
	default:
		s.err = fmt.Errorf("file service ended: %w", err)
	}
	s.mu.Unlock()
	close(s.done)
}

// Socket is the path of the unix socket for the monitor.
func (s *Server) Socket() string { return s.socket }

// PID is the server's first process on the host; the one that serves is its child.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Done is closed when the server is gone, for whatever reason.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err says why the server is gone: nil after Stop, and after its monitor hung up. Valid once Done is
// closed.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Stop ends the server at once and removes its socket. What the guest has written is in the host's page
// cache by then, so nothing is lost. It is idempotent; ctx bounds the wait, not the effect.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	_ = s.cmd.Process.Kill() // fails when it has ended already, and never hits another process
	select {
	case <-s.done:
	case <-ctx.Done():
		return fmt.Errorf("stop file service: %w", ctx.Err())
	}
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("stop file service: %w", err)
	}
	return nil
}

// tail keeps the last stderrLimit bytes of what is written to it.
type tail struct {
	mu   sync.Mutex
	kept []byte // guarded by mu
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	t.kept = append(t.kept, p[max(0, n-stderrLimit):]...)
	if drop := len(t.kept) - stderrLimit; drop > 0 {
		t.kept = append(t.kept[:0], t.kept[drop:]...)
	}
	return n, nil
}

// lastLine is the last line that is not blank, fit for a message.
func (t *tail) lastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := strings.Split(strings.TrimSpace(string(t.kept)), "\n")
	return strings.ToValidUTF8(strings.TrimSpace(lines[len(lines)-1]), "?")
}
