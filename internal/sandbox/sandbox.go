// Package sandbox is one VM and its containers: the order in which things are made, and undone.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/hostcgroup"
	"husk.dev/husk/internal/logfile"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/template"
	"husk.dev/husk/internal/vmm"
)

const (
	// consoleLimit bounds the guest's console log on disk, in bytes.
	consoleLimit = 1 << 20
	// undoTimeout bounds what is undone in a teardown: nothing there may wait for the guest for ever.
	undoTimeout = 15 * time.Second
	// pingEvery is how often the guest's clock is set and its agent has to show that it lives.
	pingEvery = 30 * time.Second
)

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("not found")
	ErrState    = errors.New("wrong state")
)

// Options is what a Sandbox is made from.
type Options struct {
	Config config.Config
	Driver vmm.Driver
	Guest  assets.Guest
	// GuestErr is why there is no Guest, for the first Create to tell.
	GuestErr error
	// Templates is where VMs may start from; nil boots all.
	Templates *template.Store
	// BuildTemplate starts the building of the template for VMs of a size, with a network card of a kind, and does
	// not wait for it; nil builds none.
	BuildTemplate func(memoryMiB, vcpus int, card vmm.Card) error
	// Dir is the state directory of the container that the VM is made for, and of the VM itself.
	Dir *state.Dir
	// OutOfMemory hears that the guest's kernel killed a process of a container for want of memory, before the end of the
	// container is told; nil: nobody does. It is called at most once at a time and a second for one container, whose end waits
	// for it a little.
	OutOfMemory func(id string, engine Engine)
	// HostMounts is the path of the mount namespace in which the host sees what containers mount where that is to come back
	// ("rshared"); "": nowhere.
	HostMounts string
	// Keep has the VM outlive its last container, until End.
	Keep bool
	// Again has the first container be one that has stopped, which stays as it was when it cannot be made.
	Again bool
	Log   *slog.Logger
}

// Sandbox is one VM with its containers.
type Sandbox struct {
	options Options
	log     *slog.Logger
	done    chan struct{} // closed when all is undone
	timing  timeline

	config config.Config // options.Config with the container's annotations; written before the VM is started
	wanted []absence     // the templates that were not there, the best first, as config

	grumbles atomic.Int32  // see grumble
	puts     atomic.Uint64 // numbers what PutFiles sends

	mu         sync.Mutex // guards the fields below
	vm         vmm.VM
	guest      *guest.Client
	console    *logfile.Writer
	containers map[string]*container
	shells     map[string]*process // debug shells, which are in no container
	undo       cleanup.Stack       // all host resources, in the order they were made
	ending     bool                // teardown has begun
	reason     string              // why, valid with ending
	watched    bool                // the VM's end is noticed
	shared     bool                // the guest writes to files of the host
	remove     bool                // nothing is to be left, see Remove
	cgroup     *hostcgroup.Group   // what this process has joined; nil: nothing
	making     map[*making]bool    // the Creates that go on
	copies     map[string]*copied  // directories of the host that the guest has copies of, by their names there
	pod        pod                 // what containers that come later share with the first
}

// New makes a sandbox with no VM yet: the first Create starts it.
func New(options Options) *Sandbox {
	return &Sandbox{
		options: options, config: options.Config, log: options.Log, done: make(chan struct{}), containers: map[string]*container{},
		shells: map[string]*process{}, making: map[*making]bool{}, copies: map[string]*copied{},
		pod: pod{dir: options.Dir},
	}
}

// Done is closed when the sandbox has ended and all its host resources are freed.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// End ends the VM whatever runs in it and waits until all is freed.
func (s *Sandbox) End(reason string) {
	s.teardown(reason)
	<-s.done
}

// Disown ends a sandbox whose container was not made by the time its maker has gone.
func (s *Sandbox) Disown(reason string) {
	for _, c := range s.all() {
		c.mu.Lock()
		made := c.record.Status != state.Creating
		c.mu.Unlock()
		if made {
			return
		}
	}
	s.mu.Lock()
	s.remove = !s.options.Again
	s.mu.Unlock()
	s.End(reason)
}

// all are the containers that there are. Nobody waits for one's lock with the sandbox' held.
func (s *Sandbox) all() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.containers))
}

// teardown frees everything, the last made first. Only the first call does; done tells when it is through.
func (s *Sandbox) teardown(reason string) {
	s.mu.Lock()
	if s.ending {
		s.mu.Unlock()
		return
	}
	s.ending, s.reason = true, reason
	goesOn := maps.Clone(s.making)
	s.mu.Unlock()
	for m := range goesOn {
		m.cancel()
	}
	for m := range goesOn { // what they still make must be undone too
		<-m.through
	}
	s.mu.Lock()
	undo := s.undo.Release()
	s.mu.Unlock()

	if err := undo.Clean(); err != nil {
		s.log.Error("free sandbox", "error", err)
	}
	for _, c := range s.all() {
		s.forgetFiles(c)
		c.vmGone(reason)
	}
	close(s.done)
}

// watch follows the guest until the VM is gone or its agent no longer answers, and then ends the sandbox.
func (s *Sandbox) watch(vm vmm.VM, client *guest.Client) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	lost := make(chan error, 2)
	go func() { lost <- client.Watch(ctx, s.handle) }()
	go func() { lost <- ping(ctx, client) }()

	reason := ""
	select {
	case <-s.done:
		return
	case <-vm.Done():
	case err := <-lost:
		// The VM going away breaks the connection too, and its own reason is the better one.
		select {
		case <-vm.Done():
		case <-s.done:
			return
		case <-time.After(time.Second):
			reason = err.Error()
			s.cannotFlush()
		}
	}
	if reason == "" {
		reason = "the virtual machine ended"
		if err := vm.Err(); err != nil {
			reason = err.Error()
		}
	}
	s.mu.Lock()
	console := s.console
	s.mu.Unlock()
	if console != nil && lastLines(console.Tail()) != "" {
		reason += "; last on the guest's console: " + lastLines(console.Tail())
	}
	s.mu.Lock()
	ending := s.ending
	s.mu.Unlock()
	if !ending {
		s.log.Error("virtual machine lost", "reason", reason)
	}
	s.teardown(reason)
}

// ping keeps the guest's clock in step until the agent does not answer. The first one comes at once: what
// the greeting said of the time is as old as the boot was long.
func ping(ctx context.Context, client *guest.Client) error {
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	for {
		call, cancel := guest.Bound(ctx)
		_, err := client.Ping(call, &agentv1.PingRequest{NowUnixNanos: time.Now().UnixNano()})
		cancel()
		if err != nil {
			return fmt.Errorf("the agent does not answer: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// handle takes one event of the guest.
func (s *Sandbox) handle(event *agentv1.Event) {
	s.mu.Lock()
	c, shell := s.containers[event.Container], s.shells[event.Exec]
	s.mu.Unlock()
	switch e := event.Event.(type) {
	case *agentv1.Event_Exit:
		p := shell
		if c != nil && !c.bare {
			p = c.process(event.Exec)
		}
		if p != nil { // nil: a guest that names what we never made
			p.end(exitOf(e.Exit))
		}
	case *agentv1.Event_Oom:
		if c != nil {
			c.outOfMemory()
		}
	case *agentv1.Event_Mounts:
		s.mirror(e.Mounts)
	}
}

func (s *Sandbox) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil {
		return nil, fmt.Errorf("container %q %w", id, ErrNotFound)
	}
	return c, nil
}
