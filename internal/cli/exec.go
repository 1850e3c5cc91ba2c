package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

// execOptions are the flags of exec, which are runc's and, for people, docker's.
type execOptions struct {
	flags         ocispec.ExecFlags
	gids          []uint
	processFile   string
	consoleSocket string
	pidFile       string
	detach        bool
	interactive   bool
	ignorePaused  bool
}

func (a *App) execCommand() *cobra.Command {
	var o execOptions
	cmd := &cobra.Command{
		Use:   "exec ID COMMAND [ARG...]",
		Short: "Run a further process in a running container",
		Example: "  husk exec web ls /etc\n  husk exec -it web sh\n  husk exec --user 1000:1000 --env A=b web env\n" +
			"  husk exec --process process.json --detach --pid-file pid web",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) < 2 && o.processFile == "" {
				return errors.New("exec needs a container id and a command (or --process FILE)")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.exec(cmd.Context(), args[0], args[1:], &o)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVarP(&o.processFile, "process", "p", "", "`FILE` with the OCI process to run")
	f.StringVar(&o.consoleSocket, "console-socket", "", "unix `SOCKET` that takes the terminal's master")
	f.StringVar(&o.pidFile, "pid-file", "", "write the pid of the host process to `FILE`")
	f.BoolVarP(&o.detach, "detach", "d", false, "leave the process running")
	f.BoolVarP(&o.flags.Terminal, "tty", "t", false, "give the process a terminal")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "accepted; stdin is always handed on")
	f.StringVar(&o.flags.Cwd, "cwd", "", "working `DIR` in the container")
	f.StringVarP(&o.flags.Cwd, "workdir", "w", "", "the same as --cwd")
	f.StringArrayVarP(&o.flags.Env, "env", "e", nil, "set `NAME=VALUE`")
	f.StringVarP(&o.flags.User, "user", "u", "", "`UID[:GID]`")
	f.UintSliceVarP(&o.gids, "additional-gids", "g", nil, "further `GID`s")
	f.StringArrayVarP(&o.flags.Capabilities, "cap", "c", nil, "add a capability")
	f.BoolVar(&o.flags.NoNewPrivileges, "no-new-privs", false, "set no_new_privs")
	f.BoolVar(&o.ignorePaused, "ignore-paused", false, "accepted; a paused container refuses")
	f.Int("preserve-fds", 0, "accepted; files cannot be passed into a virtual machine")
	f.String("apparmor", "", "accepted; the guest has no AppArmor")
	f.String("process-label", "", "accepted; the guest has no SELinux")
	f.StringArray("cgroup", nil, "accepted; the process joins the container's cgroup")
	return cmd
}

func (a *App) exec(ctx context.Context, id string, args []string, o *execOptions) (err error) {
	dir, record, err := a.load(id)
	if err != nil {
		return err
	}
	if status := record.Effective(); status != state.Running && status != state.Created {
		err = fmt.Errorf("cannot exec in container %q that is %s", id, status)
		if status == state.Stopped {
			err = fmt.Errorf("%w: container not running", err)
		}
		return err
	}
	process, err := a.execProcess(dir, args, o)
	if err != nil {
		return err
	}
	switch {
	case o.detach && process.Terminal && o.consoleSocket == "":
		return errors.New("a detached process with a terminal needs --console-socket")
	case !process.Terminal && o.consoleSocket != "":
		return errors.New("--console-socket: the process has no terminal to pass (--tty gives it one)")
	}
	e := &execution{app: a, dir: dir, process: process, options: o}
	defer func() {
		if cleanErr := e.undo.Clean(); err == nil {
			err = cleanErr
		}
	}()
	if e.token, err = newToken(); err != nil {
		return err
	}
	e.name = e.token[:16]
	if o.detach || o.consoleSocket != "" || o.pidFile != "" {
		return e.detached(ctx)
	}
	return e.attached(ctx)
}

// execProcess is the process of --process, or the container's own changed by the flags.
func (a *App) execProcess(dir *state.Dir, args []string, o *execOptions) (specs.Process, error) {
	if o.processFile != "" {
		p, err := ocispec.LoadProcess(o.processFile)
		p.Terminal = p.Terminal || o.flags.Terminal
		return p, err
	}
	spec, err := savedSpec(dir)
	if err != nil {
		return specs.Process{}, err
	}
	for _, g := range o.gids {
		o.flags.AdditionalGIDs = append(o.flags.AdditionalGIDs, uint32(g))
	}
	o.flags.Args = args
	var base specs.Process
	if spec.Process != nil {
		base = *spec.Process
	}
	return ocispec.ExecProcess(base, o.flags)
}

// execution is one exec on its way.
type execution struct {
	app     *App
	dir     *state.Dir
	name    string
	token   string
	process specs.Process
	options *execOptions
	undo    cleanup.Stack
}

// request has the owner start the process.
func (e *execution) request(ctx context.Context, terminal bool) error {
	data, err := json.Marshal(e.process)
	if err != nil {
		return fmt.Errorf("encode process: %w", err)
	}
	client, err := control.Dial(e.dir.Path(""))
	if err != nil {
		return err
	}
	defer client.Close()
	stdio := &controlv1.Stdio{Token: e.token, Terminal: terminal}
	if size := e.process.ConsoleSize; terminal && size != nil {
		stdio.Rows, stdio.Columns = uint32(size.Height), uint32(size.Width)
	}
	_, err = client.Exec(ctx, &controlv1.ExecRequest{Id: e.dir.ID(), Exec: e.name, Process: data, Stdio: stdio})
	return programError(control.Plain(err))
}

// programError gives a program that does not exist, or cannot be executed, the exit code that a shell has
// for it.
func programError(code codes.Code, plain error) error {
	switch {
	case plain == nil:
		return nil
	case code == codes.NotFound:
		return &exitError{exitNotFound, plain}
	case code == codes.PermissionDenied:
		return &exitError{exitNotExecutable, plain}
	}
	return plain
}

// detached leaves a process behind that stands for the one in the container. With a pid file or console
// socket but no --detach it waits for that one, as runc does.
func (e *execution) detached(ctx context.Context) error {
	c := creation{consoleSocket: e.options.consoleSocket}
	files, closeFiles, err := c.files()
	if err != nil {
		return err
	}
	defer closeFiles()
	attend, err := e.app.startAttend(e.dir.ID(), e.name, e.token, files, attendOptions{terminal: e.options.consoleSocket != ""})
	if err != nil {
		return err
	}
	e.undo.Add(attend.end)
	if err := e.request(ctx, e.process.Terminal); err != nil {
		return err
	}
	if err := writePidFile(e.options.pidFile, attend.cmd.Process.Pid); err != nil {
		return err
	}
	if err := attend.release(); err != nil {
		return err
	}
	e.undo.Release()
	if e.options.detach {
		return nil
	}
	_ = attend.cmd.Wait() // its exit code is the answer
	return &exitError{code: attend.cmd.ProcessState.ExitCode()}
}

// attached runs the process on this one's stdio.
func (e *execution) attached(ctx context.Context) error {
	terminal, err := e.app.ownTerminal(e.process.Terminal, &e.undo)
	if err != nil {
		return err
	}
	conn, err := control.SendStdio(e.dir.Path(""), e.token, [3]*os.File{e.app.in, os.Stdout, os.Stderr})
	if err != nil {
		return err
	}
	defer conn.Close()
	s := &session{app: e.app, dir: e.dir, exec: e.name, tty: terminal, signals: catch()}
	if err := e.request(ctx, e.process.Terminal); err != nil {
		return err
	}
	code, err := s.follow(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	return &exitError{code: code}
}

// ownTerminal puts this process' terminal into raw mode for a process with a terminal, and has undo put
// it back.
func (a *App) ownTerminal(wanted bool, undo *cleanup.Stack) (*os.File, error) {
	if !wanted {
		return nil, nil
	}
	if !sys.IsTerminal(a.in) {
		return nil, errors.New("the input device is not a terminal: leave --tty out")
	}
	restore, err := sys.MakeRaw(a.in)
	if err != nil {
		return nil, err
	}
	undo.Add(restore)
	return a.in, nil
}
