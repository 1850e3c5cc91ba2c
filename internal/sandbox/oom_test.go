package sandbox

import (
	"context"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// TestOutOfMemory has a guest tell of processes without memory, of the container's end among them: its engine hears
// of it before the end is told, and no more often than it needs.
func TestOutOfMemory(t *testing.T) {
	begin := make(chan struct{})
	guest := &agent{events: func(ctx context.Context, out agentv1.Agent_EventsServer) error {
		<-begin
		for range 100 {
			_ = out.Send(&agentv1.Event{Container: "c", Event: &agentv1.Event_Oom{Oom: &agentv1.OOM{}}})
			_ = out.Send(&agentv1.Event{Container: "other", Event: &agentv1.Event_Oom{Oom: &agentv1.OOM{}}})
		}
		_ = out.Send(&agentv1.Event{Container: "c", Event: &agentv1.Event_Exit{Exit: &agentv1.Exit{Status: 137}}})
		<-ctx.Done()
		return ctx.Err()
	}}
	s, request := newSandbox(t, guest.serve)
	type told struct {
		id     string
		engine Engine
	}
	var all []told // written before the exit is told
	s.options.OutOfMemory = func(id string, engine Engine) {
		time.Sleep(300 * time.Millisecond) // an engine that takes its time
		all = append(all, told{id, engine})
	}
	request.Engine = Engine{OOMFiles: []string{"/bundle/oom"}, Events: "/run/s", Namespace: "n"}
	if err := s.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	happened, unsubscribe, err := s.Events("c")
	if err != nil {
		t.Fatal(err)
	}
	defer unsubscribe()
	close(begin)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	exit, err := s.Wait(ctx, "c", "")
	if err != nil || exit.Status != 137 {
		t.Fatalf("exit = %+v, %v", exit, err)
	}
	if want := []told{{"c", request.Engine}}; !reflect.DeepEqual(all, want) {
		t.Errorf("the engine heard %+v, want %+v", all, want)
	}
	if first, second := <-happened, <-happened; first.Kind != OOM || second.Kind != ExitKind {
		t.Errorf("subscribers heard %s, then %s", first.Kind, second.Kind)
	}
}

// TestOutOfMemoryHangs has an engine that hangs: neither other processes' ends nor, for long, the container's wait for it,
// and it is not told again meanwhile.
func TestOutOfMemoryHangs(t *testing.T) {
	begin, end := make(chan struct{}), make(chan struct{})
	oom := &agentv1.Event{Container: "c", Event: &agentv1.Event_Oom{Oom: &agentv1.OOM{}}}
	guest := &agent{events: func(ctx context.Context, out agentv1.Agent_EventsServer) error {
		<-begin
		_ = out.Send(oom)
		time.Sleep(oomEvery + 100*time.Millisecond)
		_ = out.Send(oom)
		_ = out.Send(&agentv1.Event{Container: "c", Exec: "e", Event: &agentv1.Event_Exit{Exit: &agentv1.Exit{Status: 3}}})
		<-end
		_ = out.Send(&agentv1.Event{Container: "c", Event: &agentv1.Event_Exit{Exit: &agentv1.Exit{Status: 137}}})
		<-ctx.Done()
		return ctx.Err()
	}}
	s, request := newSandbox(t, guest.serve)
	var calls atomic.Int32
	hang := make(chan struct{})
	defer close(hang)
	s.options.OutOfMemory = func(string, Engine) { calls.Add(1); <-hang }
	if err := s.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	c, err := s.container("c")
	if err != nil {
		t.Fatal(err)
	}
	added := newProcess("e")
	c.mu.Lock()
	c.execs["e"] = added
	c.mu.Unlock()
	close(begin)
	select {
	case <-added.ended:
	case <-time.After(30 * time.Second):
		t.Fatal("a process of the container does not end")
	}
	close(end)
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if exit, err := s.Wait(ctx, "c", ""); err != nil || exit.Status != 137 {
		t.Fatalf("exit = %+v, %v", exit, err)
	}
	if waited := time.Since(began); waited < oomWait/2 {
		t.Errorf("the container's end was told after %s, without a wait for the engine", waited)
	}
	if n := calls.Load(); n != 1 {
		t.Errorf("the engine was told %d times at once", n)
	}
}
