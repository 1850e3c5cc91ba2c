package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"husk.dev/husk/internal/guest"
)

// ErrEnded is matched by the errors of what was asked of a container that has ended, and of one that ended while it was asked.
// They are ErrState too.
var ErrEnded = errors.New("container not running")

// endedError says that a container has ended, in runc's words, which engines look for.
type endedError string

func (e endedError) Error() string { return string(e) + ": " + ErrEnded.Error() }

func (e endedError) Is(target error) bool { return target == ErrEnded || target == ErrState }

// lost tells whether the error of a call is that of a guest that has gone away, and not what it answered nor the caller's end.
func lost(err error) bool {
	return err != nil && !guest.Answered(err) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled)
}

// broke is lost for a call that no caller cancels (see bound): an agent that ends does that, too.
func broke(err error) bool {
	_, code := guest.Reason(err)
	return lost(err) || code == codes.Canceled || errors.Is(err, context.Canceled)
}

// explain says what a call about the container failed at. Between the end of a guest, or of a process in it, and the
// moment in which that is on record, calls fail in the words of the connection and of the agent. Every call about a container
// passes here, so that what is told is what is so after that moment.
func (c *container) explain(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	what := fmt.Sprintf(format, args...)
	if c.ends(err, codes.FailedPrecondition, codes.NotFound) {
		return endedError(what)
	}
	return explain(err, "%s", what)
}

// ends tells whether the end of the container is why a call about it failed. It waits for that where the guest has gone away,
// and a little where it answers with one of classes, by which it says that there is nothing to do it to.
func (c *container) ends(err error, classes ...codes.Code) bool {
	limit := time.Duration(0)
	_, code := guest.Reason(err)
	if slices.Contains(classes, code) {
		limit = endWait
	}
	if broke(err) {
		limit = undoTimeout
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-c.init.ended:
		return true
	case <-c.sandbox.done:
		return true
	case <-timer.C:
	}
	select { // a timer of nothing is there at once, too
	case <-c.init.ended:
		return true
	default:
		return false
	}
}
