package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/image"
	"husk.dev/husk/internal/ocispec"
)

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
		err = b.network(c, &spec)
	}
	c.made.User, c.made.Etc = c.user, c.etc
	if c.user != nil {
		c.made.UserNetwork, c.made.Publish = true, c.user.Publish
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
	c.made.ImageID, c.made.Layers = img.ID, img.Layers
	if c.made.StopSignal == "" {
		c.made.StopSignal = img.Config.StopSignal
	}
	size := int64(b.app.config.WritableMiB) << 20
	if b.options.storageSize == "0" {
		size = 0
	} else if b.options.storageSize != "" {
		if size, err = parseBytes(b.options.storageSize); err != nil {
			lease.Close()
			return nil, fmt.Errorf("--storage-size: %w", err)
		}
	}
	c.made.WritableBytes = uint64(size)
	c.image = c.made.image()
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

// leastCPUs is the least quota that the kernel takes, 1 ms, in a period of 100 ms.
const leastCPUs = 0.01

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
	if o.cpus != 0 {
		if most := runtime.NumCPU(); o.cpus < leastCPUs || o.cpus > float64(most) {
			return fmt.Errorf("--cpus %g: must be from %g to %d, the processors of this machine", o.cpus, leastCPUs, most)
		}
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
