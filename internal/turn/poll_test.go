package turn

import (
	"testing"
	"time"
)

// TestPoll has a process look for a place more often the longer it has waited, within bounds.
func TestPoll(t *testing.T) {
	for waited, want := range map[time.Duration]time.Duration{
		0: 50 * time.Millisecond, 10 * time.Second: 40 * time.Millisecond, 40 * time.Second: 10 * time.Millisecond,
		time.Hour: 10 * time.Millisecond,
	} {
		if got := poll(waited); got != want {
			t.Errorf("after %s it looks again after %s, want %s", waited, got, want)
		}
	}
}
