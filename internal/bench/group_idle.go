package bench

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"slices"
	"time"
)

// Waits and limits of idle containers.
const (
	// idleSettle is how long containers are left alone before their memory is looked at.
	idleSettle = 2 * time.Second
	// memoryReserve is the part of memory that is left to the machine.
	memoryReserve = 0.1
)

// ramp is what idle containers have shown.
type ramp struct {
	pss  map[int]uint64 // bytes for each of so many containers
	fit  int            // containers that ran at once
	full error          // why there were no more, nil at the most that were asked for
}

// Roots that idle containers have.
const (
	rootBundle = "bundle"
	rootImage  = "image"
)

// stepMemory measures the memory of idle containers.
func stepMemory(ctx context.Context, s *session, rt Runtime, note add) error {
	roots := []string{rootBundle}
	if rt.Image != "" {
		roots = append(roots, rootImage)
	}
	var failed []error
	for _, root := range roots {
		r, err := s.ramp(ctx, rt, root)
		for n, bytes := range r.pss {
			note(memoryMeasure(root, n), float64(bytes)/(1<<20))
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// stepDensity counts how many containers can be run in a second, and how many idle ones fit.
func stepDensity(ctx context.Context, s *session, rt Runtime, note add) error {
	began := time.Now()
	count := max(s.options.Parallel, runtime.NumCPU())
	if _, err := s.atOnce(count, runtime.NumCPU(), func() (output, error) { return s.container(rt).run(ctx, "true") }); err != nil {
		return err
	}
	note("density.starts", float64(count)/time.Since(began).Seconds())
	r, err := s.ramp(ctx, rt, rootBundle)
	if r.fit > 0 {
		note("density.idle", float64(r.fit))
	}
	return err
}

// ramp starts idle containers, one after another, and looks at their memory on the way. It does so once for
// each runtime and root. An error is of a machine that had room for more.
func (s *session) ramp(ctx context.Context, rt Runtime, root string) (_ ramp, err error) {
	name := rt.Name + " " + root
	if r, known := s.ramps[name]; known {
		return r, r.full
	}
	r := ramp{pss: map[int]uint64{}}
	var made []*container
	defer func() {
		defer s.reapMeanwhile()()
		for _, c := range slices.Backward(made) {
			c.remove(ctx)
		}
		err = errors.Join(err, s.alone())
	}()
	counts := idleCounts(s.options)
	for r.fit < s.options.IdleMax && available() > memoryReserve && ctx.Err() == nil {
		c := s.container(rt)
		made = append(made, c)
		if r.full = c.idle(ctx, root); r.full != nil {
			break
		}
		r.fit++
		if !slices.Contains(counts, r.fit) {
			continue
		}
		select {
		case <-time.After(idleSettle):
		case <-ctx.Done():
		}
		programs, err := pss(s.running())
		if err != nil {
			return r, err
		}
		for _, name := range slices.Sorted(maps.Keys(programs)) {
			each := programs[name] / uint64(r.fit)
			s.setting.Progress("%s: %s has %.1f MiB for each of %d idle containers", rt.Name, name, float64(each)/(1<<20), r.fit)
			r.pss[r.fit] += each
		}
	}
	s.ramps[name] = r
	return r, r.full
}

// idle makes and starts a container that does nothing.
func (c *container) idle(ctx context.Context, root string) error {
	if root == rootImage {
		_, err := c.call(ctx, "run", "--detach", "--pull", "never", "--network", "none", "--name", c.id, c.rt.Image, "sleep", "86400")
		return err
	}
	if _, _, err := c.create(ctx, "idle"); err != nil {
		return err
	}
	_, err := c.call(ctx, "start", c.id)
	return err
}
