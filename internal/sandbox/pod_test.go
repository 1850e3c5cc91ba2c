package sandbox

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/state"
)

// directory makes the state directory of a further container, as whoever creates one does.
func directory(t *testing.T, s *Sandbox, id string) *state.Dir {
	t.Helper()
	dir, err := state.Create(s.options.Config.RunDir, id)
	if err != nil {
		t.Fatal(err)
	}
	self, err := state.Self("test")
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := dir.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := dir.Save(state.Container{Status: state.Creating, Owner: self}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestRefusedCreateSparesTheFirst asks for containers that cannot be made in a VM that runs.
func TestRefusedCreateSparesTheFirst(t *testing.T) {
	s, request := newSandbox(t, (&agent{}).serve)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Create(ctx, request); err != nil {
		t.Fatal(err)
	}
	further := request
	further.ID, further.Layers = "d", nil
	if err := s.Create(ctx, further); !errors.Is(err, ErrState) {
		t.Errorf("without a directory of its own: %v, want %v", err, ErrState)
	}
	further.Dir = directory(t, s, "d")
	further.Layers = request.Layers
	if err := s.Create(ctx, further); err == nil || !strings.Contains(err.Error(), "image's layers") {
		t.Errorf("with an image's layers: %v", err)
	}
	if _, err := s.State("d"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a container that was refused: %v, want %v", err, ErrNotFound)
	}
	if first, err := s.State("c"); err != nil || first.Status != state.Running {
		t.Errorf("the first container is %q, %v", first.Status, err)
	}
	select {
	case <-s.Done():
		t.Error("the sandbox has ended")
	default:
	}
	if err := s.Delete(ctx, "c", true); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	default:
		t.Error("the sandbox outlived its last container")
	}
	if err := s.Create(ctx, further); !errors.Is(err, ErrState) {
		t.Errorf("in a sandbox that has ended: %v, want %v", err, ErrState)
	}
}

// TestWhileMade asks for a container whose guest does not answer yet, and deletes it.
func TestWhileMade(t *testing.T) {
	greeted, answer := make(chan struct{}), make(chan struct{})
	defer close(answer)
	s, request := newSandbox(t, (&agent{hello: func() (*agentv1.HelloResponse, error) {
		close(greeted)
		<-answer
		return nil, errors.New("too late")
	}}).serve)
	s.options.Config.StartTimeoutSeconds, s.config.StartTimeoutSeconds = 60, 60
	ctx := t.Context()
	created := make(chan error, 1)
	go func() { created <- s.Create(ctx, request) }()
	<-greeted
	_, stats := s.Stats(ctx, "c")
	_, processes := s.Processes(ctx, "c")
	for what, err := range map[string]error{
		"statistics": stats, "processes": processes, "resize": s.Resize(ctx, "c", "", 1, 1), "shell": s.Shell(ctx, "c", "x", nil, nil, Stdio{}),
	} {
		if !errors.Is(err, ErrState) {
			t.Errorf("%s: %v, want %v", what, err, ErrState)
		}
	}
	if err := s.Delete(ctx, "c", true); err != nil {
		t.Errorf("delete: %v", err)
	}
	if err := <-created; err == nil {
		t.Error("a container that was deleted while it was made is made")
	}
	select {
	case <-s.Done():
	default:
		t.Error("the sandbox outlives its only container")
	}
}

// TestDeleteOfMember deletes a further container while it is made: its maker gives up first.
func TestDeleteOfMember(t *testing.T) {
	s, request := newSandbox(t, (&agent{}).serve)
	if err := s.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	making, m, err := s.begin(t.Context(), "d")
	if err != nil {
		t.Fatal(err)
	}
	gaveUp := false
	go func() {
		<-making.Done()
		s.mu.Lock()
		gaveUp = true
		delete(s.making, m)
		s.mu.Unlock()
		close(m.through)
	}()
	if err := s.Delete(t.Context(), "d", true); err != nil || !gaveUp {
		t.Errorf("delete: %v; its maker gave up: %v", err, gaveUp)
	}
	if first, err := s.State("c"); err != nil || first.Status != state.Running {
		t.Errorf("the first container is %q, %v", first.Status, err)
	}
}

// TestStateWhilePausing looks at a container while the guest takes its time with it.
func TestStateWhilePausing(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	s, request := newSandbox(t, (&agent{pause: func() (*agentv1.Empty, error) {
		close(asked)
		<-answer
		return &agentv1.Empty{}, nil
	}}).serve)
	if err := s.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	paused := make(chan error, 1)
	go func() { paused <- s.Pause(t.Context(), "c") }()
	<-asked
	if c, err := s.State("c"); err != nil || c.Status != state.Running {
		t.Errorf("it is %q, %v, while it is being paused", c.Status, err)
	}
	close(answer)
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	if c, err := s.State("c"); err != nil || c.Status != state.Paused {
		t.Errorf("it is %q, %v, want %q", c.Status, err, state.Paused)
	}
}

// TestExecAgain adds a process of the name that another one had, which has ended.
func TestExecAgain(t *testing.T) {
	s, request := newSandbox(t, (&agent{exec: func() (*agentv1.ExecResponse, error) { return &agentv1.ExecResponse{Pid: 9}, nil }}).serve)
	if err := s.Create(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	c, err := s.container("c")
	if err != nil {
		t.Fatal(err)
	}
	first := newProcess("x")
	c.mu.Lock()
	c.execs["x"] = first
	c.mu.Unlock()
	if _, err := s.Exec(t.Context(), "c", "x", specs.Process{}, Stdio{}); !errors.Is(err, ErrState) {
		t.Errorf("beside one that runs: %v, want %v", err, ErrState)
	}
	first.end(Exit{})
	first.finish(nil)
	if _, err := s.Exec(t.Context(), "c", "x", specs.Process{}, Stdio{}); err != nil {
		t.Errorf("after one that has ended: %v", err)
	}
	c.forget(first)
	if c.process("x") == nil {
		t.Error("the second was forgotten with the first")
	}
}
