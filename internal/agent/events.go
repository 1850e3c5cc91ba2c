package agent

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// maxEvents bounds the events kept while nobody reads. Then the oldest go: an owner that has not looked
// for so long asks for the containers' states anyway.
const maxEvents = 1024

// events is the queue of what happened. The last reader gets them.
type events struct {
	mu sync.Mutex
	// queue has what was not sent, the oldest first; reader is closed when another takes its place; wake
	// has one value while something is queued. Guarded by mu, but for the channel operations.
	queue  []*agentv1.Event
	reader chan struct{}
	wake   chan struct{}
}

func newEvents() *events { return &events{wake: make(chan struct{}, 1)} }

// push adds an event.
func (e *events) push(event *agentv1.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.queue) >= maxEvents {
		e.queue = e.queue[1:]
	}
	e.queue = append(e.queue, event)
	e.signal()
}

func (e *events) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// read sends events until ctx ends, send fails or another reader comes. One that could not be sent stays.
func (e *events) read(ctx context.Context, send func(*agentv1.Event) error) error {
	own := make(chan struct{})
	e.mu.Lock()
	if e.reader != nil {
		close(e.reader)
	}
	e.reader = own
	e.signal() // there may be some already
	e.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-own:
			return fail(codes.Aborted, "another reader of events has come")
		case <-e.wake:
		}
		if err := e.flush(own, send); err != nil {
			return err
		}
	}
}

// flush sends all that is queued, as long as own is the reader.
func (e *events) flush(own chan struct{}, send func(*agentv1.Event) error) error {
	for {
		e.mu.Lock()
		if e.reader != own {
			e.signal() // for the other reader
			e.mu.Unlock()
			return nil
		}
		if len(e.queue) == 0 {
			e.mu.Unlock()
			return nil
		}
		next := e.queue[0]
		e.queue = e.queue[1:]
		e.mu.Unlock()
		if err := send(next); err != nil {
			e.mu.Lock()
			e.queue = append([]*agentv1.Event{next}, e.queue...)
			e.signal()
			e.mu.Unlock()
			return err
		}
	}
}
