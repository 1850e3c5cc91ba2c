package cli

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"

	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/shim"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/vmm"
)

// ShimName is the name under which husk is containerd's shim.
const ShimName = shim.Name

// Shim runs husk as containerd's shim with args and returns its exit code.
func Shim(args []string, version string, drivers map[string]func(string) vmm.Driver) int {
	program := shim.Program{
		Version: version, In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Open: func(file string) (*shim.Host, error) {
			app := &App{version: version, drivers: drivers, in: os.Stdin, out: os.Stdout, err: os.Stderr, configFile: file}
			return app.host()
		},
	}
	return program.Main(args)
}

// host is what the shim needs of husk.
func (a *App) host() (*shim.Host, error) {
	a.logFormat = "text"
	if err := a.setUp(); err != nil {
		return nil, err
	}
	return &shim.Host{
		Config: a.config,
		Sandbox: func(dir *state.Dir, keep bool, log *slog.Logger) (*sandbox.Sandbox, error) {
			options, err := a.boxOptions(dir, log)
			options.Keep, options.HostMounts = keep, shim.EngineMounts
			options.OutOfMemory = func(id string, e sandbox.Engine) { tellOutOfMemory(id, e, log) }
			return sandbox.New(options), err
		},
		Forget: a.forget,
		Serve:  a.serveBeside,
		Join:   linkSockets,
	}, nil
}

// serveBeside serves husk's own verbs for a sandbox that containerd's shim owns, until stop is called.
func (a *App) serveBeside(box *sandbox.Sandbox, dir *state.Dir, log *slog.Logger) (stop func(), err error) {
	server, err := control.NewServer(box, log, a.open, shellProgram)
	if err != nil {
		return nil, err
	}
	rpc, err := listenIn(dir, control.RPCSocket)
	if err != nil {
		return nil, err
	}
	files, err := listenIn(dir, control.FilesSocket)
	if err != nil {
		rpc.Close()
		return nil, err
	}
	go func() {
		if err := server.Serve(rpc, files); err != nil {
			log.Warn("husk's verbs do not reach the sandbox any more", "error", err)
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), answerWait)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			log.Warn("clients left without an answer", "error", err)
		}
		files.Close()
	}, nil
}

func listenIn(dir *state.Dir, name string) (net.Listener, error) {
	f, err := control.Listen(dir.Path(""), name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileListener(f)
}

// forget removes a container whose owner is gone, and tells its hooks the name that containerd has for it.
func (a *App) forget(ctx context.Context, dir *state.Dir, id string) error {
	record, err := dir.Load()
	if errors.Is(err, fs.ErrNotExist) { // its creation was cut short before the first save
		return dir.Remove()
	}
	if err != nil {
		return err
	}
	waitOwnerGone(record)
	if err := errors.Join(a.clear(dir.ID(), record), a.clearRetired(record)); err != nil {
		return err
	}
	if err := dir.Remove(); err != nil {
		return err
	}
	record.ID = id
	a.runPoststop(ctx, record)
	return nil
}
