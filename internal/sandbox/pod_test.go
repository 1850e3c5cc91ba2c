package sandbox

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

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
