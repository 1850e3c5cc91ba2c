package sandbox

import (
	"os"
	"slices"
	"testing"

	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/testenv"
)

// TestToMove moves processes that stand for a container, and neither this process' threads nor its caller.
func TestToMove(t *testing.T) {
	testenv.NeedRoot(t)
	stand, err := sys.NewStandIn("", sys.EnterNothing)
	if err != nil {
		t.Fatal(err)
	}
	defer stand.End()
	const other = 1 << 30
	for pid, want := range map[int][]int{0: nil, os.Getppid(): nil, stand.ID(): nil, os.Getpid(): nil, other: {other}} {
		if got := toMove(pid); !slices.Equal(got, want) {
			t.Errorf("process %d: %v, want %v", pid, got, want)
		}
	}
}
