package tsc

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestKHzAgreesWithALongMeasurement(t *testing.T) {
	khz, err := KHz()
	if err != nil {
		t.Skip(err)
	}
	from := take()
	time.Sleep(200 * time.Millisecond)
	to := take()
	long := float64(to.ticks-from.ticks) / float64(to.nanos-from.nanos) * 1e6
	t.Logf("%d kHz, over 200 ms %.0f kHz", khz, long)
	if off := math.Abs(float64(khz)-long) / long; off > 1e-3 {
		t.Errorf("KHz is %d, a longer look says %.0f: off by %g", khz, long, off)
	}
}

func TestMeasureDropsAStaleSample(t *testing.T) {
	now := take()
	if now.ticks == 0 {
		t.Skip("no time stamp counter")
	}
	// A counter that was reset an hour ago: measured from there it would seem to run backwards.
	khz, err := measure(sample{ticks: math.MaxUint64, nanos: now.nanos - int64(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if want, err := KHz(); err == nil && math.Abs(float64(khz-want))/float64(want) > 1e-2 {
		t.Errorf("measured %d kHz, want about %d", khz, want)
	}
}

func TestSteadyFlags(t *testing.T) {
	for _, c := range []struct{ name, cpuinfo, want string }{
		{"steady", "model name\t: x\nflags\t\t: fpu constant_tsc nonstop_tsc sse\n", ""},
		{"flag at the end", "flags\t\t: constant_tsc nonstop_tsc", ""},
		{"stops in sleep", "flags\t\t: fpu constant_tsc sse\n", "nonstop_tsc"},
		{"only a longer name", "flags\t\t: xconstant_tsc nonstop_tsc\n", "constant_tsc"},
		{"another architecture", "Features\t: fp asimd\n", "no flags"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := steadyFlags(strings.NewReader(c.cpuinfo))
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("steadyFlags: %v, want %q", err, c.want)
			}
		})
	}
}
