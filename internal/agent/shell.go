package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent/runner"
	"husk.dev/husk/internal/agent/stdio"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/sys"
)

const (
	// maxProgram bounds the shell's program, in bytes.
	maxProgram = 16 << 20
	// programWait bounds how long it may take to come.
	programWait = time.Minute
)

// shell runs programs of the guest itself, outside every container, for who looks after the guest. The
// guest's image has none: the host sends a static busybox.
type shell struct {
	agent *Agent
	procs *processes
	dir   string // of the program and the links to its applets

	mu     sync.Mutex
	loaded bool // the program is there; guarded by mu, which is held over the loading
}

func newShell(a *Agent) *shell {
	return &shell{agent: a, procs: newProcesses(), dir: filepath.Join(a.config.RunDir, "bin")}
}

// start starts a shell, or the program that the request names.
func (s *shell) start(ctx context.Context, r *agentv1.ShellRequest) (int, error) {
	if err := s.load(ctx, r.GetProgram()); err != nil {
		return 0, err
	}
	args := r.GetArgs()
	if len(args) == 0 {
		args = []string{"sh"}
	}
	path, err := s.look(args[0])
	if err != nil {
		return 0, err
	}
	streams, err := s.agent.streams.Open(ctx, r.GetStdio())
	if err != nil {
		return 0, err
	}
	var undo cleanup.Stack
	defer undo.Clean()
	undo.Add(func() error { streams.Abort(); return nil })
	if err := s.procs.reserve(r.GetExec()); err != nil {
		return 0, err
	}
	undo.Add(func() error { s.procs.remove(r.GetExec()); return nil })
	started, err := s.run(path, args, streams)
	if err != nil {
		return 0, err
	}
	undo.Release()
	p := &process{pid: started.PID, streams: streams}
	s.procs.set(r.GetExec(), p)
	go s.agent.follow("", r.GetExec(), s.procs, started, p, nil)
	return started.PID, nil
}

// run starts a program with a session of its own, and a terminal where the streams say so.
func (s *shell) run(path string, args []string, streams *stdio.IO) (runner.Process, error) {
	session := &syscall.SysProcAttr{Setsid: true}
	if streams.Terminal() {
		master, slave, err := sys.PollablePTY()
		if err != nil {
			return runner.Process{}, err
		}
		streams.SetFiles(slave)
		if err := streams.Attach(master); err != nil {
			return runner.Process{}, err
		}
		session.Setctty, session.Ctty = true, 0
	}
	pid, exited, err := s.agent.reaper.Start(path, args, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + s.dir + ":/usr/bin:/bin", "HOME=/", "TERM=xterm", "PS1=guest# "},
		Files: streams.Files(), Sys: session,
	})
	if err != nil {
		return runner.Process{}, err
	}
	streams.Run()
	return runner.Process{PID: pid, Exited: exited}, nil
}

// look finds a program by its name.
func (s *shell) look(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range []string{s.dir, "/usr/bin", "/bin"} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil && name != "" {
			return path, nil
		}
	}
	return "", fail(codes.NotFound, "exec %q: executable file not found in $PATH", name)
}

// load takes the shell's program from its stream, the first time.
func (s *shell) load(ctx context.Context, token uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if token != 0 {
		conn, err := s.agent.streams.Claim(ctx, token)
		if err != nil {
			return fmt.Errorf("receive shell: %w", err)
		}
		defer conn.Close()
		if !s.loaded {
			if err := conn.SetReadDeadline(time.Now().Add(programWait)); err != nil {
				return fmt.Errorf("receive shell: %w", err)
			}
			if err := s.install(ctx, conn); err != nil {
				return fmt.Errorf("install shell: %w", err)
			}
			s.loaded = true
		}
	}
	if !s.loaded {
		return fail(codes.FailedPrecondition, "the guest has no shell, and none was sent")
	}
	return nil
}

// install writes the program and has it link its applets.
func (s *shell) install(ctx context.Context, program io.Reader) error {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(s.dir, "busybox")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(program, maxProgram+1))
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	if n > maxProgram {
		return fail(codes.InvalidArgument, "program is larger than %d bytes", maxProgram)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	_, exited, err := s.agent.reaper.Start(path, []string{"busybox", "--install", "-s", s.dir}, &syscall.ProcAttr{
		Dir: "/", Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
	})
	if err != nil {
		return err
	}
	select {
	case status := <-exited:
		if status.Code != 0 {
			return fmt.Errorf("busybox --install failed with status %d", status.Code)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
