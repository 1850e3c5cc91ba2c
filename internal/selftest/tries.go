package selftest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"husk.dev/husk/internal/selftest/work"
	"husk.dev/husk/internal/state"
)

// up starts a container of the image in the foreground, which holds, and waits until it is up. flags are run's.
func (s *session) up(ctx context.Context, o options, name string, flags []string, args ...string) (id string, c *call, err error) {
	if len(args) == 0 {
		args = job("hold")
	}
	id = s.id(name)
	c, err = s.start(o, append(append(append([]string{"run", "--name", id, "--pull", "never"}, flags...), image), args...)...)
	if err != nil {
		return "", nil, err
	}
	if err := c.speaks(ctx); err != nil {
		_, _ = c.wait(ended()) // what it was after that is not asked for
		return "", nil, err
	}
	return id, c, nil
}

// ended is a context that has.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// down ends a container that holds, and deletes it.
func (s *session) down(ctx context.Context, id string, c *call) error {
	defer c.close()
	if _, err := s.husk(ctx, "kill", id, "KILL"); err != nil {
		return err
	}
	code, err := c.wait(ctx)
	if err == nil && code != 137 {
		err = c.failure(code, 137)
	}
	if err != nil {
		return err
	}
	_, err = s.husk(ctx, "delete", id)
	return err
}

// tryBoot boots a virtual machine, whatever the templates are.
func tryBoot(ctx context.Context, s *session) error {
	id, c, err := s.up(ctx, options{config: coldFile}, "boot", nil)
	if err != nil {
		return err
	}
	var facts work.Facts
	if err := json.Unmarshal([]byte(said(c.out)), &facts); err != nil {
		return fmt.Errorf("the container printed %q: %w", said(c.out), err)
	}
	record, err := s.record(id)
	if err != nil {
		return err
	}
	s.report.Versions.GuestKernel, s.report.Isolation = facts.Kernel, record.Isolation
	if record.VMStart != state.StartBoot {
		return fmt.Errorf("the virtual machine came to run by %q, with templates off", record.VMStart)
	}
	return s.down(ctx, id, c)
}

// tryTemplate builds a template and starts a container from it.
func tryTemplate(ctx context.Context, s *session) error {
	switch {
	case s.at.Config.Template == "off":
		return skip{why: `template = "off" in the configuration`}
	case s.at.Config.Machine == "microvm":
		return skip{why: `machine = "microvm" in the configuration uses no templates`}
	}
	if _, err := s.husk(ctx, "template", "build", "--card", "no"); err != nil {
		return err
	}
	if _, err := s.husk(ctx, "template", "verify"); err != nil {
		return err
	}
	id, c, err := s.up(ctx, options{}, "template", nil)
	if err != nil {
		return err
	}
	record, err := s.record(id)
	if err != nil {
		return err
	}
	if record.VMStart != state.StartTemplate {
		return fmt.Errorf("the virtual machine came to run by %q, with a template that is whole", record.VMStart)
	}
	return s.down(ctx, id, c)
}

// tryExec runs further processes in a container.
func tryExec(ctx context.Context, s *session) error {
	id, c, err := s.up(ctx, options{}, "exec", nil)
	if err != nil {
		return err
	}
	const text = "to and fro\n"
	out, err := s.ends(ctx, 0, options{stdin: text}, append([]string{"exec", "-i", id}, job("echo")...)...)
	if err != nil {
		return err
	}
	if out != text {
		return fmt.Errorf("husk exec printed %q of %q", out, text)
	}
	for code, args := range map[int][]string{7: job("fail", "7"), 127: {"/no-such-program"}} {
		if _, err := s.ends(ctx, code, options{}, append([]string{"exec", id}, args...)...); err != nil {
			return err
		}
	}
	return s.down(ctx, id, c)
}

// tryVolume shares directories of the host with a container.
func tryVolume(ctx context.Context, s *session) error {
	volume, readOnly := s.dirs.path("volume"), s.dirs.path("read-only")
	for _, dir := range []string{volume, readOnly} {
		if err := os.WriteFile(filepath.Join(dir, work.FromHost), []byte(work.Text), 0o644); err != nil {
			return err
		}
	}
	id, c, err := s.up(ctx, options{}, "volume", []string{"-v", volume + ":/v", "-v", readOnly + ":/ro:ro"}, job("files", "/v", "/ro")...)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(volume, work.FromGuest))
	if err == nil && string(data) != work.Text {
		err = fmt.Errorf("the host sees %q", data)
	}
	if err != nil {
		return fmt.Errorf("read what the container wrote to the volume: %w", err)
	}
	// What the host writes while the container runs is seen in it, too.
	const late = "late\n"
	if err := os.WriteFile(filepath.Join(readOnly, late[:4]), []byte(late), 0o644); err != nil {
		return err
	}
	out, err := s.husk(ctx, append([]string{"exec", id}, job("read", "/ro/late")...)...)
	if err == nil && out != late {
		err = fmt.Errorf("the container reads %q, the host wrote %q", out, late)
	}
	if err != nil {
		return err
	}
	return s.down(ctx, id, c)
}

// Memory of the step of that name, in MiB.
const (
	memoryLimit = "128m"
	tooMuch     = "512"
)

// tryMemory has processes take more memory than their containers may have.
func tryMemory(ctx context.Context, s *session) error {
	flags := []string{"--memory", memoryLimit}
	id, c, err := s.up(ctx, options{}, "memory", flags)
	if err != nil {
		return err
	}
	// A process beside the first: that one lives.
	if _, err := s.ends(ctx, 137, options{}, append([]string{"exec", id}, job("eat", tooMuch)...)...); err != nil {
		return err
	}
	out, err := s.husk(ctx, "events", "--stats", id)
	if err != nil {
		return err
	}
	var stats struct {
		Data struct {
			Memory struct {
				Usage struct{ Limit, Failcnt uint64 }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &stats); err != nil {
		return fmt.Errorf("husk events printed %q: %w", out, err)
	}
	if usage := stats.Data.Memory.Usage; usage.Failcnt == 0 || usage.Limit != 128<<20 {
		return fmt.Errorf("husk events --stats tells of %d kills for want of memory, want 1, and of a limit of %d bytes", usage.Failcnt, usage.Limit)
	}
	// The first one of another container.
	eater := s.id("eater")
	args := append([]string{"run", "--name", eater, "--pull", "never", "--memory", memoryLimit, image}, job("eat", tooMuch)...)
	if _, err := s.ends(ctx, 137, options{}, args...); err != nil {
		return err
	}
	if _, err := s.husk(ctx, "delete", eater); err != nil {
		return err
	}
	if _, err := s.ends(ctx, 7, options{}, append([]string{"exec", id}, job("fail", "7")...)...); err != nil {
		return fmt.Errorf("the container beside it: %w", err)
	}
	return s.down(ctx, id, c)
}

// atOnce is how many containers the step parallel starts.
const atOnce = 4

// tryParallel starts containers at once.
func tryParallel(ctx context.Context, s *session) error {
	errs := make([]error, atOnce)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			id, c, err := s.up(ctx, options{}, "parallel", nil)
			if err == nil {
				err = s.down(ctx, id, c)
			}
			errs[i] = err
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// killed are the processes of a container that has been put up to lose one.
type killed struct {
	id     string
	record state.Container
}

// process finds one of the container's by the name of its part.
func (k killed) process(part string) (state.Process, error) {
	switch part {
	case "owner":
		return k.record.Owner, nil
	case "attend":
		return k.record.Host, nil
	}
	for _, p := range k.record.Helpers {
		if p.Name == part {
			return p, nil
		}
	}
	return state.Process{}, fmt.Errorf("container %s has no %s on record", k.id, part)
}

// tryKill kills a part of what a container runs on.
func tryKill(part string) func(context.Context, *session) error {
	return func(ctx context.Context, s *session) error {
		b := s.bundle("kill-" + part)
		if s.cgroupsWork() {
			b.spec.Linux.CgroupsPath = cgroupName(b.id)
		}
		if err := b.up(ctx); err != nil {
			return err
		}
		record, err := s.record(b.id)
		if err != nil {
			return err
		}
		k := killed{b.id, record}
		victim, err := k.process(part)
		if err != nil {
			return err
		}
		if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill %s: %w", part, err)
		}
		return s.mourn(ctx, k, part)
	}
}

// mourn looks at what becomes of a container that has lost a part.
func (s *session) mourn(ctx context.Context, k killed, part string) error {
	if err := s.stopped(ctx, k.id); err != nil {
		return err
	}
	var code int
	err := until(ctx, "the process that stands for the container has ended", func() (known bool, _ error) {
		code, known = s.reaper.code(k.record.Host.PID)
		return known, nil
	})
	if err != nil {
		return err
	}
	if code != 137 {
		return fmt.Errorf("the process that stands for the container ended with %d, want 137", code)
	}
	if part != "owner" { // who writes it down
		record, err := s.record(k.id)
		if err != nil {
			return err
		}
		if record.ExitStatus != 137 {
			return fmt.Errorf("the container's exit code on record is %d, want 137", record.ExitStatus)
		}
	}
	if _, err := s.husk(ctx, "delete", k.id); err != nil {
		return err
	}
	for _, p := range append([]state.Process{k.record.Owner, k.record.Host}, k.record.Helpers...) {
		if err := until(ctx, "process "+strings.TrimSpace(fmt.Sprint(p.Name, " ", p.PID))+" has ended", func() (bool, error) { return !p.Alive(), nil }); err != nil {
			return err
		}
	}
	if _, err := s.ends(ctx, 1, options{}, "state", k.id); err != nil {
		return fmt.Errorf("after delete: %w", err)
	}
	return nil
}
