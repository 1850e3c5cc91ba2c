package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/hook"
	"husk.dev/husk/internal/hostcgroup"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

// bundleFlags are the flags of create and of run with a bundle, which are runc's.
type bundleFlags struct {
	bundle        string
	consoleSocket string
	pidFile       string
	preserveFDs   int
	noPivot       bool
	noNewKeyring  bool
}

func (f *bundleFlags) register(cmd *cobra.Command, bundle string) {
	flags := cmd.Flags()
	flags.StringVarP(&f.bundle, "bundle", "b", bundle, "`DIR` with config.json")
	flags.StringVar(&f.consoleSocket, "console-socket", "", "unix `SOCKET` that takes the terminal's master")
	flags.StringVar(&f.pidFile, "pid-file", "", "write the pid of the container's host process to `FILE`")
	flags.IntVar(&f.preserveFDs, "preserve-fds", 0, "accepted; files cannot be passed into a virtual machine")
	flags.BoolVar(&f.noPivot, "no-pivot", false, "accepted; the guest decides how it changes its root")
	flags.BoolVar(&f.noNewKeyring, "no-new-keyring", false, "accepted; the guest has keyrings of its own")
}

// creation is what a container is made from.
type creation struct {
	id            string
	bundle        *ocispec.Bundle
	spec          []byte // the bundle's config.json, or what was made in its place
	record        state.Container
	image         *controlv1.Image // nil: the bundle's own root
	consoleSocket string
	pidFile       string
	log           string // file for the output, "" to use this process' stdio
	stdin         bool   // hand on stdin, or with log keep it open for those who attach
	start         bool
	autoRemove    bool
	caller        int               // the parent process without which the container is not wanted; 0: none
	engine        *controlv1.Engine // that asks for it; nil: none that watches the host's control groups
	hooks         specs.Hooks
	user          *controlv1.UserNetwork // nil: no user-mode networking that the configuration does not ask for
	etc           []*controlv1.File      // that tell the container of its network
	made          *made                  // what husk run was asked for; nil for a bundle
	again         *stoppedContainer      // that is started again; nil: a new one
}

func (a *App) createCommand() *cobra.Command {
	var f bundleFlags
	cmd := &cobra.Command{
		Use:   "create ID",
		Short: "Create a container from a bundle",
		Long:  "Create makes a container and its virtual machine from an OCI bundle. Its program runs once 'husk start' is called.",
		Example: "  husk spec && husk create --bundle . web\n" +
			"  husk start web",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.fromBundle(args[0], f)
			if err != nil {
				return err
			}
			if err := c.checkTerminal(true); err != nil {
				return err
			}
			c.caller = os.Getppid()
			c.engine = engineOf(c.caller, c.bundle.Dir)
			_, err = a.detached(cmd.Context(), c)
			return plainExit(err)
		},
	}
	f.register(cmd, ".")
	return cmd
}

// plainExit drops the exit codes of docker run: the OCI verbs fail with 1.
func plainExit(err error) error {
	var exit *exitError
	if errors.As(err, &exit) && exit.err != nil {
		return exit.err
	}
	return err
}

// fromBundle reads a bundle for create and run.
func (a *App) fromBundle(id string, f bundleFlags) (*creation, error) {
	if err := state.CheckID(id); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(f.bundle)
	if err != nil {
		return nil, fmt.Errorf("find bundle: %w", err)
	}
	bundle, err := ocispec.Load(dir)
	if err != nil {
		return nil, err
	}
	if err := a.checkSystemd(id, bundle.Spec); err != nil {
		return nil, err
	}
	if f.preserveFDs > 0 {
		a.warn("--preserve-fds %d: files cannot be passed into a virtual machine", f.preserveFDs)
	}
	c := &creation{
		id: id, bundle: bundle, consoleSocket: f.consoleSocket, pidFile: f.pidFile, stdin: true,
		record: state.Container{
			Bundle: bundle.Dir, Rootfs: bundle.Rootfs, Annotations: bundle.Spec.Annotations,
		},
	}
	return c, c.encode()
}

// checkSystemd refuses control groups that are to be systemd's where it does not run, and those of another form, as runc
// does, and names the one of a container without.
func (a *App) checkSystemd(id string, spec *specs.Spec) error {
	switch {
	case !a.systemd:
		return nil
	case !hostcgroup.Booted():
		return errors.New("--systemd-cgroup: systemd does not run on this host (configure the engine for cgroupfs)")
	case spec.Linux == nil:
		spec.Linux = &specs.Linux{}
	}
	if spec.Linux.CgroupsPath == "" {
		spec.Linux.CgroupsPath = ":husk:" + id
	}
	if err := hostcgroup.CheckScope(spec.Linux.CgroupsPath); err != nil {
		return fmt.Errorf("--systemd-cgroup: %w", err)
	}
	return nil
}

// encode puts the checked configuration and what is kept of it into c.
func (c *creation) encode() (err error) {
	if c.spec, err = json.Marshal(c.bundle.Spec); err != nil {
		return err
	}
	if c.bundle.Spec.Process != nil {
		c.record.Args = c.bundle.Spec.Process.Args
	}
	if c.bundle.Spec.Hooks != nil {
		c.hooks = *c.bundle.Spec.Hooks
		c.record.Poststart, c.record.Poststop = c.hooks.Poststart, c.hooks.Poststop
	}
	return nil
}

func (c *creation) terminal() bool {
	return c.bundle.Spec.Process != nil && c.bundle.Spec.Process.Terminal
}

// checkTerminal refuses the ways in which a container, its terminal and who takes it cannot fit (runc's
// terminals documentation).
func (c *creation) checkTerminal(detached bool) error {
	switch {
	case !detached && c.consoleSocket != "":
		return errors.New("--console-socket: a container in the foreground has the terminal of who started it (leave it out, or add --detach)")
	case detached && c.terminal() && c.consoleSocket == "" && c.log == "":
		return errors.New("process.terminal is true: pass --console-socket to take the terminal")
	case !c.terminal() && c.consoleSocket != "":
		return errors.New("--console-socket: process.terminal is false, there is no terminal to pass")
	}
	return nil
}

// files is the stdio that a detached container inherits from this process; cleanup closes what was opened.
func (c *creation) files() (files [3]*os.File, cleanup func(), err error) {
	files, cleanup = [3]*os.File{os.Stdin, os.Stdout, os.Stderr}, func() {}
	switch {
	case c.consoleSocket != "":
		slave, err := hostTerminal(c.consoleSocket)
		if err != nil {
			return files, cleanup, err
		}
		return [3]*os.File{slave, slave, slave}, func() { slave.Close() }, nil
	case c.log != "":
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return files, cleanup, err
		}
		return [3]*os.File{null, null, null}, func() { null.Close() }, nil
	}
	return files, cleanup, nil
}

// detached makes a container that lives on without this process, with a process that stands for it.
func (a *App) detached(ctx context.Context, c *creation) (_ *launch, err error) {
	l, err := a.begin(ctx, c)
	if err != nil {
		return nil, err
	}
	hooked := false
	defer func() {
		if err != nil {
			l.abandon()
		}
		if err != nil && hooked {
			a.runPoststop(context.WithoutCancel(ctx), c.unmade())
		}
	}()
	files, closeFiles, err := c.files()
	if err != nil {
		return nil, err
	}
	defer closeFiles()
	token, err := newToken()
	if err != nil {
		return nil, err
	}
	attend, err := a.startAttend(c.id, "", token, files, attendOptions{terminal: c.consoleSocket != "", newNetwork: c.hooksNeedNetwork()})
	if err != nil {
		return nil, err
	}
	l.undo.Add(attend.end)
	pid := attend.cmd.Process.Pid
	hooked = true
	if err := c.runCreateHooks(ctx, pid); err != nil {
		return nil, err
	}
	if err := c.takeHooksNetwork(pid); err != nil {
		return nil, err
	}
	if _, err := l.create(ctx, c.request(token, pid, c.terminal())); err != nil {
		return nil, err
	}
	if err := writePidFile(c.pidFile, pid); err != nil {
		return nil, err
	}
	l.undo.Add(func() error { return removePidFile(c.pidFile) })
	if c.caller != 0 && os.Getppid() != c.caller {
		// An engine's that died meanwhile: nobody knows of the container, and nobody would remove it.
		return nil, errors.New("who asked for the container has died")
	}
	if err := attend.release(); err != nil {
		return nil, err
	}
	l.keep()
	if c.start {
		a.runPoststart(ctx, c.id, c.hooks.Poststart)
	}
	return l, nil
}

func (c *creation) request(token string, pid int, terminal bool) *controlv1.CreateRequest {
	stdio := &controlv1.Stdio{Token: token, Terminal: terminal, Log: c.log, OpenStdin: c.log != "" && c.stdin}
	if terminal && c.bundle.Spec.Process.ConsoleSize != nil {
		stdio.Rows = uint32(c.bundle.Spec.Process.ConsoleSize.Height)
		stdio.Columns = uint32(c.bundle.Spec.Process.ConsoleSize.Width)
	}
	request := &controlv1.CreateRequest{
		Id: c.id, Bundle: c.bundle.Dir, Spec: c.spec, Image: c.image, Stdio: stdio, Start: c.start,
		HostPid: uint32(pid), AutoRemove: c.autoRemove, CallerPid: uint32(os.Getpid()),
		Engine: c.engine, UserNetwork: c.user, Files: c.etc,
	}
	return request
}

// hooksNeedNetwork tells whether the container's host process needs a network namespace of its own: hooks
// that are given its pid may change its network, which must not be the host's.
func (c *creation) hooksNeedNetwork() bool {
	if len(c.hooks.Prestart)+len(c.hooks.CreateRuntime) == 0 { //nolint:staticcheck // Docker uses it
		return false
	}
	ns := ocispec.Namespace(c.bundle.Spec, specs.NetworkNamespace)
	return ns != nil && ns.Path == ""
}

// takeHooksNetwork has the container join the network namespace of its host process, where hooks have set up
// interfaces there.
func (c *creation) takeHooksNetwork(pid int) error {
	if !c.hooksNeedNetwork() {
		return nil
	}
	path := fmt.Sprintf("/proc/%d/ns/net", pid)
	names, err := sys.Interfaces(path)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(names, func(name string) bool { return name != "lo" }) {
		return nil
	}
	setNetworkPath(c.bundle.Spec, path)
	return c.encode()
}

// runCreateHooks runs the hooks that belong before the container's own code.
func (c *creation) runCreateHooks(ctx context.Context, pid int) error {
	return hook.RunCreate(ctx, c.hooks, specs.State{
		Version: specs.Version, ID: c.id, Status: specs.StateCreating, Pid: pid, Bundle: c.bundle.Dir,
		Annotations: c.bundle.Spec.Annotations,
	})
}

// unmade is what the poststop hooks are told of a container that comes to nothing after others of its hooks have run, which
// they are to undo (runtime.md, "Lifecycle").
func (c *creation) unmade() state.Container {
	record := c.record
	record.ID = c.id
	return record
}

// runPoststart runs the poststart hooks; a failing one is a warning (runtime.md, "Lifecycle").
func (a *App) runPoststart(ctx context.Context, id string, hooks []specs.Hook) {
	if len(hooks) == 0 {
		return
	}
	dir, err := a.open(id)
	if err != nil {
		return // the container has ended and is gone already
	}
	record, err := dir.Load()
	if err != nil {
		return
	}
	if err := hook.RunAll(ctx, "poststart", hooks, hookState(record)); err != nil {
		a.warn("%v", err)
	}
}
