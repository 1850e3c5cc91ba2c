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
	"strings"
	"time"

	"github.com/spf13/cobra"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/image"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
)

// runOptions are the flags of run.
type runOptions struct {
	bundleFlags
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
	hostname    string
	memory      string
	cpus        float64
	pidsLimit   int64
	storageSize string
	timeline    bool
	pull        string
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
			"  husk run -d --name web nginx\n  husk run --rm --rootfs ./rootfs -- /bin/true\n  husk run --bundle . mycontainer",
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case o.bundle != "" && len(args) != 1:
				return errors.New("run --bundle DIR takes one argument, the container's id")
			case o.rootfs == "" && len(args) == 0:
				return errors.New("run needs an image (or --rootfs DIR, or --bundle DIR and an id)")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.bundle != "" {
				return a.runBundle(cmd.Context(), args[0], &o)
			}
			err := a.runImage(cmd.Context(), args, &o)
			var exit *exitError
			if err != nil && !errors.As(err, &exit) {
				return &exitError{exitRunFailed, err}
			}
			return err
		},
	}
	o.register(cmd, "")
	f := cmd.Flags()
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
	f.StringVar(&o.hostname, "hostname", "", "host `NAME` (default: the container's id)")
	f.StringVarP(&o.memory, "memory", "m", "", "memory limit, such as 256m; sizes the virtual machine too")
	f.Float64Var(&o.cpus, "cpus", 0, "CPU limit, such as 1.5; sizes the virtual machine too")
	f.Int64Var(&o.pidsLimit, "pids-limit", 0, "most processes")
	f.StringVar(&o.storageSize, "storage-size", "", "most that can be written to the root, such as 2g; 0 keeps it in guest memory")
	f.BoolVar(&o.timeline, "timeline", false, "print how long each phase took")
	f.StringVar(&o.pull, "pull", "missing", "when to pull: always, missing or never")
	return cmd
}

// runBundle is runc's run.
func (a *App) runBundle(ctx context.Context, id string, o *runOptions) error {
	c, err := a.fromBundle(id, o.bundleFlags)
	if err != nil {
		return err
	}
	c.start = true
	if o.detach {
		if err := c.checkTerminal(); err != nil {
			return err
		}
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
	b := &builder{app: a, options: o, id: id}
	lease, err := b.build(ctx, c, args)
	if err != nil {
		return err
	}
	defer lease.Close()
	if !o.detach {
		c.autoRemove = o.remove
		return a.foreground(ctx, c, o)
	}
	c.autoRemove = o.remove
	if !o.tty {
		c.log = filepath.Join(a.config.ContainerDir(id), "output.log")
		c.record.Log = c.log
	}
	if _, err := a.detached(ctx, c); err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.out, id)
	return err
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
	_, _ = l.owner.Wait() // it has freed everything when it ends
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
	defer func() {
		if err == nil {
			l.keep()
			return
		}
		if conn != nil {
			conn.Close()
		}
		l.abandon()
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

// builder turns run's flags into a container.
type builder struct {
	app     *App
	options *runOptions
	id      string
}

// closer ends the hold on an image.
type closer interface{ Close() error }

type noLease struct{}

func (noLease) Close() error { return nil }

func (b *builder) build(ctx context.Context, c *creation, args []string) (closer, error) {
	spec, err := defaultSpec()
	if err != nil {
		return nil, err
	}
	var lease closer = noLease{}
	if b.options.rootfs != "" {
		err = b.fromDirectory(&spec, args)
	} else {
		lease, err = b.fromImage(ctx, c, &spec, args)
	}
	if err == nil {
		err = b.apply(&spec)
	}
	if err == nil {
		err = b.seal(c, &spec)
	}
	if err != nil {
		if lease != nil {
			_ = lease.Close()
		}
		return nil, err
	}
	return lease, nil
}

func (b *builder) fromDirectory(spec *specs.Spec, args []string) error {
	dir, err := filepath.Abs(b.options.rootfs)
	if err != nil {
		return fmt.Errorf("--rootfs: %w", err)
	}
	spec.Root.Path = dir
	img := image.Image{}
	for file, to := range map[string]*[]byte{"etc/passwd": &img.Passwd, "etc/group": &img.Group} {
		*to = readInside(dir, file)
	}
	process, err := image.ProcessSpec(img, b.process(args))
	if err != nil {
		return err
	}
	b.merge(spec, process)
	return nil
}

// readInside reads a small file of a root directory without following links out of it.
func readInside(dir, name string) []byte {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	data := make([]byte, 1<<20)
	n, _ := f.Read(data)
	return data[:n]
}

func (b *builder) fromImage(ctx context.Context, c *creation, spec *specs.Spec, args []string) (closer, error) {
	store, err := b.app.store()
	if err != nil {
		return nil, err
	}
	img, err := b.app.find(ctx, store, args[0], b.options.pull)
	if err != nil {
		return nil, err
	}
	lease, err := store.Use(ctx, img)
	if err != nil {
		return nil, err
	}
	process, err := image.ProcessSpec(img, b.process(args[1:]))
	if err != nil {
		lease.Close()
		return nil, err
	}
	b.merge(spec, process)
	spec.Root.Path = "rootfs" // unused: the root is made of the image's layers
	c.record.Image = args[0]
	size := int64(b.app.config.WritableMiB) << 20
	if b.options.storageSize == "0" {
		size = 0
	} else if b.options.storageSize != "" {
		if size, err = parseBytes(b.options.storageSize); err != nil {
			lease.Close()
			return nil, fmt.Errorf("--storage-size: %w", err)
		}
	}
	c.image = &controlv1.Image{Layers: img.Layers, WritableBytes: uint64(size)}
	return lease, nil
}

func (b *builder) process(args []string) image.Run {
	r := image.Run{Args: args, User: b.options.user, Cwd: b.options.workdir, TTY: b.options.tty}
	for _, e := range b.options.env {
		if !strings.Contains(e, "=") { // the caller's own, where it has one
			value, set := os.LookupEnv(e)
			if !set {
				continue
			}
			e += "=" + value
		}
		r.Env = append(r.Env, e)
	}
	if b.options.entrypoint != "" {
		r.Entrypoint = []string{b.options.entrypoint}
	}
	return r
}

// merge puts what the image says into the defaults, whose capabilities and limits stay.
func (b *builder) merge(spec *specs.Spec, process *specs.Process) {
	p := spec.Process
	p.Args, p.Env, p.Cwd, p.User, p.Terminal = process.Args, process.Env, process.Cwd, process.User, process.Terminal
	if p.Terminal {
		p.Env = append([]string{"TERM=" + termOr("xterm")}, p.Env...)
	}
	p.Env = append([]string{"HOSTNAME=" + b.hostname()}, p.Env...)
}

func termOr(other string) string {
	if t := os.Getenv("TERM"); t != "" {
		return t
	}
	return other
}

func (b *builder) hostname() string {
	if b.options.hostname != "" {
		return b.options.hostname
	}
	return b.id[:min(len(b.id), 64)]
}

// apply puts the rest of the flags into spec.
func (b *builder) apply(spec *specs.Spec) error {
	o := b.options
	spec.Hostname = b.hostname()
	spec.Root.Readonly = o.readOnly
	limits := &specs.LinuxResources{}
	if spec.Linux.Resources != nil {
		limits = spec.Linux.Resources
	}
	if o.memory != "" {
		n, err := parseBytes(o.memory)
		if err != nil {
			return fmt.Errorf("--memory: %w", err)
		}
		limits.Memory = &specs.LinuxMemory{Limit: &n}
	}
	if o.cpus < 0 {
		return fmt.Errorf("--cpus %g: must be more than 0", o.cpus)
	}
	if o.cpus > 0 {
		period, quota := uint64(100_000), int64(o.cpus*100_000)
		limits.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
	if o.pidsLimit > 0 {
		limits.Pids = &specs.LinuxPids{Limit: &o.pidsLimit}
	}
	spec.Linux.Resources = limits
	for _, v := range o.volumes {
		m, err := parseVolume(v)
		if err != nil {
			return fmt.Errorf("--volume %s: %w", v, err)
		}
		spec.Mounts = append(spec.Mounts, m)
	}
	return nil
}

// parseVolume takes HOST:CONTAINER[:OPTION,…] with the options ro and rw.
func parseVolume(v string) (specs.Mount, error) {
	parts := strings.Split(v, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" {
		return specs.Mount{}, errors.New("must be HOST:CONTAINER[:ro]")
	}
	if !filepath.IsAbs(parts[1]) {
		return specs.Mount{}, fmt.Errorf("the path in the container, %q, must be absolute", parts[1])
	}
	source, err := filepath.Abs(parts[0])
	if err != nil {
		return specs.Mount{}, err
	}
	if _, err := os.Stat(source); err != nil {
		return specs.Mount{}, fmt.Errorf("%s does not exist on this machine", source)
	}
	m := specs.Mount{Type: "bind", Source: source, Destination: parts[1], Options: []string{"rbind", "rprivate"}}
	if len(parts) == 3 {
		for _, option := range strings.Split(parts[2], ",") {
			if option != "ro" && option != "rw" {
				return m, fmt.Errorf("unknown option %q (ro and rw are known)", option)
			}
			m.Options = append(m.Options, option)
		}
	}
	return m, nil
}

// seal checks what was built and puts it into c.
func (b *builder) seal(c *creation, spec *specs.Spec) error {
	c.record.Name = b.options.name
	c.record.Rootfs = b.options.rootfs
	c.bundle = &ocispec.Bundle{Dir: filepath.Join(b.app.config.RunDir, b.id), Spec: spec}
	c.record.Bundle = c.bundle.Dir
	return c.encode()
}
