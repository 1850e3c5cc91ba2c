// Package tsc tells how fast the processor's time stamp counter runs. An emulated guest reads the
// host's counter, and finding its frequency costs the guest's kernel hundreds of milliseconds.
package tsc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sample is one moment on both clocks.
type sample struct {
	ticks uint64
	nanos int64 // of CLOCK_MONOTONIC_RAW, which nobody slews
}

const (
	// least is the shortest time that is measured: with reads that agree within some 50 ns the result
	// is then right to 10 parts in a million, as good as a quartz.
	least = 5 * time.Millisecond
	// stale is how old the first sample may be: a host that slept in between has set its counter to 0.
	stale = 10 * time.Second
)

// first is taken when the process starts, so that KHz seldom has to wait.
var first = take()

// KHz returns the counter's frequency in kHz. It fails where the counter does not run at one steady rate,
// and takes at most some milliseconds. It measures once in the life of a process.
var KHz = sync.OnceValues(func() (int, error) {
	if err := steady(); err != nil {
		return 0, err
	}
	return measure(first)
})

func measure(from sample) (int, error) {
	now := take()
	if age := time.Duration(now.nanos - from.nanos); age < 0 || age > stale {
		from = now
	}
	if wait := least - time.Duration(now.nanos-from.nanos); wait > 0 {
		time.Sleep(wait)
		now = take()
	}
	nanos := now.nanos - from.nanos
	if nanos < int64(least) || now.ticks <= from.ticks {
		return 0, errors.New("measure time stamp counter: a clock does not run")
	}
	khz := float64(now.ticks-from.ticks) / float64(nanos) * 1e6
	if khz < 100e3 || khz > 20e6 {
		return 0, fmt.Errorf("measure time stamp counter: %.0f kHz is not plausible", khz)
	}
	return int(khz + 0.5), nil
}

// take reads the counter between two looks at the clock, the closest of several.
func take() sample {
	var best sample
	width := int64(1<<63 - 1)
	for range 8 {
		before := rawNanos()
		ticks := read()
		after := rawNanos()
		if after-before < width {
			width = after - before
			best = sample{ticks: ticks, nanos: before + width/2}
		}
	}
	return best
}

func rawNanos() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts); err != nil {
		return 0 // measure then sees a clock that does not run
	}
	return ts.Nano()
}

// steady says whether the kernel found the counter to run at one rate whatever the processor does.
func steady() error {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return fmt.Errorf("look for a steady time stamp counter: %w", err)
	}
	defer f.Close()
	return steadyFlags(f)
}

func steadyFlags(cpuinfo io.Reader) error {
	lines := bufio.NewScanner(io.LimitReader(cpuinfo, 1<<16)) // the first processor is enough
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(key) != "flags" {
			continue
		}
		flags := " " + value + " "
		for _, flag := range []string{"constant_tsc", "nonstop_tsc"} {
			if !strings.Contains(flags, " "+flag+" ") {
				return fmt.Errorf("the processor's time stamp counter is not steady: no %s in /proc/cpuinfo", flag)
			}
		}
		return nil
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("look for a steady time stamp counter: %w", err)
	}
	return errors.New("the processor has no time stamp counter: no flags in /proc/cpuinfo")
}
