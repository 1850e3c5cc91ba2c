package cli

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/forward"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/tracing"
)

// answerWait bounds how long an owner whose VM is gone waits for clients to take their answers.
const answerWait = 5 * time.Second

// ownerCommand is the process that owns a VM. It is started by the verbs that make containers, with its
// sockets and a lifeline: whoever starts it holds the other end until the container is made.
func (a *App) ownerCommand() *cobra.Command {
	var again bool
	cmd := &cobra.Command{
		Use: "owner ID", Short: "Own a container's virtual machine (internal)", Hidden: true,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.own(args[0], again) },
	}
	cmd.Flags().BoolVar(&again, "again", false, "")
	return cmd
}

func (a *App) own(id string, again bool) error {
	log := a.ownerLogger()
	defer tracing.Start("husk", a.version, log)()
	// What ends an owner is its VM's end; a signal from outside ends the VM in good order.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	if err := sys.PrivateMounts(); err != nil {
		return err
	}
	dir, err := a.open(id)
	if err != nil {
		return err
	}
	box, err := a.box(dir, again, log)
	if err != nil {
		return err
	}
	forwarded, err := forwardPorts(box, dir, log)
	if err != nil {
		return err
	}
	defer func() { (<-forwarded).Close() }()
	server, err := control.NewServer(box, log, a.open, shellProgram)
	if err != nil {
		return err
	}
	rpc, err := inherited(ownerRPC)
	if err != nil {
		return err
	}
	files, err := inherited(ownerFiles)
	if err != nil {
		return err
	}
	defer files.Close()
	served := make(chan error, 1)
	go func() { served <- server.Serve(rpc, files) }()
	go func() {
		lifeline := os.NewFile(ownerLifeline, "lifeline")
		_, _ = lifeline.Read(make([]byte, 1))
		lifeline.Close()
		box.Disown("the process that was making the container died")
	}()
	select {
	case <-box.Done():
	case s := <-signals:
		box.End("the sandbox owner got " + s.String())
	case err := <-served:
		box.End(fmt.Sprintf("control server failed: %v", err))
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerWait)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		log.Warn("clients left without an answer", "error", err)
	}
	return box.Remove()
}

// ownerLogger writes the owner's log.
func (a *App) ownerLogger() *slog.Logger {
	level := slog.LevelInfo
	if a.debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// box is the sandbox that the owner owns.
func (a *App) box(dir *state.Dir, again bool, log *slog.Logger) (*sandbox.Sandbox, error) {
	options, err := a.boxOptions(dir, log)
	if err != nil {
		return nil, err
	}
	options.Again = again
	syscall.CloseOnExec(ownerMounts)
	options.HostMounts = fmt.Sprintf("/proc/self/fd/%d", ownerMounts)
	options.OutOfMemory = func(id string, e sandbox.Engine) { tellOutOfMemory(id, e, log) }
	return sandbox.New(options), nil
}

// boxOptions are those of a sandbox whose first container has the state directory dir.
func (a *App) boxOptions(dir *state.Dir, log *slog.Logger) (sandbox.Options, error) {
	driver, err := a.driver()
	if err != nil {
		return sandbox.Options{}, err
	}
	// A missing guest is the error of the first request, which has somebody to tell it to.
	guest, guestErr := assets.Find(a.config.GuestDir)
	return sandbox.Options{
		Config: a.config, Driver: driver, Guest: guest, GuestErr: guestErr, Dir: dir, Log: log,
		Templates: a.templates(), BuildTemplate: a.buildTemplateLater,
	}, nil
}

// forwardPorts begins to forward ports for the container that the sandbox is made for.
func forwardPorts(box *sandbox.Sandbox, dir *state.Dir, log *slog.Logger) (<-chan *forward.Forwarder, error) {
	spec, err := savedSpec(dir)
	if err != nil {
		return nil, err
	}
	return forward.Pod(box, spec, log), nil
}

// savedSpec is the configuration that the container is being made from.
func savedSpec(dir *state.Dir) (*specs.Spec, error) {
	data, err := os.ReadFile(dir.Path(specFile))
	if err != nil {
		return nil, fmt.Errorf("read the container's configuration: %w", err)
	}
	return ocispec.Parse(data)
}

// inherited is a listening socket that this process was started with.
func inherited(fd uintptr) (net.Listener, error) {
	f := os.NewFile(fd, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over socket %d: %w", fd, err)
	}
	return l, nil
}
