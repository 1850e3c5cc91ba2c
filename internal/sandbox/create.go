package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/logfile"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/storage"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/vmm"
)

// ConsoleLog is the guest's console in the state directory.
const ConsoleLog = "console.log"

// guestCmdline keeps a dummy interface that nobody asked for out of the guest's network.
const guestCmdline = "dummy.numdummies=0"

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
	root, err := s.bootFor(ctx, c, plan, size, r)
	if err != nil {
		return err
	}
	taken = true
	return s.createInGuest(ctx, c, plan, root, r)
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
		MemoryMiB: s.options.Config.MemoryMiB, OverheadMiB: s.options.Config.OverheadMiB, VCPUs: s.options.Config.VCPUs,
		MinMemoryMiB: config.MinMemoryMiB, HostMemoryMiB: int(total >> 20), HostCPUs: runtime.NumCPU(),
	}
	if bundle.Spec.Linux == nil {
		size, err := ocispec.SizeOf(nil, sizing)
		return plan, size, err
	}
	size, err := ocispec.SizeOf(bundle.Spec.Linux.Resources, sizing)
	return plan, size, err
}

// bootFor lends the host's files, starts the VM and waits for its agent.
func (s *Sandbox) bootFor(ctx context.Context, c *container, plan *ocispec.Plan, size ocispec.Size, r CreateRequest) (*agentv1.Rootfs, error) {
	spec := vmm.Spec{
		ID: r.ID, Machine: s.options.Config.Machine, Kernel: s.options.Guest.Kernel, Initrd: s.options.Guest.Initrd,
		Cmdline: guestCmdline, MemoryMiB: size.MemoryMiB, VCPUs: size.VCPUs, RunDir: s.options.Dir.Path(""),
	}
	if s.options.Config.Accel != "auto" {
		spec.Accel = s.options.Config.Accel
	}
	spec.UID = sys.MonitorID()
	spec.GID = spec.UID
	root, err := s.lend(ctx, c, plan, r, &spec)
	if err != nil {
		return nil, err
	}
	if err := s.lendNetwork(c, plan, &spec); err != nil {
		return nil, err
	}
	if err := s.openConsole(&spec); err != nil {
		return nil, err
	}
	end := s.timing.begin("start VMM")
	vm, err := s.options.Driver.Start(ctx, spec)
	end()
	if err != nil {
		return nil, fmt.Errorf("start virtual machine: %w", err)
	}
	s.mu.Lock()
	s.vm = vm
	s.undo.Add(func() error { return bounded(vm.Stop) })
	s.mu.Unlock()
	if err := c.recordVM(vm); err != nil {
		return nil, err
	}
	if err := s.connect(ctx, vm); err != nil {
		return nil, err
	}
	return root, s.setNetwork(ctx)
}

// connect waits for the guest's agent.
func (s *Sandbox) connect(ctx context.Context, vm vmm.VM) error {
	defer s.timing.begin("boot guest")()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(s.options.Config.StartTimeoutSeconds)*time.Second)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // a VM that dies needs no patience
		select {
		case <-vm.Done():
			cancel()
		case <-stop:
		}
	}()
	client, err := guest.Connect(ctx, vm, "husk")
	if err != nil {
		return s.bootError(vm, err)
	}
	hello := client.Greeting()
	s.log.Info("guest answered", "kernel", printable(hello.Kernel), "runner", printable(hello.Runner),
		"memory_total_kib", hello.MemoryTotalKib, "memory_used_kib", hello.MemoryUsedKib,
		"agent_rss_kib", hello.AgentRssKib, "boot_us", hello.BootMicroseconds)
	s.mu.Lock()
	s.guest = client
	s.undo.Add(client.Close)
	s.undo.Add(func() error {
		return bounded(func(ctx context.Context) error { return s.flush(ctx, vm, client) })
	})
	s.mu.Unlock()
	go s.watch(vm, client)
	return nil
}

// bootError says why a guest did not answer, with what it last said.
func (s *Sandbox) bootError(vm vmm.VM, err error) error {
	select {
	case <-vm.Done():
		if vm.Err() != nil {
			err = vm.Err()
		}
	default:
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("it did not answer within %d s", s.options.Config.StartTimeoutSeconds)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := lastLines(s.console.Tail()); last != "" {
		return fmt.Errorf("boot guest: %w; last on its console: %s", err, last)
	}
	return fmt.Errorf("boot guest: %w; it printed nothing on its console", err)
}

// flush has the guest write what is dirty, so that files on shares are whole once the VM is gone.
func (s *Sandbox) flush(ctx context.Context, vm vmm.VM, client *guest.Client) error {
	select {
	case <-vm.Done():
		return nil
	default:
	}
	s.mu.Lock()
	needed := s.shared
	s.mu.Unlock()
	if !needed {
		return nil
	}
	if _, err := client.Sync(ctx, &agentv1.Empty{}); err != nil {
		s.log.Warn("guest could not flush its files", "error", err)
	}
	return nil
}

// openConsole keeps what the guest prints, bounded.
func (s *Sandbox) openConsole(spec *vmm.Spec) error {
	log, err := logfile.Open(s.options.Dir.Path(ConsoleLog), consoleLimit)
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		log.Close()
		return fmt.Errorf("make console pipe: %w", err)
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		defer r.Close()
		_, _ = io.Copy(log, r) // ends when the monitor does
	}()
	spec.Console = w
	s.mu.Lock()
	defer s.mu.Unlock()
	s.console = log
	s.undo.Add(func() error {
		select {
		case <-copied:
		case <-time.After(time.Second):
		}
		return log.Close()
	})
	return nil
}

// createInGuest has the agent make the container and follows it from then on.
func (s *Sandbox) createInGuest(ctx context.Context, c *container, plan *ocispec.Plan, root *agentv1.Rootfs, r CreateRequest) error {
	data, err := json.Marshal(plan.Spec)
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
	request := &agentv1.CreateContainerRequest{Id: r.ID, Spec: data, Rootfs: root, Stdio: names, Start: r.Start}
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

// recordVM puts the VM's processes on record, for whoever cleans up after a dead owner.
func (c *container) recordVM(vm vmm.VM) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Isolation = string(vmm.Emulated)
	if v, ok := vm.(vmm.Isolator); ok {
		c.record.Isolation = string(v.Isolation())
	}
	if p, err := state.Of("vmm", vm.PID()); err == nil {
		c.record.Helpers = append(c.record.Helpers, p)
	}
	return c.save()
}

// bounded gives an undo step a deadline of its own: it must not end with its caller, nor last for ever.
func bounded(step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	return step(ctx)
}
