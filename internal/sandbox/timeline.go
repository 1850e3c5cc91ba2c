package sandbox

import (
	"context"
	"strings"
	"sync"
	"time"
	"unicode"

	"go.opentelemetry.io/otel"
)

// Phase is one step of a container's start or end.
type Phase struct {
	Name       string
	Start, End time.Time
}

// timeline collects phases.
type timeline struct {
	mu     sync.Mutex // guards phases
	phases []Phase
}

// begin starts a phase of the request that ctx is of, and a span in its trace; the returned function ends both.
func (t *timeline) begin(ctx context.Context, name string) (end func()) {
	start := time.Now()
	_, span := otel.Tracer("husk.dev/husk/internal/sandbox").Start(ctx, name)
	return func() {
		span.End()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.phases = append(t.phases, Phase{Name: name, Start: start, End: time.Now()})
	}
}

func (t *timeline) all() []Phase {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Phase(nil), t.phases...)
}

// lastLines makes the end of a console log fit into an error: at most three lines, joined, printable.
func lastLines(tail string) string {
	clean := strings.Map(func(r rune) rune {
		if r == '\n' || !unicode.IsControl(r) {
			return r
		}
		return -1
	}, tail)
	var lines []string
	for _, line := range strings.Split(clean, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}
