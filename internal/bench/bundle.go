package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/bench/load"
	"husk.dev/husk/internal/ocispec"
)

// session is one Run.
type session struct {
	options Options
	setting Setting
	before  map[int]bool    // descendants that are none of ours
	serial  atomic.Int64    // of container ids
	ramps   map[string]ramp // by runtime and root
	counts  bool            // this round does
	pods    *podHost        // of the group of pods
	weighed map[string]bool // runtimes whose pods were

	own sync.Map // pids of children that command waits for
	// starting is held for reading while a child is started and put into own, and for writing while
	// orphans are reaped, so that none of own is.
	starting sync.RWMutex
}

// Places in containers.
const (
	loadProgram = "/bench/load" // husk itself
	loadData    = "/bench/data" // the file that load.MakeData made
	scratch     = "/tmp"
	bindMount   = "/mnt/bind"
)

// bundles are the configurations that containers are made of; the root directory is the same for all.
var bundles = map[string][]string{
	"true":  {"/bin/true"},
	"hello": {"/bin/echo", "hello"},
	"idle":  {"/bin/sleep", "1000000"},
	"cpu":   {loadProgram, "bench-load", "cpu", "/bin/busybox"},
	// What is done in the root directory and in a bind mount of the host.
	"rootfs": {loadProgram, "bench-load", "files", scratch, loadData},
	"bind":   {loadProgram, "bench-load", "files", bindMount, bindMount + "/data"},
}

func (s *session) path(elem ...string) string {
	return filepath.Join(append([]string{s.setting.Dir}, elem...)...)
}

func (s *session) bundle(name string) string { return s.path("bundle", name) }

// prepare makes the root directory, the bundles and the images.
func (s *session) prepare(ctx context.Context) error {
	if err := s.makeRoot(); err != nil {
		return fmt.Errorf("make root directory: %w", err)
	}
	for name, args := range bundles {
		if err := s.makeBundle(name, args, ""); err != nil {
			return fmt.Errorf("make bundle: %w", err)
		}
	}
	made := map[string]bool{}
	for _, rt := range s.setting.Runtimes {
		if err := s.prepareRuntime(ctx, rt, made); err != nil {
			return err
		}
	}
	return nil
}

// prepareRuntime does what a runtime needs once. Those with images have one store, and made says what is in
// it.
func (s *session) prepareRuntime(ctx context.Context, rt Runtime, made map[string]bool) error {
	verb := func(args ...string) error {
		s.setting.Progress("%s: %s", rt.Name, args[0])
		return s.command(ctx, nil, append(slices.Clone(rt.Command), args...))
	}
	if len(rt.Prepare) > 0 {
		if err := verb(rt.Prepare...); err != nil {
			return err
		}
	}
	if rt.Image == "" || made[rt.Image] || !s.options.has("start") && !s.options.has("io") && !s.options.has("memory") {
		return nil
	}
	made[rt.Image] = true
	return verb("import", s.path("rootfs"), rt.Image)
}

// makeRoot makes a root directory of busybox, and the work with its data.
func (s *session) makeRoot() error {
	for _, dir := range []string{"rootfs/bin", "rootfs/bench", "rootfs/etc", "rootfs/proc", "rootfs/sys", "rootfs/dev", "rootfs" + scratch, "rootfs" + bindMount, "bind"} {
		if err := os.MkdirAll(s.path(dir), 0o755); err != nil {
			return err
		}
	}
	if err := copyFile(s.path("rootfs/bin/busybox"), s.setting.Busybox); err != nil {
		return err
	}
	for _, name := range []string{"sh", "true", "echo", "sleep"} {
		if err := os.Symlink("busybox", s.path("rootfs/bin", name)); err != nil {
			return err
		}
	}
	if err := os.WriteFile(s.path("rootfs/etc/passwd"), []byte("root:x:0:0:root:/:/bin/sh\n"), 0o644); err != nil {
		return err
	}
	if !s.options.has("io") && !s.options.has("cpu") && !s.options.has("net") {
		return nil
	}
	if err := copyFile(s.path("rootfs", loadProgram), s.setting.Binary); err != nil {
		return err
	}
	if !s.options.has("io") {
		return nil
	}
	if err := load.MakeData(s.path("rootfs", loadData)); err != nil {
		return err
	}
	return load.MakeData(s.path("bind/data"))
}

// makeBundle writes a configuration: that of `husk spec`, with a program and a root that can be written, and with the
// network namespace at a path unless that is empty.
func (s *session) makeBundle(name string, args []string, network string) error {
	spec := ocispec.Example(false, 0, 0)
	spec.Process.Terminal = false
	spec.Process.Args = args
	spec.Root = &specs.Root{Path: s.path("rootfs")}
	if network != "" {
		ocispec.Namespace(&spec, specs.NetworkNamespace).Path = network
	}
	if name == "bind" {
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: bindMount, Type: "bind", Source: s.path("bind"), Options: []string{"rbind", "rw"}})
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.bundle(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.bundle(name), "config.json"), data, 0o644)
}

// copyFile makes an executable copy, with pages of its own.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	return err
}
