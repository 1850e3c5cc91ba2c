package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/fdpass"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

// lost is the exit code of a container whose VM died: 128 + SIGKILL.
const lost = 137

// attendGo is the descriptor on which attend hears that the process it stands for exists.
const attendGo = 3

// attendCommand is the process that stands for one of a container on the host: engines wait for it, send
// it signals, and read its exit code.
func (a *App) attendCommand() *cobra.Command {
	var token, execID string
	var terminal bool
	cmd := &cobra.Command{
		Use: "attend ID", Short: "Stand for a container's process on the host (internal)", Hidden: true,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.open(args[0])
			if err != nil {
				return err
			}
			if execID == "" {
				if err := a.standIn(dir); err != nil {
					return err
				}
			}
			// This thread may see the container's files and not the host's any more.
			done := make(chan error, 1)
			go func() { done <- a.attend(dir, token, execID, terminal) }()
			return <-done
		},
	}
	cmd.Flags().StringVar(&token, "token", "", "")
	cmd.Flags().StringVar(&execID, "exec", "", "")
	cmd.Flags().BoolVar(&terminal, "terminal", false, "")
	return cmd
}

// attend passes stdio on and follows the process until it has exited.
func (a *App) attend(dir *state.Dir, token, execID string, terminal bool) error {
	conn, err := control.SendStdio(dir.Path(""), token, [3]*os.File{os.Stdin, os.Stdout, os.Stderr})
	if errors.Is(err, control.ErrGone) {
		return &exitError{code: exitFailed} // as below: who started us tells what became of the owner
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	signals := catch()
	gate := os.NewFile(attendGo, "go")
	if n, err := gate.Read(make([]byte, 1)); n != 1 || err != nil {
		return &exitError{code: exitFailed} // its creation failed, which is told elsewhere
	}
	gate.Close()
	s := &session{app: a, dir: dir, exec: execID, signals: signals}
	if terminal {
		s.tty = os.Stdin
	}
	code, err := s.follow(context.Background())
	if err != nil {
		return err
	}
	return &exitError{code: code}
}

// catch collects the signals that are handed on to the container.
func catch() chan os.Signal {
	signals := make(chan os.Signal, 32)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1,
		syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGALRM)
	return signals
}

// session is one process of a container as the process that stands for it sees it.
type session struct {
	app     *App
	dir     *state.Dir
	exec    string // empty for the init
	tty     *os.File
	signals chan os.Signal
	viewer  bool                    // it stands for no process, and kills none
	wait    *controlv1.WaitResponse // the answer, once follow is through
}

// follow hands on signals and window sizes until the process has exited, and returns its exit code.
func (s *session) follow(ctx context.Context) (int, error) {
	client, err := control.Dial(s.dir.Path(""))
	if errors.Is(err, control.ErrGone) {
		return s.recorded(err)
	}
	if err != nil {
		return 0, err
	}
	defer client.Close()
	s.resize(ctx, client)
	type answer struct {
		response *controlv1.WaitResponse
		err      error
	}
	answers := make(chan answer, 1)
	go func() {
		r, err := client.Wait(ctx, &controlv1.WaitRequest{Id: s.dir.ID(), Exec: s.exec})
		answers <- answer{r, err}
	}()
	interrupts := 0
	forwarded := make(chan syscall.Signal, cap(s.signals)) // to a guest that may take its time
	defer close(forwarded)
	go func() {
		for sig := range forwarded {
			s.forward(ctx, client, sig)
		}
	}()
	for {
		select {
		case sig := <-s.signals:
			if sig == syscall.SIGINT || sig == syscall.SIGTERM {
				interrupts++
			}
			if interrupts >= impatience && !s.viewer && sig != syscall.SIGWINCH {
				go s.forward(ctx, client, syscall.SIGKILL)
				continue
			}
			select {
			case forwarded <- sig.(syscall.Signal):
			default: // none of those before has reached the container
			}
		case a := <-answers:
			if a.err != nil {
				return s.recorded(a.err)
			}
			s.wait = a.response
			if a.response.Reason != "" {
				s.app.warn("container %s was lost: %s", s.dir.ID(), a.response.Reason)
			}
			return int(a.response.Status), nil
		}
	}
}

// impatience is how many interrupts it takes to kill a container that ignores them.
const impatience = 3

func (s *session) forward(ctx context.Context, client *control.Client, sig syscall.Signal) {
	if sig == syscall.SIGWINCH {
		s.resize(ctx, client)
		return
	}
	_, err := client.Signal(ctx, &controlv1.SignalRequest{Id: s.dir.ID(), Exec: s.exec, Signal: uint32(sig)})
	if _, plain := control.Plain(err); plain != nil {
		s.app.log.write("warning", "forward signal: "+plain.Error())
	}
}

func (s *session) resize(ctx context.Context, client *control.Client) {
	if s.tty == nil {
		return
	}
	size, err := sys.GetWinsize(s.tty)
	if err != nil || size.Rows == 0 {
		return
	}
	_, err = client.Resize(ctx, &controlv1.ResizeRequest{
		Id: s.dir.ID(), Exec: s.exec, Rows: uint32(size.Rows), Columns: uint32(size.Columns),
	})
	if _, plain := control.Plain(err); plain != nil {
		s.app.log.write("warning", "resize terminal: "+plain.Error())
	}
}

// recorded is the exit code of a process whose owner no longer answers: the one on record for a container
// that had ended, or that of a VM that died.
func (s *session) recorded(cause error) (int, error) {
	code, plain := control.Plain(cause)
	if code == codes.FailedPrecondition || code == codes.NotFound && s.exec != "" {
		return 0, plain
	}
	record, err := s.dir.Load()
	ended := err == nil && record.Status == state.Stopped
	switch {
	case ended && record.Reason != "":
		s.app.warn("container %s was lost: %s", s.dir.ID(), record.Reason)
	case ended && s.exec != "":
		s.app.warn("container %s ended, and this process with it", s.dir.ID())
	case !ended:
		s.app.warn("container %s was lost: its sandbox owner died", s.dir.ID())
	}
	if ended && s.exec == "" {
		return record.ExitStatus, nil
	}
	return lost, nil
}

// attendant is a running attend process.
type attendant struct {
	cmd  *exec.Cmd
	gate *os.File
}

// attendOptions say what an attend process is given beside its stdio.
type attendOptions struct {
	terminal   bool // its stdio is a terminal, to become its controlling one
	newNetwork bool // a network namespace of its own
}

// startAttend starts the process that stands for one of container id, with the given stdio.
func (a *App) startAttend(id, execID, token string, files [3]*os.File, o attendOptions) (*attendant, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	args := a.hidden(attendVerb, "--token", token)
	if execID != "" {
		args = append(args, "--exec", execID)
	}
	if a.logFile != "" {
		args = append(args, "--log", a.logFile, "--log-format", a.logFormat)
	}
	if o.terminal {
		args = append(args, "--terminal")
	}
	cmd := exec.Command("/proc/self/exe", append(args, "--", id)...)
	cmd.Args[0] = "husk"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	cmd.ExtraFiles = []*os.File{attendGo - 3: theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: o.terminal}
	if o.newNetwork {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start the container's host process: %w", err)
	}
	return &attendant{cmd: cmd, gate: ours}, nil
}

// release lets the process follow the one it stands for.
func (t *attendant) release() error {
	defer t.gate.Close()
	if _, err := t.gate.Write([]byte{1}); err != nil {
		return fmt.Errorf("release the container's host process: %w", err)
	}
	return nil
}

// end ends a process whose container was not made.
func (t *attendant) end() error {
	t.gate.Close()
	timer := time.AfterFunc(goneWait, func() { _ = t.cmd.Process.Kill() })
	defer timer.Stop()
	_ = t.cmd.Wait() // its exit code says only that it was not released
	return nil
}

// hostTerminal makes the pty of a container with a terminal and hands its master to the engine's console
// socket (runc's terminals documentation: the master as SCM_RIGHTS with its name as data).
func hostTerminal(socket string) (slave *os.File, err error) {
	master, slave, err := sys.OpenPTY()
	if err != nil {
		return nil, err
	}
	defer master.Close()
	if _, err := sys.MakeRaw(slave); err != nil { // the guest's own terminal does the line editing
		slave.Close()
		return nil, err
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		slave.Close()
		return nil, fmt.Errorf("connect to console socket: %w", err)
	}
	defer conn.Close()
	if err := fdpass.Send(conn, "/dev/ptmx", master); err != nil {
		slave.Close()
		return nil, fmt.Errorf("console socket %s: %w", socket, err)
	}
	return slave, nil
}

// writePidFile writes a pid as runc does: digits, no newline, at once.
func writePidFile(path string, pid int) error {
	if path == "" {
		return nil
	}
	if err := state.WriteFile(path, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	return nil
}
