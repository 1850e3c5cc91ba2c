package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/storage"
	"husk.dev/husk/internal/sys"
)

// ConsoleLog is the guest's console in the state directory.
const ConsoleLog = "console.log"

// CreateRequest describes a container.
type CreateRequest struct {
	ID     string
	Bundle string // absolute path
	Spec   []byte // config.json
	Stdio  Stdio
	Start  bool

	// Layers are the EROFS files of an image, the lowest first; without them the bundle's root is used.
	Layers []string
	// WritableMiB is the size of the disk over Layers; 0 keeps what is written in guest memory.
	WritableMiB int

	HostPID    int  // the process that stands for the container on the host, 0 for none
	AutoRemove bool // remove the state directory and the writable disk at the end
}

// Create makes a container and the VM around it. It owns the request's files, also when it fails; after a
// failure the sandbox has ended and nothing is left.
func (s *Sandbox) Create(ctx context.Context, r CreateRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	created := make(chan struct{})
	s.mu.Lock()
	busy := s.created != nil || s.ending
	if !busy {
		s.created, s.cancelCreate = created, cancel
	}
	s.mu.Unlock()
	if busy {
		r.Stdio.Close()
		return fmt.Errorf("%w: the sandbox has its container already", ErrState)
	}
	err := s.create(ctx, r)
	if err != nil {
		s.mu.Lock()
		clear(s.containers) // what never was needs no exit, also where a teardown waits for us already
		s.remove = true
		s.mu.Unlock()
	}
	close(created)
	if err != nil {
		err = s.cause(err)
		s.abandon(err)
	}
	return err
}

// cause is why Create failed: where a teardown cut it short, its reason and not what that broke.
func (s *Sandbox) cause(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending && s.reason != "" {
		return fmt.Errorf("create container: %s", s.reason)
	}
	return err
}

// create is Create up to the point where a failure is undone.
func (s *Sandbox) create(ctx context.Context, r CreateRequest) error {
	taken := false // whether the streams own the request's files
	defer func() {
		if !taken {
			r.Stdio.Close()
		}
	}()
	if s.options.GuestErr != nil {
		return s.options.GuestErr
	}
	c, err := s.newContainer(r)
	if err != nil {
		return err
	}
	plan, size, err := s.plan(r)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.warnings = plan.Warnings
	s.mu.Unlock()
	if err := s.joinCgroup(c, plan, r); err != nil {
		return err
	}
	defer s.takeTurn(ctx)()
	filter := s.compileFilter(ctx, plan.Spec)
	root, err := s.startVM(ctx, c, plan, size, r)
	if err != nil {
		return err
	}
	taken = true
	if err := s.createInGuest(ctx, c, plan, root, r, filter()); err != nil {
		return err
	}
	s.wantTemplate(size)
	return nil
}

// abandon frees what a failed Create has made.
func (s *Sandbox) abandon(cause error) {
	s.log.Error("create container", "error", cause)
	s.teardown(cause.Error())
}

// Remove takes away the state directory and the writable disk of a container that was never made or that
// is to leave nothing behind. The owner calls it last, once Done is closed.
func (s *Sandbox) Remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.remove {
		return nil
	}
	if err := s.cgroup.Remove(); err != nil {
		s.log.Warn("free sandbox", "error", err)
	}
	if err := os.RemoveAll(s.options.Config.ContainerDir(s.options.Dir.ID())); err != nil {
		return fmt.Errorf("remove the container's data: %w", err)
	}
	return s.options.Dir.Remove()
}

func (s *Sandbox) newContainer(r CreateRequest) (*container, error) {
	if r.ID != s.options.Dir.ID() {
		return nil, fmt.Errorf("%w: this sandbox was made for container %q", ErrState, s.options.Dir.ID())
	}
	record, err := s.options.Dir.Load()
	if err != nil {
		return nil, err
	}
	if record.Owner, err = state.Self("owner"); err != nil {
		return nil, err
	}
	if r.HostPID > 0 {
		if record.Host, err = state.Of("attend", r.HostPID); err != nil {
			return nil, err
		}
	}
	c := &container{
		id: r.ID, sandbox: s, dir: s.options.Dir, init: newProcess(""), record: record,
		execs: map[string]*process{}, subs: map[chan Event]struct{}{},
	}
	c.mu.Lock()
	err = c.save()
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[r.ID] = c
	s.remove = r.AutoRemove
	return c, nil
}

// plan checks the configuration and decides what the guest gets.
func (s *Sandbox) plan(r CreateRequest) (*ocispec.Plan, ocispec.Size, error) {
	defer s.timing.begin("plan")()
	bundle, err := ocispec.FromSpec(r.Bundle, r.Spec)
	if err != nil {
		return nil, ocispec.Size{}, err
	}
	if s.config, err = s.options.Config.Annotated(bundle.Spec.Annotations); err != nil {
		return nil, ocispec.Size{}, err
	}
	if len(r.Layers) == 0 {
		if err := bundle.ResolveRoot(); err != nil {
			return nil, ocispec.Size{}, err
		}
	}
	plan, err := ocispec.MakePlan(bundle, ocispec.PlanOptions{ShareDir: agentv1.ShareDir + "/" + storage.ShareTag, Name: r.ID})
	if err != nil {
		return nil, ocispec.Size{}, err
	}
	if plan.Network == ocispec.NetworkHost {
		return nil, ocispec.Size{}, errHostNetwork
	}
	total, err := sys.MemoryTotal()
	if err != nil {
		return nil, ocispec.Size{}, err
	}
	sizing := ocispec.Sizing{
		MemoryMiB: s.config.MemoryMiB, OverheadMiB: s.config.OverheadMiB, VCPUs: s.config.VCPUs,
		MinMemoryMiB: config.MinMemoryMiB, HostMemoryMiB: int(total >> 20), HostCPUs: runtime.NumCPU(),
	}
	if bundle.Spec.Linux == nil {
		size, err := ocispec.SizeOf(nil, sizing)
		return plan, size, err
	}
	size, err := ocispec.SizeOf(bundle.Spec.Linux.Resources, sizing)
	return plan, size, err
}

// createInGuest has the agent make the container and follows it from then on.
func (s *Sandbox) createInGuest(ctx context.Context, c *container, plan *ocispec.Plan, root *agentv1.Rootfs, r CreateRequest, filter []byte) error {
	spec := plan.Spec
	if filter != nil {
		spec = withoutFilter(spec)
	}
	data, err := json.Marshal(spec)
	if err != nil {
		r.Stdio.Close()
		return fmt.Errorf("encode configuration: %w", err)
	}
	ctx, cancel := guest.Bound(ctx)
	defer cancel()
	defer s.timing.begin("create container")()
	streams, names, err := openStreams(ctx, s.client(), r.Stdio)
	if err != nil {
		return err
	}
	c.init.streams = streams
	request := &agentv1.CreateContainerRequest{Id: r.ID, Spec: data, Rootfs: root, Stdio: names, Start: r.Start, SeccompFilter: filter}
	if len(plan.Shares) > 0 {
		request.Shares = []string{storage.ShareTag}
	}
	answer, err := s.client().CreateContainer(ctx, request)
	if err != nil {
		streams.close()
		return explainProgram(err, plan.Spec.Process.Args, "create container %q", r.ID)
	}
	c.mu.Lock()
	c.record.GuestPID = int(answer.Pid)
	err = c.move(state.Created)
	if err == nil && r.Start {
		err = c.move(state.Running)
	}
	c.mu.Unlock()
	if err != nil {
		streams.close()
		return err
	}
	c.guard(c.init, r.Stdio.Gone)
	go c.follow()
	return nil
}

// bounded gives an undo step a deadline of its own: it must not end with its caller, nor last for ever.
func bounded(step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	return step(ctx)
}
