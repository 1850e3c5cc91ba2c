package sandbox

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"husk.dev/husk/internal/channel"
)

// TestBootAgain: a guest that dies while it boots is booted again, and not for ever.
func TestBootAgain(t *testing.T) {
	for name, deaths := range map[string]int32{"dies once": 1, "dies always": 100} {
		t.Run(name, func(t *testing.T) {
			var booted atomic.Int32
			s, request := newSandbox(t, func(ctx context.Context, server *channel.Server) error {
				if booted.Add(1) <= deaths {
					return errors.New("its kernel panicked")
				}
				return (&agent{}).serve(ctx, server)
			})
			err := s.Create(t.Context(), request)
			if want := min(deaths+1, boots); booted.Load() != want {
				t.Errorf("%d boots, want %d", booted.Load(), want)
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
