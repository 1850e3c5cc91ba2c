package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent/cgroup"
	"husk.dev/husk/internal/agent/runner"
)

// TestHolderTells takes what holders tell: one that ends without a word is not set up.
func TestHolderTells(t *testing.T) {
	for told, want := range map[string]string{
		holderDone: "<nil>", "": "it ended before it was set up", "become nobody: no": "become nobody: no",
	} {
		if got := fmt.Sprint(isSetUp(strings.NewReader(told))); got != want {
			t.Errorf("after %q: %s, want %s", told, got, want)
		}
	}
}

// TestPodBeingMade has a container ask for a namespace of a pod that is being made: others are not held up, and it hears
// how that ends.
func TestPodBeingMade(t *testing.T) {
	a := New(Config{})
	p := &pod{id: "p"}
	p.mu.Lock()
	if !a.takePod(p) || a.takePod(&pod{}) {
		t.Error("a guest has one pod")
	}
	asked := make(chan error)
	go func() {
		_, err := a.namespace("ipc", "p")
		asked <- err
	}()
	found := make(chan error)
	go func() {
		time.Sleep(50 * time.Millisecond) // the other waits by now
		_, err := a.find("c")
		found <- err
	}()
	select {
	case err := <-found:
		if err == nil {
			t.Error("found a container that there is not")
		}
	case err := <-asked:
		t.Fatalf("got a namespace of a pod that is not made: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("no container can be found meanwhile")
	}
	p.failed = errors.New("no pod")
	p.mu.Unlock()
	if err := <-asked; !errors.Is(err, p.failed) {
		t.Errorf("got %v, want %v", err, p.failed)
	}
}

func TestStates(t *testing.T) {
	all := []state{creating, created, running, paused, stopped}
	want := map[state]string{creating: "created stopped", created: "running stopped", running: "paused stopped", paused: "running stopped", stopped: ""}
	for _, from := range all {
		var to string
		for _, next := range all {
			err := from.move("do", "c", next)
			if err == nil {
				to += next.String() + " "
			} else if got, wants := err.Error(), fmt.Sprintf(`cannot do container "c": it is %s`, from); got != wants {
				t.Errorf("message is %q, want %q", got, wants)
			}
		}
		if to != want[from] && to != want[from]+" " {
			t.Errorf("from %s to %q, want %q", from, to, want[from])
		}
	}
	c := &container{state: stopped}
	if c.become(running) || c.is() != stopped {
		t.Error("what has stopped runs again")
	}
}

func TestDecide(t *testing.T) {
	ms := time.Millisecond
	for _, c := range []struct {
		name           string
		offset, before time.Duration
		first          bool
		change, ahead  time.Duration
	}{
		{"in step", 500 * time.Microsecond, 0, false, 0, 0},
		{"behind", -50 * ms, 0, false, 50 * ms, 0},
		{"far behind", -time.Hour, 0, false, time.Hour, 0},
		{"ahead once", 2 * time.Second, 0, false, 0, 2 * time.Second},
		{"ahead twice", 2 * time.Second, 3 * time.Second, false, -2 * time.Second, 0},
		{"late once after being ahead", 9 * time.Second, 20 * ms, false, -20 * ms, 9*time.Second - 20*ms},
		{"first, ahead", time.Hour, 0, true, -time.Hour, 0},
		{"first, behind", -time.Hour, 0, true, time.Hour, 0},
		{"first, in step", ms / 2, 0, true, 0, 0},
	} {
		change, ahead := decide(c.offset, c.before, c.first)
		if change != c.change || ahead != c.ahead {
			t.Errorf("%s: change %v, ahead %v, want %v, %v", c.name, change, ahead, c.change, c.ahead)
		}
	}
}

func TestToStatus(t *testing.T) {
	crun := func(class error) error { return fmt.Errorf("create: %w", class) }
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{nil, codes.OK},
		{crun(runner.ErrNoCommand), codes.NotFound},
		{crun(runner.ErrNotAllowed), codes.PermissionDenied},
		{wrongState("start", "c", paused), codes.FailedPrecondition},
		{fmt.Errorf("a: %w", fail(codes.AlreadyExists, "b")), codes.AlreadyExists},
		{fmt.Errorf("stats: %w", cgroup.ErrNone), codes.FailedPrecondition},
		{os.ErrPermission, codes.Internal},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
	} {
		got := status.Convert(toStatus(c.err))
		if got.Code() != c.want || c.err != nil && got.Message() != c.err.Error() {
			t.Errorf("%v: %v %q, want %v", c.err, got.Code(), got.Message(), c.want)
		}
	}
}

// TestPanic has a call panic: that is its answer, and no more.
func TestPanic(t *testing.T) {
	info := &ttrpc.UnaryServerInfo{FullMethod: "/x/Y"}
	_, err := answer(t.Context(), nil, info, func(context.Context, func(any) error) (any, error) { panic("oops") })
	if s := status.Convert(err); s.Code() != codes.Internal || s.Message() != "/x/Y: panic: oops" {
		t.Errorf("error is %v", err)
	}
}

func oom(id string) *agentv1.Event {
	return &agentv1.Event{Container: id, Event: &agentv1.Event_Oom{Oom: &agentv1.OOM{}}}
}

func TestEventsAreKept(t *testing.T) {
	e := newEvents()
	for i := range maxEvents + 3 {
		e.push(oom(fmt.Sprint(i)))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var got []string
	err := e.read(ctx, func(event *agentv1.Event) error {
		if got = append(got, event.Container); len(got) == maxEvents {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || len(got) != maxEvents || got[0] != "3" || got[maxEvents-1] != fmt.Sprint(maxEvents+2) {
		t.Errorf("%v; %d events from %s", err, len(got), got[0])
	}
}

// TestEventReaders has a reader fail and another take over: no event is lost.
func TestEventReaders(t *testing.T) {
	e := newEvents()
	e.push(oom("a"))
	broken := errors.New("broken")
	if err := e.read(t.Context(), func(*agentv1.Event) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("error is %v", err)
	}
	got := make(chan string, 10)
	send := func(event *agentv1.Event) error { got <- event.Container; return nil }
	first := make(chan error, 1)
	go func() { first <- e.read(t.Context(), send) }()
	if id := <-got; id != "a" {
		t.Errorf("event is %q, want the one that was not sent", id)
	}
	ctx, cancel := context.WithCancel(t.Context())
	second := make(chan error, 1)
	go func() { second <- e.read(ctx, send) }()
	if err := <-first; err == nil || status.Code(toStatus(err)) != codes.Aborted {
		t.Errorf("first reader: %v, want Aborted", err)
	}
	e.push(oom("b"))
	if id := <-got; id != "b" {
		t.Errorf("event is %q", id)
	}
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("second reader: %v", err)
	}
}

func TestProcessIDs(t *testing.T) {
	p := newProcesses()
	if err := p.reserve("a"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.get("c", "a"); status.Code(toStatus(err)) != codes.NotFound {
		t.Errorf("a process that is being started: %v", err)
	}
	if err := p.reserve("a"); status.Code(toStatus(err)) != codes.AlreadyExists {
		t.Errorf("the same id again: %v", err)
	}
	p.set("a", &process{pid: 3})
	if got, err := p.get("c", "a"); err != nil || got.pid != 3 {
		t.Errorf("%v, %v", got, err)
	}
	p.remove("a")
	if err := p.reserve("a"); err != nil {
		t.Errorf("an id that is free again: %v", err)
	}
	for i := range maxProcesses - 1 {
		if err := p.reserve(fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.reserve("more"); status.Code(toStatus(err)) != codes.ResourceExhausted {
		t.Errorf("more than %d: %v", maxProcesses, err)
	}
}
