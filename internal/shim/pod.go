package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/sys"
)

// sandboxService is the name of containerd's Sandbox API.
const sandboxService = "containerd.runtime.sandbox.v1.Sandbox"

// specURL is the type of an OCI configuration in an Any (containerd, typeurl).
const specURL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// lastAnswerWait is how long a shim goes on that was told to end, so that containerd gets the answer: ttrpc does not wait
// for one that is on its way.
const lastAnswerWait = 200 * time.Millisecond

// States of a sandbox, by the CRI's names.
const (
	podReady    = "SANDBOX_READY"
	podNotReady = "SANDBOX_NOTREADY"
)

// pod is a sandbox that containerd asks for by the Sandbox API: a virtual machine in which no container was made for it.
type pod struct {
	// container has what it has in common with one: names, state and what stands for it on the host. It has no process.
	container
	host *Host

	started, stopped bool // guarded by service.making
	pid              int  // of what stands for it, valid once it was started
	created          time.Time
	exit             sandbox.Exit  // valid once ended is closed
	ended            chan struct{} // closed when its virtual machine is gone
}

// registerSandbox serves the Sandbox API. UpdateSandbox is left out, which containerd takes for what it is.
func (s *service) registerSandbox(server *ttrpc.Server) {
	server.RegisterService(sandboxService, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"CreateSandbox": method(s.CreateSandbox), "StartSandbox": method(s.StartSandbox), "Platform": method(s.Platform),
		"StopSandbox": method(s.StopSandbox), "WaitSandbox": method(s.WaitSandbox), "SandboxStatus": method(s.SandboxStatus),
		"PingSandbox": method(s.PingSandbox), "ShutdownSandbox": method(s.ShutdownSandbox),
		"SandboxMetrics": method(s.SandboxMetrics),
	}})
}

// findPod returns the pod of this shim.
func (s *service) findPod(id string) (*pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pod == nil || s.pod.id != id {
		return nil, status.Errorf(codes.NotFound, "sandbox %q not found", id)
	}
	return s.pod, nil
}

// CreateSandbox implements the Sandbox API: it checks what is asked for and makes the pod's files.
func (s *service) CreateSandbox(_ context.Context, r *api.CreateSandboxRequest) (_ *api.CreateSandboxResponse, err error) {
	s.making.Lock()
	defer s.making.Unlock()
	s.mu.Lock()
	taken := s.pod != nil || len(s.containers) > 0
	s.mu.Unlock()
	name := stateID(s.namespace, r.SandboxID)
	switch {
	case name == "":
		return nil, status.Errorf(codes.InvalidArgument, "sandbox %q: not a name that containerd gives", r.SandboxID)
	case taken:
		return nil, status.Errorf(codes.AlreadyExists, "the shim has a sandbox or containers already")
	}
	config, err := readPodConfig(r.Options)
	if err != nil {
		return nil, err
	}
	options, err := savedOptions(r.BundlePath)
	if err != nil {
		return nil, err
	}
	host, settings, err := s.open(options, r.BundlePath)
	if err != nil {
		return nil, err
	}
	p := &pod{host: host, created: time.Now(), ended: make(chan struct{})}
	p.id, p.name, p.bundle, p.execs = r.SandboxID, name, r.BundlePath, map[string]*process{}
	if p.spec, err = podSpec(p.id, r.NetnsPath, config); err != nil {
		return nil, err
	}
	if err := (note{RunDir: host.Config.RunDir, Config: settings}).save(p.bundle); err != nil {
		return nil, err
	}
	if err := writePodFiles(p.bundle, p.spec, config.GetDnsConfig()); err != nil {
		return nil, err
	}
	if err := mountShm(p.bundle); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.pod = p
	s.mu.Unlock()
	return &api.CreateSandboxResponse{}, nil
}

// StartSandbox implements the Sandbox API: it starts the virtual machine.
func (s *service) StartSandbox(ctx context.Context, r *api.StartSandboxRequest) (*api.StartSandboxResponse, error) {
	p, err := s.findPod(r.SandboxID)
	if err != nil {
		return nil, err
	}
	s.making.Lock()
	defer s.making.Unlock()
	if p.started || p.stopped {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %q was started or stopped already", p.id)
	}
	box, err := s.startPod(ctx, p)
	if err != nil {
		s.log.Error("start sandbox", "id", p.id, "error", err)
		return nil, err
	}
	p.started = true
	for _, w := range box.Warnings(p.name) {
		s.log.Warn("sandbox", "id", p.id, "warning", w)
	}
	go s.followPod(box, p)
	s.settle()
	spec, err := json.Marshal(p.spec) // which containerd shows its plugins
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return &api.StartSandboxResponse{
		Pid: uint32(p.pid), CreatedAt: timestamppb.New(p.created), Spec: &anypb.Any{TypeUrl: specURL, Value: spec},
	}, nil
}

// startPod makes the pod's virtual machine. When it fails nothing of it is left. Preconditions: making is held.
func (s *service) startPod(ctx context.Context, p *pod) (_ *sandbox.Sandbox, err error) {
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Clean())
		}
	}()
	path, own := network(p.spec)
	if !own {
		path = "/proc/self/ns/net"
	}
	if p.stand, err = sys.NewStandIn(path, sys.EnterNothing); err != nil {
		return nil, err
	}
	undo.Add(func() error { p.stand.End(); return nil })
	p.pid = p.stand.ID()
	dir, data, err := p.begin(ctx, p.host)
	if err != nil {
		return nil, err
	}
	p.dir = dir
	undo.Add(dir.Remove)
	if err := s.makeBox(ctx, p.host, &p.container, sandbox.CreateRequest{
		ID: p.name, Dir: dir, Bundle: p.bundle, Spec: data, HostPID: p.pid, AutoRemove: true, Pod: true,
	}); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.box, nil
}

// followPod waits for the end of the pod's virtual machine.
func (s *service) followPod(box *sandbox.Sandbox, p *pod) {
	exit, err := box.Wait(context.Background(), p.name, "")
	if err != nil {
		exit = sandbox.Exit{Status: killed, Time: time.Now(), Reason: err.Error()}
	}
	s.log.Info("sandbox ended", "id", p.id, "reason", exit.Reason)
	p.exit = exit
	close(p.ended)
	s.settle()
}

// Platform implements the Sandbox API: what the guest runs is what the host is.
func (s *service) Platform(_ context.Context, r *api.PlatformRequest) (*api.PlatformResponse, error) {
	if _, err := s.findPod(r.SandboxID); err != nil {
		return nil, err
	}
	return &api.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: runtime.GOARCH}}, nil
}

// StopSandbox implements the Sandbox API: it ends the virtual machine with all that runs in it.
func (s *service) StopSandbox(_ context.Context, r *api.StopSandboxRequest) (*api.StopSandboxResponse, error) {
	p, err := s.findPod(r.SandboxID)
	if err != nil {
		return nil, err
	}
	s.making.Lock()
	defer s.making.Unlock()
	return &api.StopSandboxResponse{}, s.stopPod(p, "the pod was stopped")
}

// stopPod ends the pod's virtual machine, where there is one, once. Preconditions: making is held.
func (s *service) stopPod(p *pod, reason string) error {
	if p.stopped {
		return nil
	}
	p.stopped = true
	if !p.started {
		p.exit = sandbox.Exit{Time: time.Now()}
		close(p.ended)
		return nil
	}
	s.mu.Lock()
	box := s.box
	s.mu.Unlock()
	err := s.endBox(box, reason)
	<-p.ended
	p.stand.End() // whose network goes now
	return err
}

// WaitSandbox implements the Sandbox API.
func (s *service) WaitSandbox(ctx context.Context, r *api.WaitSandboxRequest) (*api.WaitSandboxResponse, error) {
	p, err := s.findPod(r.SandboxID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.ended:
		return &api.WaitSandboxResponse{ExitStatus: p.exit.Status, ExitedAt: timestamppb.New(p.exit.Time)}, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for sandbox %q: %w", p.id, ctx.Err())
	}
}

// SandboxStatus implements the Sandbox API.
func (s *service) SandboxStatus(_ context.Context, r *api.SandboxStatusRequest) (*api.SandboxStatusResponse, error) {
	p, err := s.findPod(r.SandboxID)
	if err != nil {
		return nil, err
	}
	answer := &api.SandboxStatusResponse{SandboxID: p.id, State: podNotReady, CreatedAt: timestamppb.New(p.created)}
	shown := "created"
	if s.ready(p) {
		answer.State, answer.Pid, shown = podReady, uint32(p.pid), "running"
	}
	select {
	case <-p.ended:
		answer.ExitedAt, shown = timestamppb.New(p.exit.Time), "stopped"
	default:
	}
	if r.Verbose {
		data, err := json.Marshal(podInfo(int(answer.Pid), shown, p.spec))
		if err != nil {
			return nil, fmt.Errorf("encode information: %w", err)
		}
		answer.Info = map[string]string{"info": string(data)}
	}
	return answer, nil
}

// ready tells whether the pod's virtual machine runs.
func (s *service) ready(p *pod) bool {
	s.mu.Lock()
	box := s.box
	s.mu.Unlock()
	select {
	case <-p.ended:
		return false
	default:
		return box != nil
	}
}

// PingSandbox implements the Sandbox API.
func (s *service) PingSandbox(_ context.Context, r *api.PingRequest) (*api.PingResponse, error) {
	p, err := s.findPod(r.SandboxID)
	if err == nil && !s.ready(p) {
		err = status.Errorf(codes.FailedPrecondition, "sandbox %q does not run", p.id)
	}
	return &api.PingResponse{}, err
}

// ShutdownSandbox implements the Sandbox API: it removes all that there is, and ends the shim.
func (s *service) ShutdownSandbox(ctx context.Context, r *api.ShutdownSandboxRequest) (*api.ShutdownSandboxResponse, error) {
	s.making.Lock() // CreateSandbox may go on, of which nobody waits for the end any more
	p, err := s.findPod(r.SandboxID)
	if err != nil {
		unused := s.unused(r.SandboxID)
		s.making.Unlock()
		if !unused {
			return nil, err
		}
		s.endSoon()
		return &api.ShutdownSandboxResponse{}, nil
	}
	err = s.stopPod(p, "the pod was removed")
	s.making.Unlock()
	s.mu.Lock()
	box := s.box
	var left []*container
	for _, c := range s.containers {
		if c.init != nil {
			left = append(left, c)
		}
	}
	s.mu.Unlock()
	for _, c := range left {
		err = errors.Join(err, s.release(ctx, box, c))
	}
	err = errors.Join(err, sys.Unmount(filepath.Join(p.bundle, shmDir)))
	if err != nil { // the shim ends all the same, and containerd has what is left removed
		s.log.Warn("remove sandbox", "id", p.id, "error", err)
	}
	s.endSoon()
	return &api.ShutdownSandboxResponse{}, nil
}

// unused tells whether the shim was started for sandbox id and has nothing: CreateSandbox has failed, or never came.
func (s *service) unused(id string) bool {
	return id == s.id && s.empty()
}

// endSoon ends the shim once the answer that tells so has gone.
func (s *service) endSoon() {
	s.unlisten()
	time.AfterFunc(lastAnswerWait, func() { s.endOnce.Do(func() { close(s.end) }) })
}

// SandboxMetrics implements the Sandbox API with what the guest counts for all containers together.
func (s *service) SandboxMetrics(ctx context.Context, r *api.SandboxMetricsRequest) (*api.SandboxMetricsResponse, error) {
	p, err := s.findPod(r.SandboxID)
	if err != nil {
		return nil, err
	}
	if !s.ready(p) {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %q does not run", p.id)
	}
	s.mu.Lock()
	box := s.box
	s.mu.Unlock()
	data, err := statistics(ctx, box, p.name)
	if err != nil {
		return nil, err
	}
	return &api.SandboxMetricsResponse{Metrics: &types.Metric{Timestamp: timestamppb.Now(), ID: p.id, Data: data}}, nil
}
