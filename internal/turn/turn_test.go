package turn_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"husk.dev/husk/internal/turn"
)

func TestTakeBounds(t *testing.T) {
	q := turn.Queue{Dir: filepath.Join(t.TempDir(), "turns"), Places: 3, Hold: time.Minute}
	var now, most atomic.Int32
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			release, err := q.Take(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(10 * time.Millisecond)
			now.Add(-1)
			release()
			release()
		})
	}
	group.Wait()
	if most.Load() != 3 {
		t.Errorf("%d had a place at once, want 3", most.Load())
	}
}

func TestTakeGivesUp(t *testing.T) {
	q := turn.Queue{Dir: t.TempDir(), Places: 1, Hold: time.Minute}
	release, err := q.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := q.Take(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the end of the wait", err)
	}
}

// TestTakeAfterHold takes the place of one that never gives it back.
func TestTakeAfterHold(t *testing.T) {
	q := turn.Queue{Dir: t.TempDir(), Places: 1, Hold: 50 * time.Millisecond}
	if _, err := q.Take(t.Context()); err != nil {
		t.Fatal(err)
	}
	release, err := q.Take(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestTakeNowhere(t *testing.T) {
	q := turn.Queue{Dir: "/proc/none", Places: 1, Hold: time.Minute}
	if _, err := q.Take(t.Context()); err == nil {
		t.Error("took a place in a directory that cannot be")
	}
}

// TestTakeAtOnce takes free places, which nobody waits for.
func TestTakeAtOnce(t *testing.T) {
	q := turn.Queue{Dir: t.TempDir(), Places: 1, Hold: time.Minute}
	fastest := time.Hour // the machine may be busy with something else
	for range 10 {
		began := time.Now()
		release, err := q.Take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		fastest = min(fastest, time.Since(began))
		release()
	}
	if fastest > 20*time.Millisecond {
		t.Errorf("took %s", fastest)
	}
}
