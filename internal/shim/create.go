package shim

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	events "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/hook"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

// Create implements the Task API: it makes a container, and the virtual machine before the first one.
func (s *service) Create(ctx context.Context, r *task.CreateTaskRequest) (*task.CreateTaskResponse, error) {
	if r.Checkpoint != "" {
		return nil, status.Error(codes.Unimplemented, "husk cannot restore a container from a checkpoint")
	}
	name := stateID(s.namespace, r.ID)
	if name == "" {
		return nil, status.Errorf(codes.InvalidArgument, "container %q: not a name that containerd gives", r.ID)
	}
	c := &container{id: r.ID, name: name, bundle: r.Bundle, execs: map[string]*process{}}
	s.mu.Lock()
	taken := s.containers[r.ID] != nil
	if !taken {
		s.containers[r.ID] = c
	}
	s.mu.Unlock()
	if taken {
		return nil, status.Errorf(codes.AlreadyExists, "container %q exists", r.ID)
	}
	init, err := s.make(ctx, c, r)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.containers, r.ID)
		s.log.Error("create container", "id", r.ID, "error", err)
		return nil, err
	}
	c.init = init
	s.events.publish(topicCreate, &events.TaskCreate{
		ContainerID: r.ID, Bundle: r.Bundle, Rootfs: r.Rootfs, Checkpoint: r.Checkpoint, Pid: uint32(init.pid),
		IO: &events.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
	go s.follow(s.box, c, init)
	go s.watchMemory(s.box, c)
	s.settle()
	return &task.CreateTaskResponse{Pid: uint32(init.pid)}, nil
}

func (s *service) stdio(id, in, out, errs string, terminal bool) stdio {
	return stdio{in: in, out: out, err: errs, terminal: terminal, namespace: s.namespace, id: id, log: s.log}
}

// settleWait is how long after a request a shim that has nothing to do but wait gives back what it took.
const settleWait = 3 * time.Second

// settle gives back, a little later, the memory that a request took.
func (s *service) settle() {
	if !s.settling.CompareAndSwap(false, true) {
		return // soon enough
	}
	time.AfterFunc(settleWait, func() {
		s.settling.Store(false)
		debug.FreeOSMemory()
		if err := sys.ReleaseText(); err != nil {
			s.log.Debug("give back memory", "error", err)
		}
	})
}

// make makes a container up to where it can be started. When it fails nothing of it is left.
func (s *service) make(ctx context.Context, c *container, r *task.CreateTaskRequest) (_ *process, err error) {
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			if failed := undo.Clean(); failed != nil {
				s.log.Error("undo the creation of a container", "id", c.id, "error", failed)
			}
		}
	}()
	host, settings, err := s.open(r.Options, c.bundle)
	if err != nil {
		return nil, err
	}
	data, err := readFile(filepath.Join(c.bundle, configFile))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if c.spec, err = ocispec.Parse(data); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "configuration: %v", err)
	}
	s.mu.Lock()
	if s.pod != nil { // whose shared memory the shim has mounted
		completeSpec(c.spec, s.pod.bundle)
	} else if len(r.Rootfs) == 0 {
		c.mounts = s.engine
	}
	s.mu.Unlock()
	if err := s.takeRoot(ctx, c, r.Rootfs); err != nil {
		return nil, err
	}
	defer c.closeDisks()
	undo.Add(c.dropRoot)
	undo.Add(func() error { return c.poststop(context.WithoutCancel(ctx)) })
	if err := c.standIn(ctx, s.log); err != nil {
		return nil, err
	}
	undo.Add(func() error { c.stand.End(); return nil })
	if err := (note{RunDir: host.Config.RunDir, Config: settings}).save(c.bundle); err != nil {
		return nil, err
	}
	init := newProcess("", s.stdio(r.ID, r.Stdin, r.Stdout, r.Stderr, r.Terminal))
	init.pid = c.stand.ID()
	if init.opened, err = init.stdio.open(); err != nil {
		return nil, err
	}
	undo.Add(func() error { init.opened.end(); return nil })
	if size := c.spec.Process.ConsoleSize; r.Terminal && size != nil {
		init.opened.Rows, init.opened.Columns = uint32(size.Height), uint32(size.Width)
	}
	return init, s.createIn(ctx, host, c, init)
}

// open reads the configuration that containerd's options name, the default one where they name none.
func (s *service) open(options *anypb.Any, bundle string) (host *Host, file string, err error) {
	if options.GetTypeUrl() == typeURL(&runtimeoptions.Options{}) {
		var o runtimeoptions.Options
		if err := proto.Unmarshal(options.Value, &o); err != nil {
			return nil, "", status.Errorf(codes.InvalidArgument, "read options: %v", err)
		}
		file = o.ConfigPath
		if len(o.ConfigBody) > 0 {
			file = filepath.Join(bundle, optionsFile)
			if err := state.WriteFile(file, o.ConfigBody, 0o600); err != nil {
				return nil, "", fmt.Errorf("save configuration: %w", err)
			}
		}
	} else if options.GetTypeUrl() != "" {
		s.log.Warn("options of another runtime are left out", "type", options.TypeUrl)
	}
	s.mu.Lock()
	host = s.host
	s.mu.Unlock()
	if host != nil { // the virtual machine's
		return host, file, nil
	}
	host, err = s.program.Open(file)
	return host, file, err
}

// standIn makes what stands for the container on the host, as cli's stand-in does for engines, and lets the hooks that
// belong before the container's own code change its network.
func (c *container) standIn(ctx context.Context, log *slog.Logger) (err error) {
	path, own := network(c.spec)
	if !own {
		path = "/proc/self/ns/net"
	}
	bundle := &ocispec.Bundle{Dir: c.bundle, Spec: c.spec}
	if c.disks == nil {
		if err := bundle.ResolveRoot(); err != nil {
			return err
		}
	}
	readOnly := c.spec.Root != nil && c.spec.Root.Readonly // disks need no root of the configuration's
	places := ocispec.Places(c.bundle, c.spec)
	c.stand, err = sys.NewStandIn(path, func() error {
		if c.disks != nil { // only the guest sees its files
			return sys.EnterNothing()
		}
		err := error(nil)
		if c.mounts != "" {
			err = sys.JoinMounts(c.mounts)
		}
		if err == nil {
			err = sys.Enter(bundle.Rootfs, readOnly, places) // which makes the mount points that are missing
		}
		if err != nil {
			log.Warn("show the container's files", "id", c.id, "error", err)
			return sys.EnterNothing()
		}
		return nil
	})
	if err != nil {
		return err
	}
	if c.spec.Hooks == nil {
		return nil
	}
	err = hook.RunCreate(ctx, *c.spec.Hooks, c.state(specs.StateCreating))
	if err == nil && own && path == "" {
		err = c.takeNetwork()
	}
	if err != nil {
		c.stand.End()
	}
	return err
}

// takeNetwork has the container join the network namespace of its stand-in where hooks have put something there.
func (c *container) takeNetwork() error {
	names, err := sys.Interfaces(c.stand.Network())
	if err != nil {
		return err
	}
	if slices.ContainsFunc(names, func(name string) bool { return name != "lo" }) {
		ocispec.Namespace(c.spec, specs.NetworkNamespace).Path = c.stand.Network()
	}
	return nil
}

// state is the container as the OCI's hooks see it.
func (c *container) state(status specs.ContainerState) specs.State {
	st := specs.State{Version: specs.Version, ID: c.id, Status: status, Bundle: c.bundle, Annotations: c.spec.Annotations}
	if status != specs.StateStopped {
		st.Pid = c.stand.ID()
	}
	return st
}

// poststop runs the hooks that undo what the others did, also where the container came to nothing.
func (c *container) poststop(ctx context.Context) error {
	if c.spec.Hooks == nil {
		return nil
	}
	return hook.RunAll(ctx, "poststop", c.spec.Hooks.Poststop, c.state(specs.StateStopped))
}

// poststart runs the hooks after the start; a failing one is a warning (runtime.md, "Lifecycle").
func (s *service) poststart(ctx context.Context, c *container) {
	if c.spec.Hooks == nil {
		return
	}
	if err := hook.RunAll(ctx, "poststart", c.spec.Hooks.Poststart, c.state(specs.StateRunning)); err != nil {
		s.log.Warn("after the start", "error", err)
	}
}
