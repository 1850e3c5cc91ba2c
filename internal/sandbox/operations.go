package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "husk.dev/husk/api/agent/v1"

	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
)

// maxExecs bounds the processes that are added to a container at a time: a guest may never tell of their ends.
const maxExecs = 1024

// Start runs the program of a created container.
func (s *Sandbox) Start(ctx context.Context, id string) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	defer s.timing.begin(ctx, "container start")()
	return c.change("start", state.Created, state.Running, func() error {
		ctx, cancel := bound(ctx)
		defer cancel()
		_, err := s.client().StartContainer(ctx, &agentv1.ContainerRequest{Id: id})
		return c.explain(err, "start container %q", id)
	})
}

// change has the guest bring a container from one status to another. Whoever looks at the container meanwhile is not kept
// waiting for the guest.
func (c *container) change(verb string, from, to state.Status, call func() error) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	c.mu.Lock()
	err := c.expect(verb, from)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if err := call(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.record.Status == state.Stopped && from == state.Created { // it was started, and has ended by now
		return nil
	}
	if err := c.expect(verb, from); err != nil { // it has ended meanwhile
		return err
	}
	return c.move(to)
}

// State returns what is known of a container.
func (s *Sandbox) State(id string) (state.Container, error) {
	c, err := s.container(id)
	if err != nil {
		return state.Container{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.record, nil
}

// Wait waits until a process has ended and its output has been handed on. An empty exec is the init.
func (s *Sandbox) Wait(ctx context.Context, id, exec string) (Exit, error) {
	c, err := s.container(id)
	if err != nil {
		return Exit{}, err
	}
	p := c.process(exec)
	if p == nil {
		return Exit{}, fmt.Errorf("process %q of container %q %w", exec, id, ErrNotFound)
	}
	select {
	case <-p.exited:
		return p.exit, nil
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for container %q: %w", id, ctx.Err())
	}
}

// LeaveOutput gives up on readers that do not take what is left of a container's output, and tells whether its init has
// ended, without which it does nothing.
func (s *Sandbox) LeaveOutput(id string) bool {
	c, err := s.container(id)
	if err != nil {
		return true // it is gone
	}
	select {
	case <-c.init.ended:
		c.init.lose(Exit{}) // how it ended is known
		return true
	default:
		return false
	}
}

// Exec adds a process to a running container and returns its process id in the guest. It owns stdio's
// files, also when it fails. A process whose guest goes away before it has answered has the id 0, and Wait tells.
func (s *Sandbox) Exec(ctx context.Context, id, exec string, spec specs.Process, stdio Stdio) (int, error) {
	c, err := s.container(id)
	if err != nil {
		stdio.Close()
		return 0, err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		stdio.Close()
		return 0, fmt.Errorf("encode process: %w", err)
	}
	p := newProcess(exec)
	if err := c.adding(p, "exec in", state.Created, state.Running); err != nil {
		stdio.Close()
		return 0, err
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	streams, names, err := openStreams(ctx, s.client(), stdio)
	if err != nil {
		c.forget(p)
		return 0, c.explain(err, "exec in container %q", id)
	}
	p.streams = streams
	answer, err := s.client().Exec(ctx, &agentv1.ExecRequest{Container: id, Exec: exec, Process: data, Stdio: names})
	if lost(err) {
		// It may have run when the guest went away: whoever waits for it is told why.
		go s.lose(p, err)
		c.followExec(p, nil)
		return 0, nil
	}
	if err != nil {
		streams.close()
		c.forget(p)
		if c.ends(err, codes.FailedPrecondition) {
			return 0, endedError(fmt.Sprintf("exec in container %q", id))
		}
		return 0, explainProgram(err, spec.Args, "exec in container %q", id)
	}
	c.followExec(p, stdio.Gone)
	return int(answer.Pid), nil
}

// lose ends a process whose guest went away while it was asked for it, with the reason that the sandbox ends with.
func (s *Sandbox) lose(p *process, cause error) {
	reason := cause.Error()
	select {
	case <-s.done:
		s.mu.Lock()
		reason = s.reason
		s.mu.Unlock()
	case <-time.After(undoTimeout):
	}
	p.lose(Exit{Status: killed, Time: time.Now(), Reason: reason})
}

// Shell starts a debug shell in the guest itself. program is a static busybox, which the guest image does
// not have. It owns stdio's files, also when it fails.
func (s *Sandbox) Shell(ctx context.Context, id, exec string, args []string, program []byte, stdio Stdio) error {
	c, client, err := s.reach(id)
	if err != nil {
		stdio.Close()
		return err
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	what := fmt.Sprintf("open a shell in the guest of %q", id)
	streams, names, err := openStreams(ctx, client, stdio)
	if err != nil {
		return c.explain(err, "%s", what)
	}
	token, conn, err := client.Stream(ctx)
	if err != nil {
		streams.close()
		return c.explain(err, "%s", what)
	}
	go func() {
		defer conn.Close()
		_, _ = conn.Write(program) // the agent reports what it could not read
	}()
	p := newProcess(exec)
	p.streams = streams
	s.mu.Lock()
	s.shells[exec] = p
	s.mu.Unlock()
	_, err = client.Shell(ctx, &agentv1.ShellRequest{Exec: exec, Stdio: names, Args: args, Program: token})
	if err != nil {
		conn.Close()
		streams.close()
		s.mu.Lock()
		delete(s.shells, exec)
		s.mu.Unlock()
		return c.explain(err, "%s", what)
	}
	c.mu.Lock()
	c.execs[exec] = p // so that Wait and Resize find it as any other process
	c.mu.Unlock()
	c.followExec(p, nil)
	return nil
}

// followExec reaps an added process and, some time after its end, forgets it.
func (c *container) followExec(p *process, gone <-chan struct{}) {
	c.guard(p, gone)
	go p.finish(func(Exit) { time.AfterFunc(retain, func() { c.forget(p) }) })
}

// adding takes the name of a process that is about to be added to the container, which has one of the statuses.
func (c *container) adding(p *process, verb string, statuses ...state.Status) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.expect(verb, statuses...)
	if err == nil && (p.exec == "" || c.runs(p.exec)) {
		err = fmt.Errorf("%w: process %q of container %q exists", ErrState, p.exec, c.id)
	}
	if err == nil && c.added() >= maxExecs {
		err = fmt.Errorf("%w: %d processes that were added to container %q have not ended", ErrState, maxExecs, c.id)
	}
	if err == nil {
		c.execs[p.exec] = p
	}
	return err
}

// added is how many processes were added and have not ended. Preconditions: mu is held.
func (c *container) added() (n int) {
	for _, p := range c.execs {
		select {
		case <-p.ended:
		default:
			n++
		}
	}
	return n
}

// runs tells whether an added process of that name has not ended, or its output not been handed on. Preconditions: mu is held.
func (c *container) runs(exec string) bool {
	p := c.execs[exec]
	if p == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

func (c *container) forget(p *process) {
	c.mu.Lock()
	if c.execs[p.exec] == p { // and not a later one of that name
		delete(c.execs, p.exec)
	}
	c.mu.Unlock()
	c.sandbox.mu.Lock()
	delete(c.sandbox.shells, p.exec)
	c.sandbox.mu.Unlock()
}

// Signal sends a signal to a process, or to every process of the container.
func (s *Sandbox) Signal(ctx context.Context, id, exec string, signal uint32, all bool) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	err = c.expect("signal", state.Created, state.Running, state.Paused)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	_, err = s.client().Signal(ctx, &agentv1.SignalRequest{Container: id, Exec: exec, Signal: signal, All: all})
	gone := err != nil && broke(err)
	if err = c.explain(err, "signal container %q", id); gone && errors.Is(err, ErrEnded) {
		return nil // whatever the signal was for, nothing is left that could get it
	}
	return err
}

// Resize sets the window size of a process' terminal.
func (s *Sandbox) Resize(ctx context.Context, id, exec string, rows, columns uint32) error {
	c, client, err := s.reach(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	_, shell := s.shells[exec]
	s.mu.Unlock()
	request := &agentv1.ResizeRequest{Container: id, Exec: exec, Rows: rows, Columns: columns}
	if shell {
		request.Container = ""
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	_, err = client.Resize(ctx, request)
	return c.explain(err, "resize the terminal of container %q", id)
}

// Pause freezes every process of a container.
func (s *Sandbox) Pause(ctx context.Context, id string) error {
	return s.freeze(ctx, id, "pause", state.Running, state.Paused)
}

// Resume thaws a paused container.
func (s *Sandbox) Resume(ctx context.Context, id string) error {
	return s.freeze(ctx, id, "resume", state.Paused, state.Running)
}

func (s *Sandbox) freeze(ctx context.Context, id, verb string, from, to state.Status) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	return c.change(verb, from, to, func() (err error) {
		ctx, cancel := bound(ctx)
		defer cancel()
		request := &agentv1.ContainerRequest{Id: id}
		if to == state.Paused {
			_, err = s.client().Pause(ctx, request)
		} else {
			_, err = s.client().Resume(ctx, request)
		}
		return c.explain(err, "%s container %q", verb, id)
	})
}

// Update changes a container's cgroup limits, as far as they fit into the VM.
func (s *Sandbox) Update(ctx context.Context, id string, resources specs.LinuxResources) error {
	c, err := s.container(id)
	if err != nil {
		return err
	}
	c.mu.Lock()
	err = c.expect("update", state.Created, state.Running, state.Paused)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	data, err := json.Marshal(ocispec.GuestResources(resources))
	if err != nil {
		return fmt.Errorf("encode resources: %w", err)
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	if _, err = s.client().Update(ctx, &agentv1.UpdateRequest{Id: id, Resources: data}); err != nil {
		return c.explain(err, "update container %q", id)
	}
	s.mu.Lock()
	whole := s.pod.first == c && !ocispec.IsSandbox(s.pod.plan.Spec)
	s.mu.Unlock()
	if !whole {
		return nil // the limits of one of several are not the VM's
	}
	return s.limitCgroup(&resources)
}

// Stats returns what the guest's cgroup of the container says.
func (s *Sandbox) Stats(ctx context.Context, id string) (*agentv1.StatsResponse, error) {
	c, client, err := s.reach(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	answer, err := client.Stats(ctx, &agentv1.ContainerRequest{Id: id})
	return answer, c.explain(err, "read statistics of container %q", id)
}

// Processes returns the processes of the container, by their ids in the guest.
func (s *Sandbox) Processes(ctx context.Context, id string) (*agentv1.ProcessesResponse, error) {
	c, client, err := s.reach(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	answer, err := client.Processes(ctx, &agentv1.ContainerRequest{Id: id})
	return answer, c.explain(err, "list processes of container %q", id)
}

// Events returns a channel of the container's events; cancel ends it. Of OOM there is one a second at most.
func (s *Sandbox) Events(id string) (events <-chan Event, cancel func(), err error) {
	c, err := s.container(id)
	if err != nil {
		return nil, nil, err
	}
	events, cancel = c.subscribe()
	return events, cancel, nil
}

// Warnings are what was done otherwise than a container's configuration asks for.
func (s *Sandbox) Warnings(id string) []string {
	c, err := s.container(id)
	if err != nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.warnings...)
}

// Timeline returns the phases of the sandbox so far.
func (s *Sandbox) Timeline() []Phase { return s.timing.all() }

// bound gives a call of the agent its deadline and keeps it from ending with the client that asked for it:
// what the guest has half done, and nobody here knows of, could not be undone.
func bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return guest.Bound(context.WithoutCancel(ctx))
}
