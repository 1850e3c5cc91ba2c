package shim

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/sandbox/v1"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/testenv"
	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest"
)

// podGuest is a guest's agent that remembers what it was asked.
type podGuest struct {
	agentv1.AgentService

	refuses bool // to make a pod

	mu         sync.Mutex
	pod        *agentv1.PodRequest
	containers []*agentv1.CreateContainerRequest
	events     chan *agentv1.Event
}

func (g *podGuest) Hello(context.Context, *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	return &agentv1.HelloResponse{Version: agentv1.Version}, nil
}

func (g *podGuest) Ping(context.Context, *agentv1.PingRequest) (*agentv1.PingResponse, error) {
	return &agentv1.PingResponse{}, nil
}

func (g *podGuest) Sync(context.Context, *agentv1.Empty) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

func (g *podGuest) Events(ctx context.Context, _ *agentv1.Empty, out agentv1.Agent_EventsServer) error {
	for {
		select {
		case e := <-g.events:
			if err := out.Send(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (g *podGuest) MakePod(_ context.Context, r *agentv1.PodRequest) (*agentv1.Empty, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refuses {
		return nil, status.Error(codes.FailedPrecondition, "no such setting")
	}
	g.pod = r
	return &agentv1.Empty{}, nil
}

func (g *podGuest) CreateContainer(_ context.Context, r *agentv1.CreateContainerRequest) (*agentv1.CreateContainerResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.containers = append(g.containers, r)
	return &agentv1.CreateContainerResponse{Pid: 7}, nil
}

func (g *podGuest) StartContainer(context.Context, *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

func (g *podGuest) DeleteContainer(context.Context, *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

func (g *podGuest) Signal(_ context.Context, r *agentv1.SignalRequest) (*agentv1.Empty, error) {
	g.events <- &agentv1.Event{Container: r.Container, Event: &agentv1.Event_Exit{Exit: &agentv1.Exit{Status: 128 + r.Signal}}}
	return &agentv1.Empty{}, nil
}

func (g *podGuest) Stats(_ context.Context, r *agentv1.ContainerRequest) (*agentv1.StatsResponse, error) {
	return &agentv1.StatsResponse{Memory: &agentv1.MemoryStats{Usage: uint64(len(r.Id))}}, nil
}

// asked is what the guest was asked for.
func (g *podGuest) asked() (*agentv1.PodRequest, []*agentv1.CreateContainerRequest) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pod, slices.Clone(g.containers)
}

func (g *podGuest) serve(ctx context.Context, s *channel.Server) error {
	l, err := s.Listen(agentv1.PortRPC)
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	agentv1.RegisterAgentService(server, g)
	go server.Serve(ctx, l)
	<-ctx.Done()
	return server.Close()
}

// podDriver keeps the machine that it has started.
type podDriver struct {
	vmmtest.Fake

	mu   sync.Mutex
	vm   *vmmtest.FakeVM
	spec vmm.Spec
}

func (d *podDriver) Start(ctx context.Context, spec vmm.Spec) (vmm.VM, error) {
	vm, err := d.Fake.Start(ctx, spec)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.vm, d.spec = vm.(*vmmtest.FakeVM), spec
	}
	return vm, err
}

// started is the machine that runs, and what it was made from.
func (d *podDriver) started() (*vmmtest.FakeVM, vmm.Spec) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.vm, d.spec
}

// podShim is a shim that serves over a socket, with a virtual machine that is none.
type podShim struct {
	api.TTRPCSandboxService
	shim   *service
	tasks  task.TTRPCTaskService
	guest  *podGuest
	driver *podDriver
	config config.Config
	bundle string
}

func newPodShim(t *testing.T) *podShim {
	t.Helper()
	dir := t.TempDir()
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := &podShim{guest: &podGuest{events: make(chan *agentv1.Event, 8)}, config: config.Default(), bundle: filepath.Join(dir, "bundle")}
	p.config.RunDir, p.config.DataDir = filepath.Join(dir, "run"), filepath.Join(dir, "data")
	p.driver = &podDriver{Fake: vmmtest.Fake{Serve: p.guest.serve}}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	host := &Host{
		Config: p.config,
		Sandbox: func(dir *state.Dir, keep bool, log *slog.Logger) (*sandbox.Sandbox, error) {
			return sandbox.New(sandbox.Options{
				Config: p.config, Driver: p.driver, Dir: dir, Keep: keep, Log: log, Guest: assets.Guest{Kernel: kernel},
			}), nil
		},
		Serve: func(*sandbox.Sandbox, *state.Dir, *slog.Logger) (func(), error) { return func() {}, nil },
		Join:  func(_, _ *state.Dir) error { return nil },
	}
	p.shim = &service{
		program:   Program{Open: func(string) (*Host, error) { return host, nil }},
		namespace: "k8s.io", id: "pod", log: log, containers: map[string]*container{}, socket: filepath.Join(dir, "sock"),
		events: newPublisher("", "k8s.io", log), end: make(chan struct{}),
	}
	listener, err := net.Listen("unix", p.shim.socket)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(p.shim.intercept))
	if err != nil {
		t.Fatal(err)
	}
	p.shim.register(server)
	p.shim.registerSandbox(server)
	go func() { _ = server.Serve(context.Background(), listener) }()
	conn, err := net.Dial("unix", p.shim.socket)
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	p.TTRPCSandboxService, p.tasks = api.NewTTRPCSandboxClient(client), task.NewTTRPCTaskClient(client)
	t.Cleanup(func() {
		p.shim.endAll("the test is over")
		client.Close()
		server.Close()
		_ = sys.Unmount(filepath.Join(p.bundle, shmDir)) // most often it is gone
		_ = p.shim.events.close()                        // nobody takes events
	})
	if err := os.Mkdir(p.bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := saveOptions(p.bundle, nil, nil); err != nil {
		t.Fatal(err)
	}
	return p
}

// start makes the pod.
func (p *podShim) start(t *testing.T) *api.StartSandboxResponse {
	t.Helper()
	config, err := proto.Marshal(&cri.PodSandboxConfig{ // the CRI's own form
		Metadata: &cri.PodSandboxMetadata{Name: "web-0"}, Hostname: "web-0", Labels: map[string]string{"a": "b"},
		DnsConfig: &cri.DNSConfig{Servers: []string{"10.0.0.10"}}, Annotations: map[string]string{"c": "d"},
		Linux: &cri.LinuxPodSandboxConfig{
			Sysctls:   map[string]string{"kernel.shm_rmid_forced": "1"},
			Resources: &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 100000, CpuShares: 9, MemoryLimitInBytes: 300 << 20},
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				RunAsUser: &cri.Int64Value{Value: 5},
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER, UsernsOptions: &cri.UserNamespace{
					Uids: []*cri.IDMapping{{HostId: 100000, Length: 65536}}, Gids: []*cri.IDMapping{{HostId: 200000, Length: 65536}},
				}},
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	request := &api.CreateSandboxRequest{SandboxID: "pod", BundlePath: p.bundle, Options: &anypb.Any{TypeUrl: podConfigURL, Value: config}}
	if _, err := p.CreateSandbox(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CreateSandbox(t.Context(), request); status.Code(err) != codes.AlreadyExists {
		t.Errorf("a second sandbox in one shim: %v", err)
	}
	started, err := p.StartSandbox(t.Context(), &api.StartSandboxRequest{SandboxID: "pod"})
	if err != nil {
		t.Fatal(err)
	}
	return started
}

// container creates and starts a container of the pod, whose namespaces are those of process pid.
func (p *podShim) container(t *testing.T, id, pid string) {
	t.Helper()
	bundle := p.bundleOf(t, id, pid, nil)
	if _, err := p.tasks.Create(t.Context(), &task.CreateTaskRequest{ID: id, Bundle: bundle}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.tasks.Start(t.Context(), &task.StartRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
}

// TestPod leads a pod without a container of its own through its life.
func TestPod(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	p := newPodShim(t)
	if _, err := p.SandboxStatus(t.Context(), &api.SandboxStatusRequest{SandboxID: "pod"}); status.Code(err) != codes.NotFound {
		t.Errorf("before there is a sandbox its status is %v", err)
	}
	started := p.start(t)
	if started.Pid == 0 || !sys.IsOwnThread(int(started.Pid)) || started.CreatedAt == nil || started.Spec.GetTypeUrl() != specURL {
		t.Errorf("the sandbox stands as %v", started)
	}
	pod, containers := p.guest.asked()
	if pod.GetHostname() != "web-0" || pod.Sysctls["kernel.shm_rmid_forced"] != "1" || pod.Uids[0].Outer != 100000 || pod.Gids[0].Outer != 200000 {
		t.Errorf("the guest was asked for %v", pod)
	}
	if _, size := p.driver.started(); size.VCPUs != 1 || size.MemoryMiB < 300 || size.MemoryMiB > 300+300/64+1+p.config.OverheadMiB {
		t.Errorf("limits of 1 processor and 300 MiB made a machine of %d and %d MiB", size.VCPUs, size.MemoryMiB)
	}
	got, err := p.SandboxStatus(t.Context(), &api.SandboxStatusRequest{SandboxID: "pod", Verbose: true})
	if err != nil || got.State != podReady || got.Pid != started.Pid || !strings.Contains(got.Info["info"], `"processStatus":"running"`) {
		t.Errorf("status %v, %v", got, err)
	}
	if platform, err := p.Platform(t.Context(), &api.PlatformRequest{SandboxID: "pod"}); err != nil || platform.Platform.OS != "linux" {
		t.Errorf("platform %v, %v", platform, err)
	}
	if _, err := p.PingSandbox(t.Context(), &api.PingRequest{SandboxID: "pod"}); err != nil {
		t.Errorf("ping: %v", err)
	}
	if m, err := p.SandboxMetrics(t.Context(), &api.SandboxMetricsRequest{SandboxID: "pod"}); err != nil || m.Metrics.ID != "pod" || m.Metrics.Data == nil {
		t.Errorf("metrics %v, %v", m, err)
	}
	if len(containers) != 0 {
		t.Errorf("the sandbox made the containers %v", containers)
	}

	pid := strconv.Itoa(int(started.Pid))
	p.container(t, "one", pid)
	p.container(t, "two", pid)
	_, containers = p.guest.asked()
	one, two := containers[0], containers[1]
	if one.Memory[0].Name != two.Memory[0].Name || one.Memory[0].Bytes != 64<<20 {
		t.Errorf("shared memory of the containers: %v and %v", one.Memory, two.Memory)
	}
	if !bytes.Contains(one.Spec, []byte(`"path":"husk:k8s.io.pod"`)) || !bytes.Contains(one.Spec, []byte("/etc/resolv.conf")) {
		t.Errorf("the guest was given %s", one.Spec)
	}

	// The end of a container, also of the last one, is not the sandbox'.
	for _, id := range []string{"one", "two"} {
		p.endTask(t, id)
	}
	if _, err := p.tasks.Shutdown(t.Context(), &task.ShutdownRequest{ID: "two"}); err != nil {
		t.Fatal(err)
	}
	if got, err := p.SandboxStatus(t.Context(), &api.SandboxStatusRequest{SandboxID: "pod"}); err != nil || got.State != podReady {
		t.Errorf("without a container the status is %v, %v", got, err)
	}
	p.container(t, "three", pid)
	p.shutdown(t)
	if entries, err := os.ReadDir(p.config.RunDir); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// endTask kills and deletes a container.
func (p *podShim) endTask(t *testing.T, id string) {
	t.Helper()
	if _, err := p.tasks.Kill(t.Context(), &task.KillRequest{ID: id, Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if exit, err := p.tasks.Wait(t.Context(), &task.WaitRequest{ID: id}); err != nil || exit.ExitStatus != 137 {
		t.Fatalf("container %s exited with %v, %v", id, exit, err)
	}
	if _, err := p.tasks.Delete(t.Context(), &task.DeleteRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
}

// shutdown stops and removes the pod, whose container three has not ended.
func (p *podShim) shutdown(t *testing.T) {
	t.Helper()
	for range 2 {
		if _, err := p.StopSandbox(t.Context(), &api.StopSandboxRequest{SandboxID: "pod"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.WaitSandbox(t.Context(), &api.WaitSandboxRequest{SandboxID: "pod"}); err != nil {
		t.Fatal(err)
	}
	if exit, err := p.tasks.Wait(t.Context(), &task.WaitRequest{ID: "three"}); err != nil || exit.ExitStatus != 137 {
		t.Errorf("the container of a stopped pod exited with %v, %v", exit, err)
	}
	got, err := p.SandboxStatus(t.Context(), &api.SandboxStatusRequest{SandboxID: "pod"})
	if err != nil || got.State != podNotReady || got.Pid != 0 || got.ExitedAt == nil {
		t.Errorf("status of a stopped pod: %v, %v", got, err)
	}
	if _, err := p.StartSandbox(t.Context(), &api.StartSandboxRequest{SandboxID: "pod"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a stopped pod was started: %v", err)
	}
	if _, err := p.ShutdownSandbox(t.Context(), &api.ShutdownSandboxRequest{SandboxID: "pod"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.shim.end:
	case <-time.After(time.Minute):
		t.Error("the shim goes on")
	}
}

// TestPodLost has the monitor of a pod die: the pod is not ready, its container was killed, and both can be removed.
func TestPodLost(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	p := newPodShim(t)
	started := p.start(t)
	p.container(t, "one", strconv.Itoa(int(started.Pid)))
	vm, _ := p.driver.started()
	vm.Crash()
	exit, err := p.WaitSandbox(t.Context(), &api.WaitSandboxRequest{SandboxID: "pod"})
	if err != nil || exit.ExitStatus != 137 || exit.ExitedAt == nil {
		t.Errorf("the sandbox exited with %v, %v", exit, err)
	}
	if got, err := p.SandboxStatus(t.Context(), &api.SandboxStatusRequest{SandboxID: "pod"}); err != nil || got.State != podNotReady {
		t.Errorf("status %v, %v", got, err)
	}
	if _, err := p.PingSandbox(t.Context(), &api.PingRequest{SandboxID: "pod"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("ping: %v", err)
	}
	if exit, err := p.tasks.Wait(t.Context(), &task.WaitRequest{ID: "one"}); err != nil || exit.ExitStatus != 137 {
		t.Errorf("the container exited with %v, %v", exit, err)
	}
	if _, err := p.tasks.Delete(t.Context(), &task.DeleteRequest{ID: "one"}); err != nil {
		t.Error(err)
	}
	if _, err := p.ShutdownSandbox(t.Context(), &api.ShutdownSandboxRequest{SandboxID: "pod"}); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(p.config.RunDir); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestPodRefused has a guest that cannot be what the pod asks for.
func TestPodRefused(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	p := newPodShim(t)
	p.guest.refuses = true
	config := &anypb.Any{TypeUrl: podConfigURL}
	if _, err := p.CreateSandbox(t.Context(), &api.CreateSandboxRequest{SandboxID: "pod", BundlePath: p.bundle, Options: config}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // nothing is left of the first
		_, err := p.StartSandbox(t.Context(), &api.StartSandboxRequest{SandboxID: "pod"})
		if err == nil || !strings.Contains(err.Error(), "no such setting") {
			t.Fatalf("start: %v", err)
		}
	}
	if _, err := p.ShutdownSandbox(t.Context(), &api.ShutdownSandboxRequest{SandboxID: "pod"}); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(p.config.RunDir); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestPodUnmade has containerd shut down a sandbox that could not be made, which ends its shim.
func TestPodUnmade(t *testing.T) {
	p := newPodShim(t)
	options := &anypb.Any{TypeUrl: "some.Options"}
	if _, err := p.CreateSandbox(t.Context(), &api.CreateSandboxRequest{SandboxID: "pod", BundlePath: p.bundle, Options: options}); status.Code(err) != codes.InvalidArgument {
		t.Fatalf("a sandbox with options of no known type: %v", err)
	}
	if _, err := p.ShutdownSandbox(t.Context(), &api.ShutdownSandboxRequest{SandboxID: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("another sandbox was shut down: %v", err)
	}
	if _, err := p.ShutdownSandbox(t.Context(), &api.ShutdownSandboxRequest{SandboxID: "pod"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p.shim.socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	select {
	case <-p.shim.end:
	case <-time.After(time.Minute):
		t.Error("the shim goes on")
	}
}
