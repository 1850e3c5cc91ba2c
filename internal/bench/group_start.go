package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// ms is a duration in milliseconds.
func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// stepStart runs containers to their end: one, one of an image, and many at once.
func stepStart(ctx context.Context, s *session, rt Runtime, note add) error {
	hello, err := s.container(rt).hello(ctx)
	if err != nil {
		return err
	}
	note("start.output", ms(hello.first))
	end, err := s.container(rt).run(ctx, "true")
	if err != nil {
		return err
	}
	note("start.exit", ms(end.exit))
	if rt.Image != "" {
		if end, err = s.container(rt).runImage(ctx, "/bin/true"); err != nil {
			return err
		}
		note("start.image", ms(end.exit))
	}
	hellos, err := s.atOnce(s.options.Parallel, s.options.Parallel, func() (output, error) { return s.container(rt).hello(ctx) })
	if err != nil {
		return err
	}
	for _, o := range hellos {
		note("start.parallel.output", ms(o.first))
	}
	ends, err := s.atOnce(s.options.Parallel, s.options.Parallel, func() (output, error) { return s.container(rt).run(ctx, "true") })
	if err != nil {
		return err
	}
	for _, o := range ends {
		note("start.parallel.exit", ms(o.exit))
	}
	return nil
}

func (c *container) hello(ctx context.Context) (output, error) {
	o, err := c.run(ctx, "hello")
	if err == nil && o.text != "hello\n" {
		err = fmt.Errorf("the container printed %q, want hello", o.text)
	}
	return o, err
}

// atOnce does something count times, at most so many at once.
func (s *session) atOnce(count, most int, do func() (output, error)) ([]output, error) {
	outputs, errs := make([]output, count), make([]error, count)
	slots := make(chan struct{}, most)
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			outputs[i], errs[i] = do()
		})
	}
	all.Wait()
	return outputs, errors.Join(errs...)
}

// stepVerbs takes a container through its life.
func stepVerbs(ctx context.Context, s *session, rt Runtime, note add) error {
	c := s.container(rt)
	defer c.remove(ctx)
	pid, took, err := c.create(ctx, "idle")
	if err != nil {
		return err
	}
	note("verbs.create", ms(took))
	for _, verb := range []struct {
		measure string
		args    []string
	}{{"verbs.start", []string{"start", c.id}}, {"verbs.exec", []string{"exec", c.id, "/bin/true"}}} {
		if took, err = c.call(ctx, verb.args...); err != nil {
			return err
		}
		note(verb.measure, ms(took))
	}
	all := s.running()
	defer s.reapMeanwhile()()
	began := time.Now()
	if took, err = c.call(ctx, "kill", c.id, "KILL"); err != nil {
		return err
	}
	note("verbs.kill", ms(took))
	if err := s.waitGone(ctx, []int{pid}); err != nil {
		return err
	}
	ended := time.Now()
	note("verbs.end", ms(ended.Sub(began)))
	if took, err = c.call(ctx, "delete", c.id); err != nil {
		return err
	}
	note("verbs.delete", ms(took))
	if err := s.waitGone(ctx, all); err != nil {
		return err
	}
	note("verbs.teardown", ms(time.Since(ended)))
	return s.alone()
}

// alone makes sure that nothing runs that would be measured with what comes next.
func (s *session) alone() error {
	for end := time.Now().Add(goneLimit); ; time.Sleep(5 * time.Millisecond) {
		left := s.running()
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(end) {
			for _, pid := range left {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have gone
			}
			return fmt.Errorf("processes %v outlive their container", left)
		}
	}
}
