package sandbox

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"husk.dev/husk/internal/channel"
)

// TestBootAgain: a guest that dies while it boots is booted once more, and no more often.
func TestBootAgain(t *testing.T) {
	for name, deaths := range map[string]int32{"dies once": 1, "dies always": 100} {
		t.Run(name, func(t *testing.T) {
			var boots atomic.Int32
			s, request := newSandbox(t, func(ctx context.Context, server *channel.Server) error {
				if boots.Add(1) <= deaths {
					return errors.New("its kernel panicked")
				}
				return (&agent{}).serve(ctx, server)
			})
			err := s.Create(t.Context(), request)
			if boots.Load() != 2 {
				t.Errorf("%d boots, want 2", boots.Load())
			}
			if deaths == 1 && err != nil {
				t.Errorf("got %v, want a container", err)
			}
			if deaths > 1 && (err == nil || !strings.Contains(err.Error(), "panicked")) {
				t.Errorf("got %v, want how the guest died", err)
			}
		})
	}
}
