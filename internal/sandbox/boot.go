package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/logfile"
	"husk.dev/husk/internal/network"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/template"
	"husk.dev/husk/internal/turn"
	"husk.dev/husk/internal/vmm"
)

// wakeTimeout bounds the wait for a guest that continues from a template; then it is booted.
const wakeTimeout = 30 * time.Second

// endWait is how long a VM may take to end once its guest has hung up.
const endWait = time.Second

// errNoAnswer is matched when a guest runs and its agent does not answer.
var errNoAnswer = errors.New("it did not answer")

// errDied is the errNoAnswer of a guest whose machine ended by itself.
var errDied = fmt.Errorf("%w", errNoAnswer)

// boots is how often a guest that dies while it boots is booted in all: an emulated one with several processors panics
// once in many boots, on a busy host more often.
const boots = 3

const (
	// turnHold is how long a start keeps others waiting at most.
	turnHold = 15 * time.Second
	// turnWait bounds the wait for others. It is longer than any crowd needs that a machine has memory for: those who
	// would start at its end, all at once, would have all of them fail.
	turnWait = 30 * time.Minute
)

// attempt is one try to start the VM: what it has made, and whether it was given up.
type attempt struct {
	undo    cleanup.Stack
	dropped chan struct{}    // closed before a failed attempt is undone
	network *network.Network // of a namespace, nil without one
	user    *network.User    // user-mode networking, nil without it
	ready   bool             // all of the host's was there; what failed after that is the VM
}

// startVM starts the VM, where its network may be left out without one when that cannot be had.
func (s *Sandbox) startVM(ctx context.Context, c *container, plan *ocispec.Plan, size ocispec.Size, r CreateRequest) (*agentv1.Rootfs, error) {
	root, err := s.startOn(ctx, c, plan, size, r)
	if !errors.Is(err, errUserNetwork) || r.User == nil || !r.User.Optional || ctx.Err() != nil {
		return root, err
	}
	c.mu.Lock()
	c.warnings = append(c.warnings, "the container has no network: "+err.Error())
	c.mu.Unlock()
	plan.Network = ocispec.NetworkNew // the guest's own, with loopback only
	return s.startOn(ctx, c, plan, size, r)
}

// startOn starts the VM from a template where there is one, and boots it where there is none or it fails: no
// start fails that a boot could serve.
func (s *Sandbox) startOn(ctx context.Context, c *container, plan *ocispec.Plan, size ocispec.Size, r CreateRequest) (*agentv1.Rootfs, error) {
	spec := s.vmSpec(r.ID, size)
	if plan.Network == ocispec.NetworkPath && s.config.Machine == machineAuto {
		spec.Machine = machinePCI // interfaces may come and go
	}
	card := s.cardFor(plan)
	if key, from := s.findTemplate(ctx, spec, card); from != nil {
		continued := spec
		continued.Machine, continued.From, continued.MemoryMiB = machinePCI, from, max(size.MemoryMiB, from.MemoryMiB)
		a := newAttempt()
		root, err := s.try(ctx, a, c, plan, r, continued)
		if err == nil || ctx.Err() != nil || !a.ready || errors.Is(err, errUserNetwork) {
			return root, err
		}
		s.log.Warn("the template failed, booting", "template", key, "error", err)
		s.doubt(absence{key, from.Card}, err)
	}
	for again := 1; ; again++ {
		root, err := s.try(ctx, newAttempt(), c, plan, r, spec)
		if !errors.Is(err, errDied) || ctx.Err() != nil || again == boots {
			return root, err
		}
		s.log.Warn("the guest died while it booted, booting it again", "error", err)
		c.warn(fmt.Sprintf("the guest died while it booted and was booted again: %v", err))
	}
}

// takeTurn waits until fewer VMs are starting than keep all processors busy: side by side they would only get in each
// other's way, and the first be ready when the last is. A start that gets no turn is made without.
func (s *Sandbox) takeTurn(ctx context.Context) (release func()) {
	defer s.timing.begin(ctx, "wait for turn")()
	ctx, cancel := context.WithTimeout(ctx, turnWait)
	defer cancel()
	release, err := turn.Queue{Dir: s.config.TurnsDir(), Places: runtime.NumCPU() + 1, Hold: turnHold}.Take(ctx)
	if err != nil {
		s.log.Warn("start out of turn", "error", err)
		return func() {}
	}
	return release
}

func newAttempt() *attempt { return &attempt{dropped: make(chan struct{})} }

// Machine types of the configuration.
const (
	machineAuto  = "auto"
	machinePCI   = "q35"
	machineSmall = "microvm"
)

// vmSpec is the VM as it boots, with no devices.
func (s *Sandbox) vmSpec(id string, size ocispec.Size) vmm.Spec {
	spec := vmm.Spec{
		ID: id, Machine: s.config.Machine, Kernel: s.options.Guest.Kernel, Initrd: s.options.Guest.Initrd,
		Cmdline: assets.Cmdline, MemoryMiB: size.MemoryMiB, VCPUs: size.VCPUs, RunDir: s.options.Dir.Path(""),
		NoACPI: s.options.Guest.NoACPI,
	}
	if spec.Machine == machineAuto {
		spec.Machine = machineSmall
	}
	if s.config.Accel != "auto" {
		spec.Accel = s.config.Accel
	}
	spec.UID = sys.MonitorID()
	spec.GID = spec.UID
	return spec
}

// templated tells whether VMs of this sandbox start from templates.
func (s *Sandbox) templated() bool {
	return s.options.Templates != nil && s.config.Template != "off" && s.config.Machine != machineSmall
}

// absence is a template that was not there, or that is no more.
type absence struct {
	key  string
	card vmm.Card // that it is for VMs with
}

// cardFor is the kind of network card that a VM for plan begins with.
func (s *Sandbox) cardFor(plan *ocispec.Plan) vmm.Card {
	switch {
	case !s.templated():
	case plan.Network == ocispec.NetworkHost:
		return vmm.StreamCard
	case plan.Network == ocispec.NetworkPath && network.HasCards(plan.NetNS):
		return vmm.TapCard
	}
	return vmm.NoCard
}

// findTemplate returns the template for a VM like spec, nil where there is none to start from. A VM with network cards
// does with a template that has none, and finds them like any other new device.
func (s *Sandbox) findTemplate(ctx context.Context, spec vmm.Spec, card vmm.Card) (key string, from *vmm.Snapshot) {
	if !s.templated() {
		return "", nil
	}
	defer s.timing.begin(ctx, "find template")()
	spec.Machine = machinePCI
	key, from = s.lookForTemplate(spec, card)
	if from == nil && card != vmm.NoCard {
		key, from = s.lookForTemplate(spec, vmm.NoCard)
	}
	return key, from
}

func (s *Sandbox) lookForTemplate(spec vmm.Spec, card vmm.Card) (key string, from *vmm.Snapshot) {
	key, err := template.Key(s.options.Driver, spec, card)
	if err == nil {
		from, err = s.options.Templates.Find(key)
	}
	if err != nil {
		s.log.Info("no template", "key", key, "card", card, "reason", err)
		s.wanted = append(s.wanted, absence{key, card})
		return key, nil
	}
	return key, from
}

// doubt rejects a template that no VM could be started from. One whose monitor was killed is as good as before.
func (s *Sandbox) doubt(t absence, why error) {
	if !errors.Is(why, vmm.ErrSnapshot) && !errors.Is(why, errNoAnswer) {
		return
	}
	if err := s.options.Templates.Reject(t.key, why); err != nil {
		s.log.Warn("remove template", "error", err)
	}
	s.wanted = append([]absence{t}, s.wanted...)
}

// wantTemplate has the first template built of those that were not there, now that the container runs.
func (s *Sandbox) wantTemplate(size ocispec.Size) {
	if s.config.Template != "on" || s.options.BuildTemplate == nil {
		return
	}
	i := slices.IndexFunc(s.wanted, func(t absence) bool { return t.key != "" && s.options.Templates.Wanted(t.key) })
	if i < 0 {
		return
	}
	s.mu.Lock()
	group := s.cgroup
	s.mu.Unlock()
	err := group.Outside(func() error { return s.options.BuildTemplate(size.MemoryMiB, size.VCPUs, s.wanted[i].card) })
	if err != nil {
		s.log.Warn("no template will be there next time", "error", err)
	}
}

// try lends the host's files, starts the VM and waits for its agent. When it fails nothing of it is left.
func (s *Sandbox) try(ctx context.Context, a *attempt, c *container, plan *ocispec.Plan, r CreateRequest, spec vmm.Spec) (*agentv1.Rootfs, error) {
	root, err := s.bring(ctx, a, c, plan, r, spec)
	if err != nil {
		close(a.dropped)
		undone := a.undo.Clean()
		if undone != nil {
			s.log.Error("undo the start of a virtual machine", "error", undone)
		}
		s.mu.Lock()
		s.vm, s.guest = nil, nil
		s.mu.Unlock()
		c.mu.Lock()
		if undone == nil {
			c.record.Helpers = nil // they are gone
		}
		c.mu.Unlock()
		return nil, err
	}
	made := a.undo.Release()
	s.mu.Lock()
	vm, client := s.vm, s.guest
	s.undo.Add(made.Clean)
	s.watched = true
	s.mu.Unlock()
	go s.watch(vm, client)
	return root, nil
}

func (s *Sandbox) bring(ctx context.Context, a *attempt, c *container, plan *ocispec.Plan, r CreateRequest, spec vmm.Spec) (*agentv1.Rootfs, error) {
	root, err := s.lend(ctx, a, c, plan, r, &spec)
	if err != nil {
		return nil, err
	}
	if err := s.lendNetwork(ctx, a, c, plan, &spec); err != nil {
		return nil, err
	}
	if err := s.lendUserNetwork(ctx, a, c, plan, r, &spec); err != nil {
		return nil, err
	}
	if err := s.openConsole(a, &spec); err != nil {
		vmm.CloseNICs(spec.NICs)
		return nil, err
	}
	a.ready = true
	end := s.timing.begin(ctx, "start VMM")
	starting, cancel := context.WithTimeout(ctx, s.patience(spec))
	vm, err := s.options.Driver.Start(starting, spec)
	cancel()
	end()
	if err != nil {
		return nil, fmt.Errorf("start virtual machine: %w", err)
	}
	a.undo.Add(func() error { return bounded(vm.Stop) })
	s.mu.Lock()
	s.vm = vm
	s.mu.Unlock()
	if err := c.recordVM(vm, spec); err != nil {
		return nil, err
	}
	if err := s.awaitUser(ctx, a); err != nil {
		return nil, err
	}
	if err := s.connect(ctx, a, vm, spec); err != nil {
		return nil, err
	}
	if err := s.setNetwork(ctx, a, vm, spec.From); err != nil {
		return root, err
	}
	return root, s.forwardNames(ctx, a, plan, r.User)
}

// patience is how long a VM may take to run, and then its guest to answer.
func (s *Sandbox) patience(spec vmm.Spec) time.Duration {
	limit := time.Duration(s.config.StartTimeoutSeconds) * time.Second
	if spec.From != nil {
		return min(limit, wakeTimeout)
	}
	return limit
}

// connect waits for the guest's agent.
func (s *Sandbox) connect(ctx context.Context, a *attempt, vm vmm.VM, spec vmm.Spec) error {
	phase, limit := "boot guest", s.patience(spec)
	if spec.From != nil {
		phase = "wake guest"
	}
	defer s.timing.begin(ctx, phase)()
	waiting, cancel := context.WithTimeout(ctx, limit)
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
	client, err := guest.Connect(waiting, vm, greeting(spec))
	if err != nil {
		return s.bootError(ctx, vm, err, limit)
	}
	hello := client.Greeting()
	s.log.Info("guest answered", "kernel", printable(hello.Kernel), "runner", printable(hello.Runner),
		"memory_total_kib", hello.MemoryTotalKib, "memory_used_kib", hello.MemoryUsedKib,
		"agent_rss_kib", hello.AgentRssKib, "boot_us", hello.BootMicroseconds)
	a.undo.Add(func() error { return bounded(func(context.Context) error { return client.Close() }) })
	a.undo.Add(func() error {
		return bounded(func(ctx context.Context) error { return s.flush(ctx, vm, client) })
	})
	s.mu.Lock()
	s.guest = client
	s.mu.Unlock()
	return nil
}

// greeting tells a guest that continues from a template what it has to look for.
func greeting(spec vmm.Spec) guest.Options {
	o := guest.Options{Hostname: "husk"}
	if spec.From == nil {
		return o
	}
	blocks := 0
	for _, d := range spec.Disks {
		if !d.Pmem {
			blocks++
		}
	}
	o.Disks = min(blocks, vmm.SavedDisks)
	nics := len(spec.NICs)
	if spec.From.Card != vmm.NoCard {
		nics--
	}
	o.MoreMemoryMiB = spec.MemoryMiB - spec.From.MemoryMiB
	o.Rescan = len(spec.Disks) > o.Disks || len(spec.Shares)+nics > 0 || o.MoreMemoryMiB > 0
	return o
}

// bootError says why a guest did not answer, with what it last said.
func (s *Sandbox) bootError(ctx context.Context, vm vmm.VM, err error, limit time.Duration) error {
	late := errors.Is(err, context.DeadlineExceeded)
	if !late {
		select { // a connection that breaks is most often the first that shows of the VM's end
		case <-vm.Done():
		case <-ctx.Done():
		case <-time.After(endWait):
		}
	}
	select {
	case <-vm.Done():
		if vm.Err() != nil {
			err = vm.Err()
			if endedByItself(err) {
				err = fmt.Errorf("%w: %w", errDied, err)
			}
		}
	default:
		if late {
			err = fmt.Errorf("%w within %d s", errNoAnswer, int(limit.Seconds()))
		} else if !errors.Is(err, context.Canceled) {
			err = fmt.Errorf("%w: %w", errNoAnswer, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := lastLines(s.console.Tail()); last != "" {
		return fmt.Errorf("boot guest: %w; last on its console: %s", err, last)
	}
	return fmt.Errorf("boot guest: %w; it printed nothing on its console", err)
}

// endedByItself tells whether err, the end of a monitor, is its own or its guest's doing, and not a signal's.
func endedByItself(err error) bool {
	var process interface{ Exited() bool } // os.ProcessState in exec.ExitError
	return !errors.As(err, &process) || process.Exited()
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
func (s *Sandbox) openConsole(a *attempt, spec *vmm.Spec) error {
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
	s.console = log
	s.mu.Unlock()
	a.undo.Add(func() error {
		select {
		case <-copied:
		case <-time.After(time.Second):
		}
		return log.Close()
	})
	return nil
}

// warn tells whoever starts the container.
func (c *container) warn(text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.warnings = append(c.warnings, text)
}

// emulated warns of a VM that is, on a host that was to do better.
func emulated(why error) string {
	return fmt.Sprintf("the VM is emulated, which is slow and no security boundary: %v (husk check says more)", why)
}

// recordVM puts the VM's processes on record, for whoever cleans up after a dead owner.
func (c *container) recordVM(vm vmm.VM, spec vmm.Spec) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.VMStart = state.StartBoot
	if spec.From != nil {
		c.record.VMStart = state.StartTemplate
	}
	c.record.Isolation = string(vmm.Emulated)
	if v, ok := vm.(vmm.Isolator); ok {
		class, why := v.Isolation()
		c.record.Isolation = string(class)
		if warning := emulated(why); why != nil && !slices.Contains(c.warnings, warning) { // it is not the first try
			c.warnings = append(c.warnings, warning)
		}
	}
	if p, err := state.Of("vmm", vm.PID()); err == nil {
		c.record.Helpers = append(c.record.Helpers, p)
	}
	return c.save()
}
