package agent

import (
	"context"
	"errors"
	"os"
	"syscall"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent/cgroup"
	"husk.dev/husk/internal/agent/names"
	"husk.dev/husk/internal/agent/proc"
)

// service answers the calls. It is not Agent itself, so that Agent's own methods stay few.
type service struct{ agent *Agent }

var empty = &agentv1.Empty{}

// CreateContainer creates a container, and starts it where asked to.
func (s service) CreateContainer(ctx context.Context, r *agentv1.CreateContainerRequest) (*agentv1.CreateContainerResponse, error) {
	c, err := s.agent.create(ctx, r)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	pid := c.pid
	c.mu.Unlock()
	if r.GetStart() {
		if err := s.agent.start(c); err != nil {
			return nil, errors.Join(err, s.agent.remove(context.WithoutCancel(ctx), c))
		}
	}
	return &agentv1.CreateContainerResponse{Pid: uint32(pid)}, nil
}

// PutFiles keeps a copy of files.
func (s service) PutFiles(_ context.Context, r *agentv1.PutFilesRequest) (*agentv1.Empty, error) {
	return empty, s.agent.files.Put(r.GetName(), r.GetNumber(), r.GetFiles())
}

// StartContainer lets a created container run.
func (s service) StartContainer(_ context.Context, r *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	c, err := s.agent.find(r.GetId())
	if err != nil {
		return nil, err
	}
	return empty, s.agent.start(c)
}

// DeleteContainer removes a container that does not run.
func (s service) DeleteContainer(ctx context.Context, r *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	c, err := s.agent.find(r.GetId())
	if err != nil {
		return nil, err
	}
	return empty, s.agent.remove(ctx, c)
}

// Exec starts a further process.
func (s service) Exec(ctx context.Context, r *agentv1.ExecRequest) (*agentv1.ExecResponse, error) {
	pid, err := s.agent.exec(ctx, r)
	if err != nil {
		return nil, err
	}
	return &agentv1.ExecResponse{Pid: uint32(pid)}, nil
}

// Signal signals one process or all of a container.
func (s service) Signal(ctx context.Context, r *agentv1.SignalRequest) (*agentv1.Empty, error) {
	sig, err := toSignal(r.GetSignal())
	if err != nil {
		return nil, err
	}
	if r.GetContainer() == "" {
		return empty, s.signalOne("", s.agent.shell.procs, r.GetExec(), sig)
	}
	c, err := s.agent.find(r.GetContainer())
	if err != nil {
		return nil, err
	}
	if r.GetExec() == "" {
		s.agent.settle(ctx, c, sig)
	}
	if r.GetAll() {
		return empty, s.signalAll(c, sig)
	}
	return empty, s.signalOne(c.id, c.procs, r.GetExec(), sig)
}

func (s service) signalOne(container string, procs *processes, exec string, sig syscall.Signal) error {
	p, err := procs.get(container, exec)
	if err != nil {
		return err
	}
	return s.agent.reaper.Signal(p.pid, sig)
}

// signalAll signals every process of the container, those that calls have not started too.
func (s service) signalAll(c *container, sig syscall.Signal) error {
	if sig == syscall.SIGKILL {
		err := c.group.Kill()
		if err == nil || !errors.Is(err, cgroup.ErrNone) {
			return err
		}
	}
	pids, err := c.group.Pids()
	if errors.Is(err, cgroup.ErrNone) { // no cgroups here: init is what can be found
		return s.signalOne(c.id, c.procs, "", sig)
	}
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && err != syscall.ESRCH {
			return err
		}
	}
	return nil
}

// Resize sets a terminal's size.
func (s service) Resize(_ context.Context, r *agentv1.ResizeRequest) (*agentv1.Empty, error) {
	procs := s.agent.shell.procs
	if r.GetContainer() != "" {
		c, err := s.agent.find(r.GetContainer())
		if err != nil {
			return nil, err
		}
		procs = c.procs
	}
	p, err := procs.get(r.GetContainer(), r.GetExec())
	if err != nil {
		return nil, err
	}
	return empty, p.streams.Resize(r.GetRows(), r.GetColumns())
}

// Pause freezes a container.
func (s service) Pause(ctx context.Context, r *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	return s.freeze(ctx, r.GetId(), "pause", paused)
}

// Resume thaws a container.
func (s service) Resume(ctx context.Context, r *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	return s.freeze(ctx, r.GetId(), "resume", running)
}

func (s service) freeze(ctx context.Context, id, verb string, next state) (*agentv1.Empty, error) {
	c, err := s.agent.find(id)
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	now := c.is()
	if now == created && next == running { // only start does that
		return nil, wrongState(verb, id, now)
	}
	if err := now.move(verb, id, next); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupWait)
	defer cancel()
	if err := c.group.Freeze(ctx, next == paused); err != nil {
		return nil, err
	}
	if !c.become(next) {
		return nil, wrongState(verb, id, c.is())
	}
	return empty, nil
}

// Update changes a container's limits.
func (s service) Update(ctx context.Context, r *agentv1.UpdateRequest) (*agentv1.Empty, error) {
	c, err := s.agent.find(r.GetId())
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if now := c.is(); now == stopped || now == creating {
		return nil, wrongState("update", c.id, now)
	}
	return empty, s.agent.runner.Update(ctx, c.id, r.GetResources())
}

// Stats reads what a container uses, or all of the pod's.
func (s service) Stats(_ context.Context, r *agentv1.ContainerRequest) (*agentv1.StatsResponse, error) {
	s.agent.mu.Lock()
	whole := s.agent.pod != nil && s.agent.pod.id == r.GetId()
	s.agent.mu.Unlock()
	if whole {
		return s.agent.group("").Stats()
	}
	c, err := s.agent.find(r.GetId())
	if err != nil {
		return nil, err
	}
	return c.group.Stats()
}

// Processes lists a container's processes.
func (s service) Processes(_ context.Context, r *agentv1.ContainerRequest) (*agentv1.ProcessesResponse, error) {
	c, err := s.agent.find(r.GetId())
	if err != nil {
		return nil, err
	}
	pids, err := c.group.Pids()
	if err != nil {
		return nil, err
	}
	reply := &agentv1.ProcessesResponse{}
	booted := bootTime()
	for _, pid := range pids {
		p, err := proc.Read("/proc", pid, booted)
		if errors.Is(err, os.ErrNotExist) {
			continue // it ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		reply.Processes = append(reply.Processes, &agentv1.Process{
			Pid: uint32(p.PID), Parent: uint32(p.Parent), Uid: p.UID, Command: p.Command,
			StartedUnix: uint64(p.Started.Unix()), CpuMilliseconds: uint64(p.CPU.Milliseconds()), Tty: p.TTY,
		})
	}
	return reply, nil
}

// Events sends what happens until the call is cancelled.
func (s service) Events(ctx context.Context, _ *agentv1.Empty, stream agentv1.Agent_EventsServer) error {
	return toStatus(s.agent.events.read(ctx, stream.Send))
}

// Shell starts a shell in the guest.
func (s service) Shell(ctx context.Context, r *agentv1.ShellRequest) (*agentv1.ExecResponse, error) {
	if !validID(r.GetExec()) {
		return nil, fail(codes.InvalidArgument, "invalid exec id %q", r.GetExec())
	}
	pid, err := s.agent.shell.start(ctx, r)
	if err != nil {
		return nil, err
	}
	return &agentv1.ExecResponse{Pid: uint32(pid)}, nil
}

// SetNetwork sets the guest's interfaces up.
func (s service) SetNetwork(ctx context.Context, r *agentv1.SetNetworkRequest) (*agentv1.Empty, error) {
	if !s.agent.config.Machine {
		return nil, fail(codes.FailedPrecondition, "the network is not this agent's to set up")
	}
	return empty, s.agent.network.Apply(ctx, r)
}

// ForwardNames answers DNS queries with what the owner says to them.
func (s service) ForwardNames(ctx context.Context, r *agentv1.ForwardNamesRequest) (*agentv1.Empty, error) {
	if !s.agent.config.Machine {
		return nil, fail(codes.FailedPrecondition, "the network is not this agent's to set up")
	}
	conn, err := s.agent.streams.Claim(ctx, r.GetStream())
	if err != nil {
		return nil, err
	}
	if err := names.Forward(r.GetAddress(), conn); err != nil {
		conn.Close()
		return nil, fail(codes.FailedPrecondition, "forward names: %v", err)
	}
	return empty, nil
}

// Sync writes what is dirty.
func (s service) Sync(context.Context, *agentv1.Empty) (*agentv1.Empty, error) {
	return empty, s.agent.mounts.Sync()
}
