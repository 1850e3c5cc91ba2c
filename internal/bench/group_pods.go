package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// podSettle is how long an idle pod is left alone before it is looked at: husk's shim gives back what it took after
	// some seconds.
	podSettle = 5 * time.Second
	// podIdle is how long its processor time is measured.
	podIdle = 5 * time.Second
	// clockTicks are those of a second in which the kernel tells processor times (proc(5)).
	clockTicks = 100
)

// stepPods makes and removes pods with one container each, by containerd: one, and many at once. Once it looks at what an
// idle pod uses.
func stepPods(ctx context.Context, s *session, rt Runtime, note add) error {
	if isRunsc(rt) {
		if _, err := exec.LookPath(runscShim); err != nil {
			return fmt.Errorf("its pods need gVisor's shim: %w", err)
		}
	}
	id, took, err := s.pods.run(ctx, rt)
	if err != nil {
		return err
	}
	note("pods.ready", ms(took))
	if took, err = s.pods.remove(ctx, id); err != nil {
		return err
	}
	note("pods.gone", ms(took))
	if err := s.manyPods(ctx, rt, note); err != nil {
		return err
	}
	if s.counts && !s.weighed[rt.Name] {
		s.weighed[rt.Name] = true
		err = s.weighPod(ctx, rt, note)
	}
	return errors.Join(err, s.alone())
}

// manyPods makes many pods at once, and removes them at once.
func (s *session) manyPods(ctx context.Context, rt Runtime, note add) error {
	many := s.options.Parallel
	var mu sync.Mutex
	var ids []string // guarded by mu
	ready, failed := s.atOnce(many, many, func() (output, error) {
		id, took, err := s.pods.run(ctx, rt)
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			ids = append(ids, id)
		}
		return output{exit: took}, err
	})
	gone, err := s.atOnce(len(ids), many, func() (output, error) {
		mu.Lock()
		id := ids[len(ids)-1]
		ids = ids[:len(ids)-1]
		mu.Unlock()
		took, err := s.pods.remove(ctx, id)
		return output{exit: took}, err
	})
	if err := errors.Join(failed, err); err != nil {
		return err
	}
	for i := range ready {
		note("pods.parallel.ready", ms(ready[i].exit))
		note("pods.parallel.gone", ms(gone[i].exit))
	}
	return nil
}

// weighPod measures the memory and the processor time of the processes that an idle pod has on the host.
func (s *session) weighPod(ctx context.Context, rt Runtime, note add) (err error) {
	id, _, err := s.pods.run(ctx, rt)
	if err != nil {
		return err
	}
	defer func() {
		_, failed := s.pods.remove(ctx, id)
		err = errors.Join(err, failed)
	}()
	if err := sleep(ctx, podSettle); err != nil {
		return err
	}
	pids := s.running()
	memory, err := pss(pids)
	if err != nil {
		return err
	}
	before, began := cpuTimes(pids), time.Now()
	if err := sleep(ctx, podIdle); err != nil {
		return err
	}
	seconds := time.Since(began).Seconds()
	used := map[string]time.Duration{}
	for pid, after := range cpuTimes(pids) {
		used[programName(pid)] += after - before[pid]
	}
	var shim, all uint64
	var shimBusy, allBusy time.Duration
	for _, name := range slices.Sorted(maps.Keys(memory)) {
		s.setting.Progress("%s: of an idle pod %s has %.1f MiB and uses %.1f ms of a processor in a second",
			rt.Name, name, float64(memory[name])/(1<<20), ms(used[name])/seconds)
		all, allBusy = all+memory[name], allBusy+used[name]
		if strings.HasPrefix(name, "containerd-shim-") {
			shim, shimBusy = shim+memory[name], shimBusy+used[name]
		}
	}
	note("pods.memory.shim", float64(shim)/(1<<20))
	note("pods.memory.all", float64(all)/(1<<20))
	note("pods.idle.shim", ms(shimBusy)/seconds)
	note("pods.idle.all", ms(allBusy)/seconds)
	return nil
}

// sleep waits, unless ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return fmt.Errorf("interrupted: %w", ctx.Err())
	}
}

// cpuTimes are what processes have used of processors so far.
func cpuTimes(pids []int) map[int]time.Duration {
	times := map[int]time.Duration{}
	for _, pid := range pids {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if err != nil {
			continue // it has gone
		}
		times[pid] = cpuTime(string(data))
	}
	return times
}

// cpuTime is the time in user and kernel mode that a line of /proc/PID/stat tells.
func cpuTime(stat string) time.Duration {
	const user, system = 11, 12 // after the name, which may hold anything
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= system {
		return 0
	}
	var ticks int64
	for _, f := range []string{fields[user], fields[system]} {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / clockTicks
}
