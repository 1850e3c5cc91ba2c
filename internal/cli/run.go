package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/state"
)

// runOptions are the flags of run.
type runOptions struct {
	bundleFlags
	networkFlags
	name        string
	rootfs      string
	interactive bool
	tty         bool
	detach      bool
	remove      bool
	readOnly    bool
	env         []string
	volumes     []string
	workdir     string
	user        string
	entrypoint  string
	memory      string
	cpus        float64
	pidsLimit   int64
	storageSize string
	timeline    bool
	pull        string
	stop        stopOptions
}

func (a *App) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run IMAGE [COMMAND [ARG...]]",
		Short: "Run a container in a virtual machine of its own",
		Long: "Run starts a container from an image: a name in a registry or in husk's store, oci:DIR,\n" +
			"oci-archive:FILE or docker-archive:FILE; or from a directory with --rootfs DIR. With --bundle DIR it\n" +
			"runs an OCI bundle as 'runc run' does, and takes the container's id in place of an image.",
		Example: "  husk run --rm -it alpine sh\n  husk run --rm -v /src:/src:ro --memory 512m golang go test ./...\n" +
			"  husk run -d --name web -p 8080:80 nginx\n  husk run --rm --network none alpine ip addr\n  husk run --rm --rootfs ./rootfs -- /bin/true\n  husk run --bundle . mycontainer",
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case o.bundle != "" && len(args) != 1:
				return errors.New("run --bundle DIR takes one argument, the container's id")
			case o.bundle == "" && o.rootfs == "" && len(args) == 0:
				return runFailed(cmd, errors.New("run needs an image (or --rootfs DIR, or --bundle DIR and an id)"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.bundle != "" {
				return a.runBundle(cmd.Context(), args[0], &o)
			}
			o.stop.timed = cmd.Flags().Changed("stop-timeout")
			return runFailed(cmd, a.runImage(cmd.Context(), args, &o))
		},
	}
	cmd.SetFlagErrorFunc(runFailed)
	o.bundleFlags.register(cmd, "")
	o.networkFlags.register(cmd)
	o.registerRun(cmd.Flags())
	return cmd
}

// registerRun are the flags of docker's run that are about no network.
func (o *runOptions) registerRun(f *pflag.FlagSet) {
	f.SetInterspersed(false)
	f.StringVar(&o.name, "name", "", "the container's `ID` (default: random)")
	f.StringVar(&o.rootfs, "rootfs", "", "run from `DIR` in place of an image")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "hand on stdin")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the container a terminal")
	f.BoolVarP(&o.detach, "detach", "d", false, "leave the container running")
	f.BoolVar(&o.remove, "rm", false, "delete the container when it ends")
	f.BoolVar(&o.readOnly, "read-only", false, "let nothing be written to the root")
	f.StringArrayVarP(&o.env, "env", "e", nil, "set `NAME=VALUE`, or pass on NAME")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "`HOST:CONTAINER[:ro]` shares a file or directory")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working `DIR` in the container")
	f.StringVarP(&o.user, "user", "u", "", "`USER[:GROUP]`, names or numbers")
	f.StringVar(&o.entrypoint, "entrypoint", "", "`COMMAND` in place of the image's entrypoint")
	f.StringVarP(&o.memory, "memory", "m", "", "memory limit, such as 256m; sizes the virtual machine too")
	f.Float64Var(&o.cpus, "cpus", 0, "CPU limit, such as 1.5; sizes the virtual machine too")
	f.Int64Var(&o.pidsLimit, "pids-limit", 0, "most processes")
	f.StringVar(&o.storageSize, "storage-size", "", "most that can be written to the root, such as 2g; 0 keeps it in guest memory")
	f.BoolVar(&o.timeline, "timeline", false, "print how long each phase took")
	f.StringVar(&o.pull, "pull", "missing", "when to pull: always, missing or never")
	f.StringVar(&o.stop.signal, "stop-signal", "", "`SIGNAL` that husk stop sends (default: the image's, or TERM)")
	f.IntVar(&o.stop.seconds, "stop-timeout", defaultStopTime, "`SECONDS` after which husk stop kills, -1 for never")
}

// runFailed gives an error of run that has no exit code yet the one of docker run, except with a bundle:
// that is runc's run. The errors of other verbs are left alone.
func runFailed(cmd *cobra.Command, err error) error {
	var exit *exitError
	if err == nil || errors.As(err, &exit) || cmd.Name() != "run" || cmd.Flags().Changed("bundle") {
		return err
	}
	return &exitError{exitRunFailed, err}
}

// runBundle is runc's run.
func (a *App) runBundle(ctx context.Context, id string, o *runOptions) error {
	c, err := a.fromBundle(id, o.bundleFlags)
	if err != nil {
		return err
	}
	c.start = true
	if err := c.checkTerminal(o.detach); err != nil {
		return err
	}
	if o.detach {
		_, err := a.detached(ctx, c)
		return plainExit(err)
	}
	err = a.foreground(ctx, c, o)
	var exit *exitError
	if errors.As(err, &exit) && exit.err != nil {
		return exit.err
	}
	return err
}

// runImage is docker's run.
func (a *App) runImage(ctx context.Context, args []string, o *runOptions) error {
	id, err := o.id()
	if err != nil {
		return err
	}
	if err := state.CheckID(id); err != nil {
		return err
	}
	c := &creation{id: id, start: true, stdin: o.interactive, pidFile: o.pidFile, consoleSocket: o.consoleSocket}
	if c.made, err = o.made(); err != nil {
		return err
	}
	b := &builder{app: a, options: o, id: id}
	lease, err := b.build(ctx, c, args)
	if err != nil {
		return err
	}
	defer lease.Close()
	if o.detach && o.consoleSocket == "" {
		c.log = filepath.Join(a.config.ContainerDir(id), "output.log")
		c.record.Log = c.log
	}
	if err := c.checkTerminal(o.detach); err != nil {
		return err
	}
	c.autoRemove = o.remove
	if !o.detach {
		return a.foreground(ctx, c, o)
	}
	if _, err := a.detached(ctx, c); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, id)
	return err
}

// made is what is kept of the flags.
func (o *runOptions) made() (*made, error) {
	m := &made{Interactive: o.interactive, TTY: o.tty, AutoRemove: o.remove, StopSignal: o.stop.signal, Started: time.Now()}
	if o.stop.signal != "" {
		if _, err := parseSignal(o.stop.signal); err != nil {
			return nil, fmt.Errorf("--stop-signal: %w", err)
		}
	}
	if o.stop.timed {
		m.StopTimeout = &o.stop.seconds
	}
	return m, nil
}

func (o *runOptions) id() (string, error) {
	if o.name != "" {
		return o.name, nil
	}
	raw := make([]byte, 6)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("make container id: %w", err)
	}
	return hex.EncodeToString(raw), nil
}

// foreground runs a container on this process' stdio, waits for its end and deletes it where that is
// asked for, as runc's run always does.
func (a *App) foreground(ctx context.Context, c *creation, o *runOptions) error {
	began := time.Now()
	var screen cleanup.Stack
	defer screen.Clean()
	terminal, err := a.ownTerminal(c.terminal(), &screen)
	if err != nil {
		return err
	}
	signals := catch()
	l, conn, made, err := a.attached(ctx, c)
	if err != nil {
		return err
	}
	defer conn.Close()
	a.runPoststart(ctx, c.id, c.hooks.Poststart)
	s := &session{app: a, dir: l.dir, tty: terminal, signals: signals}
	code, err := s.follow(context.WithoutCancel(ctx))
	exited := time.Now()
	_ = screen.Clean()
	if err != nil {
		return err
	}
	if !l.joined {
		_, _ = l.owner.Wait() // it has freed everything when it ends
	}
	if o.bundle != "" || o.remove {
		if err := a.remove(context.WithoutCancel(ctx), c.id, true); err != nil {
			return err
		}
	}
	if o.timeline {
		phases := made.Timeline
		if s.wait != nil {
			phases = s.wait.Timeline
		}
		a.printTimeline(began, exited, time.Now(), phases)
	}
	return &exitError{code: code}
}

// attached makes a container for which this process stands, for as long as it keeps the connection open.
func (a *App) attached(ctx context.Context, c *creation) (_ *launch, _ net.Conn, _ *controlv1.CreateResponse, err error) {
	l, err := a.begin(ctx, c)
	if err != nil {
		return nil, nil, nil, err
	}
	var conn net.Conn
	hooked := false
	defer func() {
		if err == nil {
			l.keep()
			return
		}
		if conn != nil {
			conn.Close()
		}
		l.abandon()
		if hooked {
			a.runPoststop(context.WithoutCancel(ctx), c.unmade())
		}
	}()
	stdin := a.in
	if !c.stdin {
		if stdin, err = os.Open(os.DevNull); err != nil {
			return nil, nil, nil, err
		}
		defer stdin.Close()
	}
	token, err := newToken()
	if err != nil {
		return nil, nil, nil, err
	}
	conn, err = control.SendStdio(l.dir.Path(""), token, [3]*os.File{stdin, os.Stdout, os.Stderr})
	if err != nil {
		return nil, nil, nil, err
	}
	hooked = true
	if err := c.runCreateHooks(ctx, os.Getpid()); err != nil {
		return nil, nil, nil, err
	}
	made, err := l.create(ctx, c.request(token, os.Getpid(), c.terminal()))
	if err != nil {
		return nil, nil, nil, err
	}
	return l, conn, made, writePidFile(c.pidFile, os.Getpid())
}

// printTimeline tells on stderr where the time went.
func (a *App) printTimeline(began, exited, freed time.Time, phases []*controlv1.Phase) {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	w := table(a.err)
	fmt.Fprintln(w, "PHASE\tBEGAN (ms)\tTOOK (ms)")
	for _, p := range phases {
		start, end := time.Unix(0, p.StartUnixNanos), time.Unix(0, p.EndUnixNanos)
		fmt.Fprintf(w, "%s\t%.1f\t%.1f\n", p.Name, ms(start.Sub(began)), ms(end.Sub(start)))
	}
	fmt.Fprintf(w, "exit seen\t%.1f\t\n", ms(exited.Sub(began)))
	fmt.Fprintf(w, "all freed\t%.1f\t%.1f\n", ms(freed.Sub(began)), ms(freed.Sub(exited)))
	w.Flush()
}
