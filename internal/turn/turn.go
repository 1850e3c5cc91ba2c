// Package turn lets a bounded number of processes of one host do something at the same time.
package turn

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"husk.dev/husk/internal/sys"
)

// A process that waits looks for a place after maxPoll, and ever more often the longer it has waited, down to minPoll: one
// that has waited long is likely to find a free place before those that have just come, or it might wait until whoever
// asked for the work gives up. A hundred of them must not keep a processor busy, so it takes its time to become eager.
const (
	minPoll = 10 * time.Millisecond
	maxPoll = 50 * time.Millisecond
	// slope is the time waited that makes the time between two looks shorter by one part of it.
	slope = 1000
)

// poll is how long a process that has waited for some time waits until it looks again.
func poll(waited time.Duration) time.Duration { return max(maxPoll-waited/slope, minPoll) }

// Queue is a number of places that processes take, those that have waited for longer more likely than others, in no certain
// order. Each place is a file that whoever has it holds a lock on, so
// a process that is killed gives its place back.
type Queue struct {
	Dir    string        // where the files lie; made when it is not there
	Places int           // how many processes may have a place at once, at least 1
	Hold   time.Duration // for how long a place is kept at most: one that hangs must not stop the others
}

// Take waits for a place, for as long as ctx lets it, and returns what gives the place back, which may be called more
// than once. An error means that there is no place to be had; the work may well be done without.
func (q Queue) Take(ctx context.Context) (release func(), err error) {
	if err := os.MkdirAll(q.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("take a turn: %w", err)
	}
	places := make([]*os.File, q.Places)
	defer func() {
		for _, file := range places {
			if file != nil {
				file.Close()
			}
		}
	}()
	for i := range places {
		if places[i], err = os.OpenFile(filepath.Join(q.Dir, strconv.Itoa(i)), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
			return nil, fmt.Errorf("take a turn: %w", err)
		}
	}
	for began := time.Now(); ; {
		for i, file := range places {
			locked, err := sys.TryLock(file)
			if locked {
				places[i] = nil
				return q.hold(file), nil
			}
			if err != nil {
				return nil, fmt.Errorf("take a turn: %w", err)
			}
		}
		select {
		case <-time.After(poll(time.Since(began))):
		case <-ctx.Done():
			return nil, fmt.Errorf("take a turn: %w", ctx.Err())
		}
	}
}

// hold keeps the place until it is released, or its time is over.
func (q Queue) hold(file *os.File) (release func()) {
	var once sync.Once
	free := func() { once.Do(func() { file.Close() }) }
	timer := time.AfterFunc(q.Hold, free)
	return func() {
		timer.Stop()
		free()
	}
}
