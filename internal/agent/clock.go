package agent

import (
	"fmt"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	"husk.dev/husk/internal/sys"
)

const (
	// maxSlew is how far the clock may be off and still be corrected by running faster or slower. More is
	// corrected by a jump: at the 500 ppm that the kernel slews by, 100 ms take over three minutes.
	maxSlew = 100 * time.Millisecond
	// ignoredOffset is how far it may be off with nothing done: about what a call takes on its way.
	ignoredOffset = time.Millisecond
)

// clock keeps the guest's clock in step with the host's.
//
// What the host says the time is has aged on its way, by seconds where the guest is slow. So a clock that
// seems to be behind is, but one that seems to be ahead may just have heard late: it is not set back before
// two calls in a row agree, and then by the smaller offset.
type clock struct {
	ours bool // to be set; else only looked at

	mu    sync.Mutex
	ahead time.Duration // offset at the last call, if it was positive; guarded by mu
}

// set brings the clock to the host's time, in nanoseconds of Unix time, and returns how far it was ahead.
// first says that nothing depends on the clock yet: it is set to whatever the host says.
func (c *clock) set(host int64, first bool) (time.Duration, error) {
	if host <= 0 {
		return 0, fail(codes.InvalidArgument, "invalid time %d", host)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	offset := time.Duration(time.Now().UnixNano() - host)
	change, ahead := decide(offset, c.ahead, first)
	c.ahead = ahead
	if !c.ours || change == 0 {
		return offset, nil
	}
	if change.Abs() <= maxSlew {
		return offset, sys.SlewClock(change)
	}
	tv := syscall.NsecToTimeval(time.Now().Add(change).UnixNano())
	if err := syscall.Settimeofday(&tv); err != nil {
		return offset, fmt.Errorf("set clock: %w", err)
	}
	return offset, nil
}

// decide returns by how much to change the clock, and the offset to remember until the next call.
func decide(offset, before time.Duration, first bool) (change, ahead time.Duration) {
	switch {
	case first:
		if offset.Abs() < ignoredOffset {
			return 0, 0
		}
		return -offset, 0
	case offset < -ignoredOffset:
		return -offset, 0
	case offset <= ignoredOffset:
		return 0, 0
	case before > 0:
		sure := min(offset, before)
		return -sure, offset - sure
	default:
		return 0, offset
	}
}
