package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/state"
)

// retain is how long the exit of an added process is kept for somebody who asks late.
const retain = time.Minute

// Event is something that happened to a container.
type Event struct {
	Kind EventKind
	Time time.Time
}

// EventKind names what happened.
type EventKind string

// Kinds of events.
const (
	OOM      EventKind = "oom"  // the kernel killed a process of the container for want of memory
	ExitKind EventKind = "exit" // the container's init has ended
)

// container is one container of the VM.
type container struct {
	id      string
	sandbox *Sandbox
	dir     *state.Dir
	bare    bool // it stands for a pod, and has no process
	init    *process
	engine  Engine

	changing sync.Mutex // held while the guest starts, pauses or resumes it; taken before mu

	mu       sync.Mutex // guards the fields below
	record   state.Container
	execs    map[string]*process
	subs     map[chan Event]struct{}
	lent     []string // its names in the tree of shares
	copies   []*copied
	devices  []*agentv1.BlockDevice
	detach   []func() error // of disks that were plugged in for it
	limitMiB int            // of its memory, 0 for none
	alone    bool           // has a network of its own within the VM, with loopback only
	warnings []string       // what was done otherwise than it was asked for
	told     time.Time      // when it last was that it had no memory
	telling  chan struct{}  // closed when Options.OutOfMemory has returned; nil before it was called
}

// moves says which status may follow which (runtime-spec, runtime.md, "State" and "Lifecycle").
var moves = map[state.Status][]state.Status{
	state.Creating: {state.Created, state.Stopped},
	state.Created:  {state.Running, state.Stopped},
	state.Running:  {state.Paused, state.Stopped},
	state.Paused:   {state.Running, state.Stopped},
}

// move changes the status and saves it. Preconditions: mu is held.
func (c *container) move(to state.Status) error {
	for _, next := range moves[c.record.Status] {
		if next == to {
			c.record.Status = to
			return c.save()
		}
	}
	return fmt.Errorf("%w: container %q is %s, it cannot become %s", ErrState, c.id, c.record.Status, to)
}

// save writes the record to disk. Preconditions: mu is held.
func (c *container) save() error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	unlock, err := c.dir.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return c.dir.Save(c.record)
}

// expect returns an error unless the container has one of the given statuses. Preconditions: mu is held.
func (c *container) expect(verb string, statuses ...state.Status) error {
	for _, s := range statuses {
		if c.record.Status == s {
			return nil
		}
	}
	text := fmt.Sprintf("cannot %s container %q that is %s", verb, c.id, c.record.Status)
	if c.record.Status == state.Stopped {
		return endedError(text)
	}
	return stateError(text)
}

// stateError is an ErrState in words of its own.
type stateError string

func (e stateError) Error() string        { return string(e) }
func (e stateError) Is(target error) bool { return target == ErrState }

func (c *container) process(exec string) *process {
	if exec == "" {
		return c.init
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.execs[exec]
}

// follow waits for the init's end, records it and ends the sandbox when no container is left.
func (c *container) follow() {
	c.init.finish(func(exit Exit) {
		c.awaitTold()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.record.ExitStatus, c.record.ExitedAt, c.record.Reason = int(exit.Status), exit.Time, exit.Reason
		if err := c.move(state.Stopped); err != nil {
			c.sandbox.log.Error("record exit", "error", err)
		}
		c.publishLocked(Event{Kind: ExitKind, Time: exit.Time})
	})
	c.sandbox.containerStopped()
}

// vmGone ends every process that has not ended: its VM has.
func (c *container) vmGone(reason string) {
	exit := Exit{Status: killed, Time: time.Now(), Reason: reason}
	if reason == deleted {
		exit.Reason = "" // as if it had been killed: nobody lost anything
	}
	c.mu.Lock()
	execs := make([]*process, 0, len(c.execs))
	for _, p := range c.execs {
		execs = append(execs, p)
	}
	c.mu.Unlock()
	for _, p := range append(execs, c.init) {
		p.lose(exit)
	}
	<-c.init.exited // its state is on disk from here on
}

// subscribe returns a channel of the container's events. A reader that is too slow loses events.
func (c *container) subscribe() (events <-chan Event, cancel func()) {
	ch := make(chan Event, 64)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.subs[ch] = struct{}{}
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.subs, ch)
	}
}

// publishLocked hands e to the subscribers. Preconditions: mu is held.
func (c *container) publishLocked(e Event) {
	for ch := range c.subs {
		select {
		case ch <- e:
		default:
		}
	}
}

// containerStopped ends the sandbox once nothing runs or can run in it.
func (s *Sandbox) containerStopped() {
	if !s.outlives(nil) {
		s.teardown("its last container has exited")
	}
}

// outlives tells whether the VM has a reason to run beside the container c.
func (s *Sandbox) outlives(c *container) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.options.Keep || len(s.making) > 0 {
		return true
	}
	for _, other := range s.containers {
		select {
		case <-other.init.exited:
		default:
			if other != c {
				return true
			}
		}
	}
	return false
}

// guestKill sends SIGKILL to a process whose host process is gone. What fails here is a process that has
// ended already, or a guest that watch will find dead.
func (c *container) guestKill(exec string) {
	ctx, cancel := guest.Bound(context.Background())
	defer cancel()
	_, err := c.sandbox.client().Signal(ctx, &agentv1.SignalRequest{Container: c.id, Exec: exec, Signal: 9})
	if err != nil {
		c.sandbox.log.Warn("kill process without a host process", "container", c.id, "exec", exec, "error", err)
	}
}

func (s *Sandbox) client() *guest.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.guest
}

// reach returns a container and its guest, which is to be there.
func (s *Sandbox) reach(id string) (*container, *guest.Client, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, nil, err
	}
	client := s.client()
	if client == nil {
		return nil, nil, fmt.Errorf("%w: the virtual machine of container %q does not run yet", ErrState, id)
	}
	return c, client, nil
}

// guard kills the process when whoever waits for it on the host is gone.
func (c *container) guard(p *process, gone <-chan struct{}) {
	if gone == nil {
		return
	}
	go func() {
		select {
		case <-gone:
			c.guestKill(p.exec)
		case <-p.ended:
		}
	}()
}
