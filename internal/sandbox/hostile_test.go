package sandbox

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/vmm/vmmtest"
)

// newSandbox makes a sandbox for container "c" around a guest that serve plays, and a request for it.
func newSandbox(t *testing.T, serve func(context.Context, *channel.Server) error) (*Sandbox, CreateRequest) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "file") // stands for the kernel, the image and a layer: the fake reads none
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.RunDir, c.DataDir, c.StartTimeoutSeconds = filepath.Join(dir, "run"), filepath.Join(dir, "data"), 2
	stateDir, err := state.Create(c.RunDir, "c")
	if err != nil {
		t.Fatal(err)
	}
	self, err := state.Self("test")
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := stateDir.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stateDir.Save(state.Container{Status: state.Creating, Owner: self}); err != nil {
		t.Fatal(err)
	}
	unlock()
	spec := ocispec.Example(false, 0, 0)
	spec.Process.Terminal = false
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{
		Config: c, Driver: &vmmtest.Fake{Serve: serve}, Dir: stateDir,
		Guest: assets.Guest{Kernel: file, Initrd: file}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	t.Cleanup(func() { s.End("the test is over") })
	return s, CreateRequest{ID: "c", Bundle: dir, Spec: data, Layers: []string{file}, Start: true}
}

// agent plays a guest whose agent answers as its functions say.
type agent struct {
	agentv1.AgentService
	hello  func() (*agentv1.HelloResponse, error)
	create func() (*agentv1.CreateContainerResponse, error)
	exec   func() (*agentv1.ExecResponse, error)
	pause  func() (*agentv1.Empty, error)
	events func(context.Context, agentv1.Agent_EventsServer) error
}

func (a *agent) Hello(context.Context, *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	if a.hello != nil {
		return a.hello()
	}
	return &agentv1.HelloResponse{Version: agentv1.Version}, nil
}

func (a *agent) Ping(context.Context, *agentv1.PingRequest) (*agentv1.PingResponse, error) {
	return &agentv1.PingResponse{}, nil
}

func (a *agent) CreateContainer(context.Context, *agentv1.CreateContainerRequest) (*agentv1.CreateContainerResponse, error) {
	if a.create != nil {
		return a.create()
	}
	return &agentv1.CreateContainerResponse{Pid: 7}, nil
}

func (a *agent) Exec(context.Context, *agentv1.ExecRequest) (*agentv1.ExecResponse, error) {
	return a.exec()
}

func (a *agent) Pause(context.Context, *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	return a.pause()
}

func (a *agent) Events(ctx context.Context, _ *agentv1.Empty, out agentv1.Agent_EventsServer) error {
	if a.events != nil {
		return a.events(ctx, out)
	}
	<-ctx.Done()
	return ctx.Err()
}

func (a *agent) serve(ctx context.Context, s *channel.Server) error {
	l, err := s.Listen(agentv1.PortRPC)
	if err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	agentv1.RegisterAgentService(server, a)
	go server.Serve(ctx, l)
	<-ctx.Done()
	return server.Close()
}

// raw plays a guest that answers whatever comes on the agent's port with bytes of its own.
func raw(answer func(net.Conn)) func(context.Context, *channel.Server) error {
	return func(ctx context.Context, s *channel.Server) error {
		l, err := s.Listen(agentv1.PortRPC)
		if err != nil {
			return err
		}
		go func() {
			if conn, err := l.Accept(); err == nil {
				answer(conn)
			}
		}()
		<-ctx.Done()
		return nil
	}
}

// TestCreateSurvivesHostileGuests has guests misbehave in every way that the protocol's frames allow.
// Each must cost no more than its own sandbox, with one line that says what happened.
func TestCreateSurvivesHostileGuests(t *testing.T) {
	tooLarge := func(conn net.Conn) {
		frame := make([]byte, 10)
		binary.BigEndian.PutUint32(frame, 0xffff_ffff) // length
		binary.BigEndian.PutUint32(frame[4:], 1)       // stream
		frame[8] = 2                                   // response
		_, _ = conn.Write(append(frame, make([]byte, 1<<16)...))
	}
	for _, c := range []struct {
		name  string
		serve func(context.Context, *channel.Server) error
		want  string
	}{
		{"never answers", raw(func(net.Conn) {}), "did not answer within 2 s"},
		{"answers with a frame of 4 GiB", raw(tooLarge), "boot guest"},
		{"answers with noise", raw(func(c net.Conn) { _, _ = c.Write([]byte(strings.Repeat("noise ", 4096))) }), "boot guest"},
		{"hangs up", raw(func(c net.Conn) { _ = c.Close() }), "boot guest"},
		{"powers off at once", func(context.Context, *channel.Server) error { return nil }, "boot guest"},
		{"speaks another version", (&agent{hello: func() (*agentv1.HelloResponse, error) {
			return &agentv1.HelloResponse{Version: 99}, nil
		}}).serve, "another protocol version: 99"},
		{"refuses with control characters", (&agent{create: func() (*agentv1.CreateContainerResponse, error) {
			return nil, status.Error(codes.Internal, "\x1b[2Jbad\nnews"+strings.Repeat("x", 1<<16))
		}}).serve, "[2Jbad news"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, request := newSandbox(t, c.serve)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := s.Create(ctx, request)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Create = %v, want an error with %q", err, c.want)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 4096 {
				t.Errorf("error has control characters or %d bytes: %.200q", len(err.Error()), err)
			}
			select {
			case <-s.Done():
			case <-ctx.Done():
				t.Fatal("the sandbox has not ended")
			}
			if err := s.Remove(); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(s.options.Dir.Path("")); !os.IsNotExist(err) {
				t.Errorf("state directory: %v, want it gone", err)
			}
		})
	}
}

// TestLostGuestEndsItsContainer has a running guest's agent break off: the container counts as killed.
func TestLostGuestEndsItsContainer(t *testing.T) {
	leave := make(chan struct{})
	guest := &agent{events: func(ctx context.Context, out agentv1.Agent_EventsServer) error {
		// Events of containers and processes that were never made are nobody's.
		_ = out.Send(&agentv1.Event{Container: "other", Event: &agentv1.Event_Exit{Exit: &agentv1.Exit{Status: 1}}})
		_ = out.Send(&agentv1.Event{Container: "c", Exec: "never", Event: &agentv1.Event_Exit{Exit: &agentv1.Exit{Status: 1}}})
		_ = out.Send(&agentv1.Event{Container: "c"})
		<-leave
		return status.Error(codes.Unavailable, "gone")
	}}
	s, request := newSandbox(t, guest.serve)
	if err := s.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	close(leave)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	exit, err := s.Wait(ctx, "c", "")
	if err != nil {
		t.Fatal(err)
	}
	if exit.Status != 137 || !strings.Contains(exit.Reason, "gone") {
		t.Errorf("exit = %+v, want status 137 and the guest's reason", exit)
	}
	<-s.Done()
	record, err := s.options.Dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	if record.Status != state.Stopped || record.ExitStatus != 137 {
		t.Errorf("on record: %s with %d, want stopped with 137", record.Status, record.ExitStatus)
	}
}

// TestExecOfLostGuest has a guest go away while it is asked for a process, which may have run by then: it counts
// as killed, and whoever waits for it is told why.
func TestExecOfLostGuest(t *testing.T) {
	guest := &agent{}
	s, request := newSandbox(t, func(ctx context.Context, server *channel.Server) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		guest.exec = func() (*agentv1.ExecResponse, error) {
			cancel()
			time.Sleep(time.Minute) // no answer while the connection stands
			return nil, status.Error(codes.Internal, "too late")
		}
		return guest.serve(ctx, server)
	})
	if err := s.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Exec(t.Context(), "c", "e", specs.Process{Args: []string{"true"}}, Stdio{}); err != nil {
		t.Fatalf("Exec = %v, want Wait to tell", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	exit, err := s.Wait(ctx, "c", "e")
	if err != nil {
		t.Fatal(err)
	}
	if exit.Status != 137 || exit.Reason == "" {
		t.Errorf("exit = %+v, want status 137 and a reason", exit)
	}
}
