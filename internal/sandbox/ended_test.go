package sandbox

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/state"
)

// operations are all that can be asked of a sandbox about a container, as it is when it is asked.
var operations = map[string]struct {
	from state.Status
	ask  func(context.Context, *Sandbox) error
}{
	"Start":  {state.Created, func(ctx context.Context, s *Sandbox) error { return s.Start(ctx, "c") }},
	"Signal": {state.Running, func(ctx context.Context, s *Sandbox) error { return s.Signal(ctx, "c", "", 9, true) }},
	"Resize": {state.Running, func(ctx context.Context, s *Sandbox) error { return s.Resize(ctx, "c", "", 1, 1) }},
	"Pause":  {state.Running, func(ctx context.Context, s *Sandbox) error { return s.Pause(ctx, "c") }},
	"Resume": {state.Paused, func(ctx context.Context, s *Sandbox) error { return s.Resume(ctx, "c") }},
	"Update": {state.Running, func(ctx context.Context, s *Sandbox) error { return s.Update(ctx, "c", specs.LinuxResources{}) }},
	"Delete": {state.Running, func(ctx context.Context, s *Sandbox) error { return s.Delete(ctx, "c", true) }},
	"Stats":  {state.Running, func(ctx context.Context, s *Sandbox) error { _, err := s.Stats(ctx, "c"); return err }},
	"Processes": {state.Running, func(ctx context.Context, s *Sandbox) error {
		_, err := s.Processes(ctx, "c")
		return err
	}},
	"Exec": {state.Running, func(ctx context.Context, s *Sandbox) error {
		_, err := s.Exec(ctx, "c", "e", specs.Process{Args: []string{"true"}}, Stdio{Out: discard{}})
		return err
	}},
	"Copy": {state.Running, func(ctx context.Context, s *Sandbox) error {
		return s.Copy(ctx, "c", "y", nil, Stdio{Out: discard{}})
	}},
	"Shell": {state.Running, func(ctx context.Context, s *Sandbox) error {
		return s.Shell(ctx, "c", "x", nil, nil, Stdio{Out: discard{}})
	}},
}

// others ask no guest, or are not about a container that runs.
var others = []string{
	"Attach", "Connect", "Create", "Disown", "Done", "End", "Events", "LeaveOutput", "Remove", "State", "Timeline", "Wait", "Warnings",
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }

// ending is a guest that ends while it is asked something, once it is armed.
type ending struct {
	agent
	armed   atomic.Bool
	answers bool // that there is no such process any more, and then tells of its end; else it goes away
	exit    chan struct{}
}

// calm are the calls that are none of an operation's.
var calm = []string{"Hello", "Ping", "Events"}

func (e *ending) serve(ctx context.Context, s *channel.Server) error {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	rpc, err := s.Listen(agentv1.PortRPC)
	if err != nil {
		return err
	}
	streams, err := s.Listen(agentv1.PortIO)
	if err != nil {
		return err
	}
	go func() {
		for {
			if _, err := streams.Accept(); err != nil {
				return
			}
			if e.armed.Load() && !e.answers {
				leave()
			}
		}
	}()
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(func(call context.Context, u ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, m ttrpc.Method) (any, error) {
		name := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
		for _, other := range calm {
			if name == other {
				return m(call, u)
			}
		}
		switch {
		case !e.armed.Load() && name == "CreateContainer":
			return m(call, u)
		case !e.armed.Load():
			return &agentv1.Empty{}, nil
		case e.answers:
			time.AfterFunc(50*time.Millisecond, func() { close(e.exit) })
			return nil, status.Error(codes.FailedPrecondition, "it is stopped")
		}
		leave()
		<-call.Done()
		return nil, call.Err()
	}))
	if err != nil {
		return err
	}
	e.events = func(ctx context.Context, out agentv1.Agent_EventsServer) error {
		select {
		case <-e.exit:
			_ = out.Send(&agentv1.Event{Container: "c", Event: &agentv1.Event_Exit{Exit: &agentv1.Exit{Status: 137}}})
			<-ctx.Done()
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	agentv1.RegisterAgentService(server, e)
	go server.Serve(ctx, rpc)
	<-ctx.Done()
	return server.Close()
}

// TestEnding has a container end in the middle of everything that can be asked of it: what is answered is that of before or
// of after, never the words of a connection that broke. An operation that is not in the table fails it.
func TestEnding(t *testing.T) {
	known := map[string]bool{}
	for _, name := range others {
		known[name] = true
	}
	for kind, i := reflect.TypeFor[*Sandbox](), 0; i < kind.NumMethod(); i++ {
		if name := kind.Method(i).Name; !known[name] && operations[name].ask == nil {
			t.Errorf("%s: what does it answer while a container ends? Add it to operations, or to others", name)
		}
	}
	for name, o := range operations {
		for how, answers := range map[string]bool{"goes away": false, "answers": true} {
			t.Run(name+"/"+how, func(t *testing.T) {
				e := &ending{exit: make(chan struct{}), answers: answers}
				s, request := newSandbox(t, e.serve)
				request.Start = o.from != state.Created
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if err := s.Create(ctx, request); err != nil {
					t.Fatal(err)
				}
				if o.from == state.Paused {
					if err := s.Pause(ctx, "c"); err != nil {
						t.Fatal(err)
					}
				}
				e.armed.Store(true)
				err := o.ask(ctx, s)
				if err != nil && (!errors.Is(err, ErrEnded) || !errors.Is(err, ErrState) || !strings.HasSuffix(err.Error(), ": container not running")) {
					t.Errorf("%v, want that it is done, or that the container does not run", err)
				}
				if err == nil && o.from != state.Created && name != "Delete" && name != "Exec" && name != "Signal" {
					t.Error("no error, and nothing done")
				}
				if name == "Signal" && !answers && err != nil {
					t.Errorf("%v, want no error: the container has ended", err)
				}
			})
		}
	}
}

// TestEndingWhileMade has a guest go away while a container is made in it: the error is why it went.
func TestEndingWhileMade(t *testing.T) {
	e := &ending{exit: make(chan struct{})}
	s, request := newSandbox(t, e.serve)
	e.armed.Store(true)
	err := s.Create(t.Context(), request)
	if err == nil || strings.Contains(err.Error(), "ttrpc") || strings.Contains(err.Error(), "closed") {
		t.Errorf("Create = %v, want the reason of the virtual machine's end", err)
	}
}
