package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/vmm/vmmtest"
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
			if told := strings.Join(s.Warnings("c"), "\n"); deaths == 1 && (strings.Count(told, "booted again") != 1 || !strings.Contains(told, "panicked")) {
				t.Errorf("whoever starts the container is told %q, want that its guest was booted again, and why", told)
			}
			if deaths > 1 && (err == nil || !strings.Contains(err.Error(), "panicked")) {
				t.Errorf("got %v, want how the guest died", err)
			}
		})
	}
}

// TestEmulationIsTold: whoever starts a container hears that the host's KVM was not used, once, and nothing of it where there is
// none.
func TestEmulationIsTold(t *testing.T) {
	for _, why := range []error{nil, errors.New("/dev/kvm is there and broken: no such luck")} {
		s, request := newSandbox(t, (&agent{}).serve)
		s.options.Driver.(*vmmtest.Fake).Unusable = why
		if err := s.Create(t.Context(), request); err != nil {
			t.Fatal(err)
		}
		told := slices.DeleteFunc(s.Warnings("c"), func(w string) bool { return !strings.Contains(w, "emulated") })
		if why == nil && len(told) > 0 {
			t.Errorf("warned of a host without a device: %q", told)
		}
		if why != nil && (len(told) != 1 || !strings.Contains(told[0], "no such luck")) {
			t.Errorf("warnings %q, want one that says why", told)
		}
	}
}
