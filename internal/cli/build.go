package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/image"
	"husk.dev/husk/internal/network"
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
	c.userNetwork, c.publish = b.options.network == "user", b.options.publish
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
	if err := b.network(spec); err != nil {
		return err
	}
	for _, v := range o.volumes {
		m, err := parseVolume(v)
		if err != nil {
			return fmt.Errorf("--volume %s: %w", v, err)
		}
		spec.Mounts = append(spec.Mounts, m)
	}
	return nil
}

// network gives the container the network that the flags name.
func (b *builder) network(spec *specs.Spec) error {
	o := b.options
	if o.network != "user" {
		if len(o.publish) > 0 {
			return errors.New("--publish: needs --network user (whoever made a network namespace publishes its ports)")
		}
		return setNetwork(spec, o.network)
	}
	for _, p := range o.publish {
		if _, err := network.ParsePort(p); err != nil {
			return fmt.Errorf("--publish: %w", err)
		}
	}
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace })
	const file = "/etc/resolv.conf"
	if slices.ContainsFunc(o.volumes, func(v string) bool { return strings.HasSuffix(strings.TrimSuffix(v, ":ro"), ":"+file) }) {
		return nil
	}
	source := filepath.Join(b.app.config.DataDir, "resolv.conf")
	if err := writeOnce(source, "nameserver "+network.UserDNS+"\n"); err != nil {
		return fmt.Errorf("--network user: %w", err)
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Type: "bind", Source: source, Destination: file, Options: []string{"rbind", "rprivate", "ro"}})
	return nil
}

// writeOnce makes a file that always has the same content.
func writeOnce(name, content string) error {
	if data, err := os.ReadFile(name); err == nil && string(data) == content {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".resolv-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// setNetwork gives the container the network that --network names.
func setNetwork(spec *specs.Spec, network string) error {
	path, isPath := strings.CutPrefix(network, "ns:")
	switch {
	case network == "none":
		return nil
	case network == "host":
		return errors.New("--network host: a virtual machine cannot have the host's network (none, user and ns:PATH are known)")
	case !isPath || path == "":
		return fmt.Errorf("--network %q: must be none, user or ns:PATH", network)
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("--network: %w", err)
	}
	setNetworkPath(spec, path)
	return nil
}

// setNetworkPath has the container join a network namespace.
func setNetworkPath(spec *specs.Spec, path string) {
	if ns := ocispec.Namespace(spec, specs.NetworkNamespace); ns != nil {
		ns.Path = path
		return
	}
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: path})
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
