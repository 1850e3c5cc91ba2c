package template

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest"
)

// fakeDriver starts fake VMs whose guest is an agent that knows Hello and Rest, and that can be saved.
type fakeDriver struct {
	key              func(vmm.Spec) (string, error) // nil: by memory and processors
	start            func(ctx context.Context) error
	agent            fakeAgent
	save             func(ctx context.Context, memory, state *os.File) error
	started, running atomic.Int32

	mu   sync.Mutex
	spec vmm.Spec // guarded by mu: of the last VM
}

// fakeAgent says how the guest behaves.
type fakeAgent struct {
	agentv1.AgentService
	helloErr error
	network  func(*agentv1.SetNetworkRequest) error
	silent   bool   // never says that it rests
	last     string // what it prints in place of that, and ends
}

func (a *fakeAgent) Hello(context.Context, *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	return &agentv1.HelloResponse{Version: agentv1.Version}, a.helloErr
}

func (a *fakeAgent) SetNetwork(_ context.Context, r *agentv1.SetNetworkRequest) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, a.network(r)
}

func (a *fakeAgent) Rest(context.Context, *agentv1.Empty) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

func (d *fakeDriver) Info() vmm.Info { return vmm.Info{Name: "fake"} }

func (d *fakeDriver) SnapshotKey(s vmm.Spec) (string, error) {
	if d.key != nil {
		return d.key(s)
	}
	kind := len(s.NICs)
	if kind > 0 && s.NICs[0].Stream != nil {
		kind = 2
	}
	return fmt.Sprintf("%01x%027x%04x", kind, s.VCPUs, s.MemoryMiB), nil
}

func (d *fakeDriver) Start(ctx context.Context, s vmm.Spec) (vmm.VM, error) {
	console := s.Console
	s.Console = nil // Fake would close it before the guest rests
	d.mu.Lock()
	d.spec = s
	d.mu.Unlock()
	d.started.Add(1)
	if d.start != nil {
		if err := d.start(ctx); err != nil {
			console.Close()
			return nil, err
		}
	}
	fake := vmmtest.Fake{Serve: func(ctx context.Context, c *channel.Server) error {
		defer console.Close()
		return d.serve(ctx, c, console)
	}}
	vm, err := fake.Start(ctx, s)
	if err != nil {
		console.Close()
		return nil, err
	}
	d.running.Add(1)
	return &fakeVM{VM: vm, driver: d}, nil
}

// serve is the guest: it says that it rests when its one caller has hung up, as the agent does.
func (d *fakeDriver) serve(ctx context.Context, c *channel.Server, console *os.File) error {
	rpc, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	defer rpc.Close()
	agentv1.RegisterAgentService(rpc, &d.agent)
	l, err := c.Listen(agentv1.PortRPC)
	if err != nil {
		return err
	}
	go func() { _ = rpc.Serve(ctx, l) }() // ends with the guest
	switch {
	case d.agent.last != "":
		fmt.Fprintln(console, d.agent.last)
		return errors.New("the guest is broken")
	case !d.agent.silent:
		fmt.Fprintf(console, "booting\n%s\n", agentv1.Rested)
	}
	<-ctx.Done()
	return ctx.Err()
}

type fakeVM struct {
	vmm.VM
	driver *fakeDriver
	once   sync.Once
}

func (v *fakeVM) Stop(ctx context.Context) error {
	v.once.Do(func() { v.driver.running.Add(-1) })
	return v.VM.Stop(ctx)
}

func (v *fakeVM) Save(ctx context.Context, memory, state *os.File) error {
	if v.driver.save != nil {
		return v.driver.save(ctx, memory, state)
	}
	if err := memory.Truncate(1 << 20); err != nil {
		return err
	}
	_, err := memory.WriteAt([]byte("memory of a guest"), 4096)
	_, err2 := state.WriteString("state of a guest")
	return errors.Join(err, err2)
}

// bare hides what a driver or VM can do beyond the contract.
type bare struct{ vmm.Driver }

// keyed is a driver whose VMs cannot be saved.
type keyed struct{ *fakeDriver }

func (d keyed) Start(ctx context.Context, s vmm.Spec) (vmm.VM, error) {
	vm, err := d.fakeDriver.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	return struct{ vmm.VM }{vm}, nil
}

// options describe a template that d can build.
func options(t *testing.T, d vmm.Driver) BuildOptions {
	t.Helper()
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, []byte("kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	return BuildOptions{
		Driver: d, KernelVersion: "6.1-test",
		Spec: vmm.Spec{ID: "template", Machine: "q35", Kernel: kernel, MemoryMiB: 300, VCPUs: 1},
	}
}

// built is a store with one whole template.
func built(t *testing.T) (*Store, string) {
	t.Helper()
	s := Open(filepath.Join(t.TempDir(), "templates"))
	key, err := s.Build(t.Context(), options(t, &fakeDriver{}))
	if err != nil {
		t.Fatal(err)
	}
	return s, key
}

// names lists a store's directory, its lock left out.
func names(t *testing.T, s *Store) string {
	t.Helper()
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if e.Name() != lockFile {
			all = append(all, e.Name())
		}
	}
	return strings.Join(all, " ")
}

// bound is a context that ends before the test's patience does.
func bound(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// full is the error of a disk that has no room.
func full(context.Context, *os.File, *os.File) error {
	return &os.PathError{Op: "write", Path: "memory", Err: syscall.ENOSPC}
}
