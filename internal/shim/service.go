package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	events "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	tasktypes "github.com/containerd/containerd/api/types/task"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"husk.dev/husk/internal/forward"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/state"
)

// service is containerd's Task API for the containers of one sandbox, and its Sandbox API for the sandbox.
type service struct {
	program       Program
	namespace, id string
	socket        string // where it listens
	engine        string // path of the mount namespace of whoever started it; "": there is no other than its own
	log           *slog.Logger
	events        *publisher

	settling, closing     atomic.Bool
	endOnce, unlistenOnce sync.Once
	called, calls         atomic.Int64  // requests that have come, and those that are being served
	end                   chan struct{} // closed when the shim is to end

	making      sync.Mutex         // held while a sandbox is made or ended; guards the fields below
	forward     *forward.Forwarder // nil without the network of a pod
	first       *state.Dir         // of the container that the virtual machine was made for
	stopControl func()             // ends the serving of husk's verbs; nil where they are not served

	mu         sync.Mutex // guards the fields below
	host       *Host
	pod        *pod                  // what the Sandbox API made; nil where containers make the sandbox
	box        *sandbox.Sandbox      // nil before the first container, or the pod, and after the last one
	containers map[string]*container // by containerd's id
}

// failed gives an error the class that containerd tells errors apart by.
func failed(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unknown
	switch {
	case errors.Is(err, sandbox.ErrNotFound):
		code = codes.NotFound
	case errors.Is(err, sandbox.ErrState):
		code = codes.FailedPrecondition
	}
	return status.Error(code, err.Error())
}

// find returns a container that was made, and the sandbox it is in.
func (s *service) find(id string) (*container, *sandbox.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || c.init == nil {
		return nil, nil, status.Errorf(codes.NotFound, "container %q not found", id)
	}
	return c, s.box, nil
}

// findProcess returns a process of a container.
func (s *service) findProcess(id, exec string) (*container, *process, *sandbox.Sandbox, error) {
	c, box, err := s.find(id)
	if err != nil {
		return nil, nil, nil, err
	}
	p := c.process(exec)
	if p == nil {
		return nil, nil, nil, status.Errorf(codes.NotFound, "process %q of container %q not found", exec, id)
	}
	return c, p, box, nil
}

// State implements the Task API.
func (s *service) State(_ context.Context, r *task.StateRequest) (*task.StateResponse, error) {
	c, p, _, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	answer := &task.StateResponse{
		ID: c.id, Bundle: c.bundle, Pid: uint32(p.pid), Status: p.status, Stdin: p.stdio.in, Stdout: p.stdio.out,
		Stderr: p.stdio.err, Terminal: p.stdio.terminal, ExecID: p.id,
	}
	if p.status == tasktypes.Status_STOPPED {
		answer.ExitStatus, answer.ExitedAt = p.exit.Status, timestamppb.New(p.exit.Time)
	}
	return answer, nil
}

// Start implements the Task API.
func (s *service) Start(ctx context.Context, r *task.StartRequest) (*task.StartResponse, error) {
	c, p, box, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	p.changing.Lock()
	defer p.changing.Unlock()
	p.mu.Lock()
	now := p.status
	p.mu.Unlock()
	if now != tasktypes.Status_CREATED {
		return nil, status.Errorf(codes.FailedPrecondition, "cannot start a process that is %s", now)
	}
	if p.id != "" {
		if err := s.startExec(ctx, c, p, box); err != nil {
			return nil, err
		}
	} else {
		if err := p.opened.feedIn(p.stdio.in); err != nil {
			return nil, err
		}
		if err := box.Start(ctx, c.name); err != nil {
			return nil, err
		}
		p.mu.Lock()
		p.status = tasktypes.Status_RUNNING
		p.mu.Unlock()
		s.events.publish(topicStart, &events.TaskStart{ContainerID: c.id, Pid: uint32(p.pid)})
		s.poststart(ctx, c)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return &task.StartResponse{Pid: uint32(p.pid)}, nil
}

// startExec starts an added process. Preconditions: p.changing is held.
func (s *service) startExec(ctx context.Context, c *container, p *process, box *sandbox.Sandbox) error {
	opened, err := p.stdio.open()
	if err != nil {
		return err
	}
	p.mu.Lock()
	opened.Rows, opened.Columns = p.rows, p.columns
	p.mu.Unlock()
	pid, err := box.Exec(ctx, c.name, p.id, *p.spec, opened.Stdio)
	if err != nil {
		opened.end()
		return err
	}
	p.mu.Lock()
	p.pid, p.opened, p.status = pid, opened, tasktypes.Status_RUNNING
	if p.inClosed {
		opened.closeIn() // before there is any: it ends at once
	}
	p.mu.Unlock()
	if err := opened.feedIn(p.stdio.in); err != nil {
		s.log.Warn("the process gets no input", "container", c.id, "process", p.id, "error", err)
	}
	s.events.publish(topicExecStarted, &events.TaskExecStarted{ContainerID: c.id, ExecID: p.id, Pid: uint32(pid)})
	go s.follow(box, c, p)
	return nil
}

// follow waits for the end of a process.
func (s *service) follow(box *sandbox.Sandbox, c *container, p *process) {
	exit, err := box.Wait(context.Background(), c.name, p.id)
	if err != nil {
		exit = sandbox.Exit{Status: killed, Reason: err.Error()}
	}
	p.ended(s, c, exit)
}

// Exec implements the Task API: it notes a process that Start starts.
func (s *service) Exec(_ context.Context, r *task.ExecProcessRequest) (*emptypb.Empty, error) {
	c, _, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	if r.ExecID == "" {
		return nil, status.Error(codes.InvalidArgument, "the process has no id")
	}
	p := newProcess(r.ExecID, s.stdio(r.ID, r.Stdin, r.Stdout, r.Stderr, r.Terminal))
	p.spec = &specs.Process{}
	if err := json.Unmarshal(r.Spec.GetValue(), p.spec); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "read process: %v", err)
	}
	p.spec.Terminal = r.Terminal
	if !c.add(p) {
		return nil, status.Errorf(codes.AlreadyExists, "process %q of container %q exists", r.ExecID, r.ID)
	}
	s.events.publish(topicExecAdded, &events.TaskExecAdded{ContainerID: c.id, ExecID: p.id})
	return &emptypb.Empty{}, nil
}

// Kill implements the Task API.
func (s *service) Kill(ctx context.Context, r *task.KillRequest) (*emptypb.Empty, error) {
	c, p, box, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	gone := status.Error(codes.NotFound, "process already finished: not found")
	p.mu.Lock()
	state := p.status
	p.mu.Unlock()
	switch {
	case state == tasktypes.Status_STOPPED:
		return nil, gone
	case p.id != "" && state == tasktypes.Status_CREATED:
		return nil, status.Errorf(codes.FailedPrecondition, "process %q was not started", p.id)
	}
	if err = s.signal(ctx, box, c, p, r); err == nil {
		if p == c.init && r.Signal == uint32(syscall.SIGKILL) {
			go s.enforce(c, box)
		}
		return &emptypb.Empty{}, nil
	}
	if p.stopped() || errors.Is(err, sandbox.ErrNotFound) || errors.Is(err, sandbox.ErrEnded) {
		return nil, gone
	}
	return nil, err
}

const (
	// killWait is how long a guest may take to end a container that was killed.
	killWait = 2 * time.Minute
	// killAnswer is how long it may take to say that it kills a container's init, which enforce sees to then.
	killAnswer = 20 * time.Second
)

// signal has the guest send a signal. containerd is not kept waiting by a guest that does not answer to one that kills a
// container: what it waits for is the end.
func (s *service) signal(ctx context.Context, box *sandbox.Sandbox, c *container, p *process, r *task.KillRequest) error {
	sent := make(chan error, 1)
	go func() { sent <- box.Signal(ctx, c.name, p.id, r.Signal, r.All) }()
	var late <-chan time.Time
	if p == c.init && r.Signal == uint32(syscall.SIGKILL) {
		late = time.After(killAnswer)
	}
	select {
	case err := <-sent:
		return err
	case <-late:
		s.log.Warn("the guest does not answer to a kill", "container", c.id)
		return nil
	}
}

// enforce ends the virtual machine of a container that was killed and does not end. One that has ended, and of whose output
// somebody has the reader's end and does not read, loses that output.
func (s *service) enforce(c *container, box *sandbox.Sandbox) {
	for _, wait := range []time.Duration{killAnswer, killWait - killAnswer} {
		select {
		case <-c.init.exited:
			return
		case <-s.end:
			return
		case <-time.After(wait):
		}
		if box.LeaveOutput(c.name) {
			return
		}
	}
	s.endAll(fmt.Sprintf("container %s was killed and has not ended", c.id))
}

// Wait implements the Task API.
func (s *service) Wait(ctx context.Context, r *task.WaitRequest) (*task.WaitResponse, error) {
	_, p, _, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
		return &task.WaitResponse{ExitStatus: p.exit.Status, ExitedAt: timestamppb.New(p.exit.Time)}, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for container %q: %w", r.ID, ctx.Err())
	}
}

// Pids implements the Task API with the processes as the guest numbers them.
func (s *service) Pids(ctx context.Context, r *task.PidsRequest) (*task.PidsResponse, error) {
	c, box, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	if c.init.stopped() {
		return &task.PidsResponse{}, nil
	}
	list, err := box.Processes(ctx, c.name)
	if errors.Is(err, sandbox.ErrEnded) {
		return &task.PidsResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	answer := &task.PidsResponse{}
	for _, process := range list.Processes {
		answer.Processes = append(answer.Processes, &tasktypes.ProcessInfo{Pid: process.Pid})
	}
	return answer, nil
}

// Pause implements the Task API.
func (s *service) Pause(ctx context.Context, r *task.PauseRequest) (*emptypb.Empty, error) {
	return s.freeze(r.ID, tasktypes.Status_PAUSED, topicPaused, &events.TaskPaused{ContainerID: r.ID},
		func(box *sandbox.Sandbox, name string) error { return box.Pause(ctx, name) })
}

// Resume implements the Task API.
func (s *service) Resume(ctx context.Context, r *task.ResumeRequest) (*emptypb.Empty, error) {
	return s.freeze(r.ID, tasktypes.Status_RUNNING, topicResumed, &events.TaskResumed{ContainerID: r.ID},
		func(box *sandbox.Sandbox, name string) error { return box.Resume(ctx, name) })
}

func (s *service) freeze(id string, to tasktypes.Status, topic string, event proto.Message, do func(*sandbox.Sandbox, string) error) (*emptypb.Empty, error) {
	c, box, err := s.find(id)
	if err != nil {
		return nil, err
	}
	c.init.changing.Lock()
	defer c.init.changing.Unlock()
	if err := do(box, c.name); err != nil {
		return nil, err
	}
	c.init.mu.Lock()
	defer c.init.mu.Unlock()
	if c.init.stopped() {
		return nil, status.Errorf(codes.FailedPrecondition, "container %q has stopped", id)
	}
	c.init.status = to
	s.events.publish(topic, event)
	return &emptypb.Empty{}, nil
}

// Checkpoint implements the Task API: there is none of a virtual machine's container.
func (s *service) Checkpoint(context.Context, *task.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, status.Error(codes.Unimplemented, "husk cannot checkpoint a container")
}

// ResizePty implements the Task API.
func (s *service) ResizePty(ctx context.Context, r *task.ResizePtyRequest) (*emptypb.Empty, error) {
	c, p, box, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	p.changing.Lock() // a start that goes on has another size
	defer p.changing.Unlock()
	p.mu.Lock()
	p.rows, p.columns = r.Height, r.Width
	waits := p.id != "" && p.status == tasktypes.Status_CREATED // Start gives it that size
	p.mu.Unlock()
	if waits || p.stopped() {
		return &emptypb.Empty{}, nil
	}
	if err := box.Resize(ctx, c.name, p.id, r.Height, r.Width); err != nil && !errors.Is(err, sandbox.ErrEnded) {
		return nil, err
	}
	return &emptypb.Empty{}, nil
}

// CloseIO implements the Task API.
func (s *service) CloseIO(_ context.Context, r *task.CloseIORequest) (*emptypb.Empty, error) {
	_, p, _, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.Stdin {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.inClosed = true; p.opened != nil {
			p.opened.closeIn()
		}
	}
	return &emptypb.Empty{}, nil
}

// Update implements the Task API.
func (s *service) Update(ctx context.Context, r *task.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, box, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	var resources specs.LinuxResources
	if err := json.Unmarshal(r.Resources.GetValue(), &resources); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "read resources: %v", err)
	}
	return &emptypb.Empty{}, box.Update(ctx, c.name, resources)
}

// Stats implements the Task API.
func (s *service) Stats(ctx context.Context, r *task.StatsRequest) (*task.StatsResponse, error) {
	c, box, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	if c.init.stopped() {
		return nil, status.Errorf(codes.NotFound, "container %q has stopped", r.ID)
	}
	data, err := statistics(ctx, box, c.name)
	if errors.Is(err, sandbox.ErrEnded) {
		return nil, status.Errorf(codes.NotFound, "container %q has stopped", r.ID)
	}
	return &task.StatsResponse{Stats: data}, err
}

// Connect implements the Task API.
func (s *service) Connect(_ context.Context, r *task.ConnectRequest) (*task.ConnectResponse, error) {
	answer := &task.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if c, _, err := s.find(r.ID); err == nil {
		answer.TaskPid = uint32(c.init.pid)
	}
	return answer, nil
}
