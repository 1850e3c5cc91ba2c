// Package bench measures husk beside other OCI runtimes, as their callers see them: from outside, with their
// command lines, in turns.
package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/sys"
)

// Options say what is measured.
type Options struct {
	Groups   []string // of Groups; none: all
	Rounds   int      // measured, after Warmup; at least 1
	Warmup   int      // rounds that do not count
	Parallel int      // containers at once where several are; at least 1
	IdleMax  int      // most idle containers at once; at least 1
}

// Setting is where the measuring happens.
type Setting struct {
	// Dir is an empty directory that Run may fill; the caller removes it, after Run.
	Dir string
	// Binary is husk itself, static: it holds the work that is done in containers.
	Binary string
	// Busybox is a static busybox, which containers run.
	Busybox  string
	Runtimes []Runtime
	Facts    []Fact // about the machine, beyond what Run finds out
	// Progress is told what comes next.
	Progress func(format string, args ...any)
}

// native is the host itself, without any runtime.
const native = "native"

// group is a set of measures that are taken together. To add one: give it a line in groups, its measures a
// line each in Measures, and a row in docs/cli.md.
type group struct {
	name, title string
	once        bool // one round is enough: what it measures hardly varies, and takes long
	native      bool // can be measured without a runtime
	step        func(context.Context, *session, Runtime, add) error
	// begin, where there is one, comes before all rounds, and end after them. Its error says what is missing.
	begin func(context.Context, *session) (end func() error, err error)
}

// add notes a sample of a measure.
type add func(measure string, value float64)

var groups = []group{
	{name: "start", title: "Start", step: stepStart},
	{name: "verbs", title: "Verbs of the OCI runtime", step: stepVerbs},
	{name: "memory", title: "Memory", once: true, step: stepMemory},
	{name: "io", title: "Files", native: true, step: stepFiles},
	{name: "cpu", title: "Processes and computing", native: true, step: stepCPU},
	{name: "net", title: "Network", native: true, step: stepNet},
	{name: "density", title: "Density", once: true, step: stepDensity},
	{name: "pods", title: "Pods", begin: beginPods, step: stepPods},
}

// Groups are the names of all groups.
func Groups() (names []string) {
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

// Check returns what is wrong with o.
func (o Options) Check() error {
	for _, name := range o.Groups {
		if !slices.Contains(Groups(), name) {
			return fmt.Errorf("no group %q: there are %s", name, strings.Join(Groups(), ", "))
		}
	}
	for _, n := range []struct {
		flag            string
		value, min, max int
	}{{"rounds", o.Rounds, 1, 10000}, {"warmup", o.Warmup, 0, 1000}, {"parallel", o.Parallel, 1, 500}, {"idle-max", o.IdleMax, 1, 5000}} {
		if n.value < n.min || n.value > n.max {
			return fmt.Errorf("--%s %d: must be from %d to %d", n.flag, n.value, n.min, n.max)
		}
	}
	return nil
}

func (o Options) has(name string) bool { return len(o.Groups) == 0 || slices.Contains(o.Groups, name) }

// Run measures. It becomes the reaper of its descendants, and none is left when it returns, whatever the
// reason. A runtime that fails at something is in the report with the reason; an error means that there is
// no report. When ctx ends, Run cleans up and returns its error.
func Run(ctx context.Context, o Options, at Setting) (_ *Report, err error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if err := sys.BecomeSubreaper(); err != nil {
		return nil, err
	}
	var undo cleanup.Stack
	defer func() {
		err = errors.Join(err, undo.Clean())
	}()
	s := &session{options: o, setting: at, before: descendants(), ramps: map[string]ramp{}, weighed: map[string]bool{}}
	undo.Add(s.endAll)
	report := newReport(o, at)
	if err := s.prepare(ctx); err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	for _, g := range groups {
		if o.has(g.name) {
			s.measure(ctx, g, report)
		}
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
	report.Took = time.Since(report.Began).Round(time.Second).String()
	return report, nil
}

// measure takes a group's rounds. The runtimes take turns within each, and another one begins each time:
// whatever else the machine does hits all alike.
func (s *session) measure(ctx context.Context, g group, report *Report) {
	runtimes := s.setting.Runtimes
	if g.native {
		runtimes = append([]Runtime{{Name: native}}, runtimes...)
	}
	warmup, rounds := s.options.Warmup, s.options.Rounds
	if g.once {
		warmup, rounds = 0, 1
	}
	if g.begin != nil {
		end, err := g.begin(ctx, s)
		if err != nil {
			report.fail(g.name, everyRuntime, s.setting.shorten(err.Error()))
			s.setting.Progress("%s: left out: %v", g.name, err)
			return
		}
		defer func() {
			if err := end(); err != nil {
				s.setting.Progress("%s: clean up: %v", g.name, err)
			}
		}()
	}
	failed := map[string]bool{}
	for round := range warmup + rounds {
		for i := range runtimes {
			rt := runtimes[(i+round)%len(runtimes)]
			if failed[rt.Name] || ctx.Err() != nil {
				continue
			}
			what := fmt.Sprintf("round %d of %d", round-warmup+1, rounds)
			note := add(report.add(rt.Name))
			s.counts = round >= warmup
			if round < warmup {
				what, note = "warm-up", func(string, float64) {}
			}
			s.setting.Progress("%s: %s: %s", g.name, what, rt.Name)
			if err := g.step(ctx, s, rt, note); err != nil && ctx.Err() == nil {
				failed[rt.Name] = true
				report.fail(g.name, rt.Name, s.setting.shorten(err.Error()))
				s.setting.Progress("%s: %s failed and is left out: %v", g.name, rt.Name, err)
			}
		}
	}
}
