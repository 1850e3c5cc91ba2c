package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/storage"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/vmm"
)

// ConsoleLog is the guest's console in the state directory.
const ConsoleLog = "console.log"

// CreateRequest describes a container.
type CreateRequest struct {
	ID string
	// Dir is the container's state directory, with a first state saved in it. Nil: Options.Dir, for the first.
	Dir    *state.Dir
	Bundle string // absolute path
	Spec   []byte // config.json
	// MountNS is the path of the mount namespace that has the files of a further container; empty: this process'.
	MountNS string
	Stdio   Stdio
	Start   bool
	// Pod asks for the VM of a pod without a container in it: Spec, which has neither process nor root, says what its
	// containers will share. By ID it is known as a container that runs for as long as the VM does.
	Pod bool

	// Layers are the EROFS files of an image, the lowest first; without them the bundle's root is used.
	Layers []string
	// WritableMiB is the size of the disk over Layers; 0 keeps what is written in guest memory.
	WritableMiB int

	// Root is a root made of disks, in place of the bundle's; its files stay the caller's. A further container has them
	// Attached, and what Attach gave is detached when the container is no more.
	Root     *RootDisks
	Attached *AttachedRoot

	blocks []vmm.Disk // block devices of the host that the first container is given

	HostPID    int  // the process that stands for the container on the host, 0 for none
	AutoRemove bool // remove the state directory and the writable disk at the end

	Engine Engine // of the container; empty for one that looks nowhere
	Files  []File // that the container gets beside those of its root

	User *UserNetwork // for a Spec without a network namespace; nil: as the configuration says
}

// Create makes a container: the first call with the VM around it, every later one, also several at once, in that
// VM. It owns the request's files, also when it fails. After the first has failed the sandbox has ended and nothing
// is left; a later one that fails leaves nothing of its own container.
func (s *Sandbox) Create(ctx context.Context, r CreateRequest) error {
	ctx, m, err := s.begin(ctx, r.ID)
	if err != nil {
		r.Stdio.Close()
		return err
	}
	first := m.first
	if first {
		err = s.create(ctx, r)
	} else {
		err = s.join(ctx, r)
	}
	if err != nil {
		s.awaitEnding(ctx, err)
	}
	s.mu.Lock()
	if err != nil && first {
		clear(s.containers) // what never was needs no exit, also where a teardown waits for us already
		s.remove = !s.options.Again
	}
	s.pod.made = s.pod.made || err == nil
	delete(s.making, m)
	s.mu.Unlock()
	close(m.through)
	if err != nil {
		err = s.cause(err)
	}
	if err != nil && first {
		s.abandon(err)
	} else {
		go s.containerStopped() // while it was made no end of another could end the VM
	}
	return err
}

// ownRoot tells whether the container's root is the bundle's.
func (r CreateRequest) ownRoot() bool {
	return len(r.Layers) == 0 && r.Root == nil && r.Attached == nil
}

// making is a Create that goes on.
type making struct {
	id      string
	first   bool
	cancel  context.CancelFunc // has it give up
	through chan struct{}      // closed when it is through, and what failed is undone
}

// begin notes a Create and tells whether it is the first, and refuses one that cannot be.
func (s *Sandbox) begin(ctx context.Context, id string) (_ context.Context, m *making, err error) {
	ctx, cancel := context.WithCancel(ctx)
	m = &making{id: id, cancel: cancel, through: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ending:
		err = fmt.Errorf("%w: the sandbox is ending: %s", ErrState, s.reason)
	case s.pod.begun && !s.pod.made:
		err = fmt.Errorf("%w: the sandbox's first container is not made yet", ErrState)
	}
	if err != nil {
		cancel()
		return nil, nil, err
	}
	m.first = !s.pod.begun
	s.pod.begun, s.making[m] = true, true
	return ctx, m, nil
}

// beingMade is the Create of a container that goes on, nil for none.
func (s *Sandbox) beingMade(id string) *making {
	s.mu.Lock()
	defer s.mu.Unlock()
	for m := range s.making {
		if m.id == id {
			return m
		}
	}
	return nil
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

// awaitEnding waits for the teardown that follows when a guest has gone away while a container was made in it: its reason says
// more than what broke.
func (s *Sandbox) awaitEnding(ctx context.Context, err error) {
	s.mu.Lock()
	watched := s.watched
	s.mu.Unlock()
	var from *guestError
	if !watched || !errors.As(err, &from) || !from.lost {
		return
	}
	select {
	case <-ctx.Done(): // which a teardown does to all that are made
	case <-time.After(undoTimeout):
	}
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
	if r.ID != s.options.Dir.ID() {
		return fmt.Errorf("%w: this sandbox was made for container %q", ErrState, s.options.Dir.ID())
	}
	c, err := s.newContainer(r, s.options.Dir)
	if err != nil {
		return err
	}
	if err := s.add(c); err != nil {
		return err
	}
	s.mu.Lock()
	s.remove = r.AutoRemove
	s.mu.Unlock()
	plan, size, err := s.plan(ctx, r)
	if err != nil {
		return err
	}
	if r.blocks, err = c.planned(plan); err != nil {
		return err
	}
	defer closeDisks(r.blocks)
	s.mu.Lock()
	s.pod.first, s.pod.plan, s.pod.size = c, plan, size
	s.mu.Unlock()
	if err := s.joinCgroup(ctx, c, plan, r); err != nil {
		return err
	}
	defer s.takeTurn(ctx)()
	filter := s.compileFilter(ctx, plan.Spec)
	root, err := s.startVM(ctx, c, plan, size, r)
	if err != nil {
		return err
	}
	if r.Pod {
		err = s.makePod(ctx, c, plan)
	} else {
		taken = true
		err = s.createInGuest(ctx, c, plan, root, r, filter())
	}
	if err != nil {
		return err
	}
	if err := s.limitCgroup(hostLimits(plan)); err != nil {
		return err
	}
	s.wantTemplate(size)
	return nil
}

// planned notes what its plan says of a first container, and opens what it is given of the host: block devices, and files that
// the guest has copies of.
func (c *container) planned(plan *ocispec.Plan) ([]vmm.Disk, error) {
	blocks, devices, err := openBlocks(plan, "block-")
	if err != nil {
		return nil, err
	}
	if err := c.sandbox.openFiles(c, plan); err != nil {
		closeDisks(blocks)
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.devices, c.warnings, c.limitMiB = devices, plan.Warnings, memoryLimit(plan)
	return blocks, nil
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
	remove, group, dir := s.remove, s.cgroup, s.pod.dir
	s.mu.Unlock()
	if !remove && s.options.Again {
		return Restore(dir)
	}
	if !remove {
		return nil
	}
	if err := group.Remove(); err != nil {
		s.log.Warn("free sandbox", "error", err)
	}
	if dir == s.options.Dir { // else another container may have the id
		if err := os.RemoveAll(s.options.Config.ContainerDir(s.options.Dir.ID())); err != nil {
			return fmt.Errorf("remove the container's data: %w", err)
		}
	}
	return dir.Remove()
}

// Restore has a container that was to be started again, and was not, be the stopped one that it was. One that came to run is
// left alone, and so is one that is gone.
func Restore(dir *state.Dir) error {
	unlock, err := dir.Lock(context.Background())
	if errors.Is(err, state.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	record, err := dir.Load()
	if err != nil || record.Status != state.Creating {
		return err
	}
	record.Status = state.Stopped
	return dir.Save(record)
}

// newContainer takes over the state directory of a container that is to be made.
func (s *Sandbox) newContainer(r CreateRequest, dir *state.Dir) (*container, error) {
	record, err := dir.Load()
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
		id: r.ID, sandbox: s, dir: dir, bare: r.Pod, init: newProcess(""), engine: r.Engine, record: record,
		execs: map[string]*process{}, subs: map[chan Event]struct{}{},
	}
	c.mu.Lock()
	err = c.save()
	c.mu.Unlock()
	return c, err
}

// add makes a container known.
func (s *Sandbox) add(c *container) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.id] != nil {
		return fmt.Errorf("%w: container %q exists in this sandbox", ErrState, c.id)
	}
	s.containers[c.id] = c
	return nil
}

// plan checks the configuration and decides what the guest gets.
func (s *Sandbox) plan(ctx context.Context, r CreateRequest) (*ocispec.Plan, ocispec.Size, error) {
	defer s.timing.begin(ctx, "plan")()
	bundle, err := bundleOf(r)
	if err != nil {
		return nil, ocispec.Size{}, err
	}
	if s.config, err = s.options.Config.Annotated(bundle.Spec.Annotations); err != nil {
		return nil, ocispec.Size{}, err
	}
	plan, err := ocispec.MakePlan(bundle, s.planOptions(r.ID))
	if err != nil {
		return nil, ocispec.Size{}, err
	}
	if err := s.checkHostNetwork(plan, r); err != nil {
		return nil, ocispec.Size{}, err
	}
	total, err := sys.MemoryTotal()
	if err != nil {
		return nil, ocispec.Size{}, err
	}
	sizing := ocispec.Sizing{
		MemoryMiB: s.config.MemoryMiB, OverheadMiB: s.config.OverheadMiB, VCPUs: s.config.VCPUs,
		MinMemoryMiB: config.MinMemoryMiB, HostMemoryMiB: int(total >> 20), HostCPUs: runtime.NumCPU(),
	}
	size, err := ocispec.SizeOf(ocispec.SandboxResources(bundle.Spec), sizing)
	return plan, size, err
}

// createInGuest has the agent make the container and follows it from then on.
func (s *Sandbox) createInGuest(ctx context.Context, c *container, plan *ocispec.Plan, root *agentv1.Rootfs, r CreateRequest, filter []byte) error {
	spec := plan.Spec
	if filter != nil {
		spec = withoutFilter(spec)
	}
	spec, own := withFiles(spec, r.ID, r.Files)
	data, err := json.Marshal(spec)
	if err != nil {
		r.Stdio.Close()
		return fmt.Errorf("encode configuration: %w", err)
	}
	if err := s.sendFiles(ctx, c); err != nil {
		r.Stdio.Close()
		return err
	}
	ctx, cancel := guest.Bound(ctx)
	defer cancel()
	defer s.timing.begin(ctx, "create container")()
	streams, names, err := openStreams(ctx, s.client(), r.Stdio)
	if err != nil {
		return explain(err, "create container %q", r.ID)
	}
	c.init.streams = streams
	request := &agentv1.CreateContainerRequest{Id: r.ID, Spec: data, Rootfs: root, Stdio: names, Start: r.Start, SeccompFilter: filter, Own: own}
	if len(plan.Shares) > 0 {
		request.Shares = []string{storage.ShareTag}
		request.ReportMounts = slices.ContainsFunc(plan.Shares, func(share ocispec.SharedPath) bool { return share.Return })
	}
	for _, m := range plan.Memory {
		request.Memory = append(request.Memory, &agentv1.Memory{Name: m.GuestName, Bytes: m.Bytes})
	}
	c.mu.Lock()
	request.Devices = c.devices
	c.mu.Unlock()
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
	done := make(chan error, 1)
	go func() {
		defer cancel()
		done <- step(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(2 * undoTimeout): // it had its time to give up by itself
		return errors.New("a step of the teardown does not end, and is left behind")
	}
}
