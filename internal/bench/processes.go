package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"husk.dev/husk/internal/sys"
)

// descendants are the processes below this one. Since it is their reaper, these are all that runtimes
// started and that still run, or wait to be reaped.
func descendants() map[int]bool {
	below := map[int][]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if parent, ok := parentOf(pid); ok {
			below[parent] = append(below[parent], pid)
		}
	}
	found := map[int]bool{}
	for next := below[os.Getpid()]; len(next) > 0; next = next[1:] {
		found[next[0]] = true
		next = append(next, below[next[0]]...)
	}
	return found
}

func parentOf(pid int) (parent int, ok bool) {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, false // it has gone
	}
	stat := string(data)
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // the name before may hold anything
	if len(fields) < 2 {
		return 0, false
	}
	parent, err = strconv.Atoi(fields[1])
	return parent, err == nil
}

// running are the descendants that the session's containers need. It reaps those that have ended.
func (s *session) running() (pids []int) {
	for pid := range descendants() {
		if !s.before[pid] && !s.reaped(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// reaped takes the exit status of pid where it is an ended orphan that has become this process' child.
func (s *session) reaped(pid int) bool {
	s.starting.Lock()
	defer s.starting.Unlock()
	if _, own := s.own.Load(pid); own {
		return false
	}
	got, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
	return err == nil && got == pid
}

// start starts a command. Its caller waits for it and calls forget then.
func (s *session) start(cmd *exec.Cmd) (forget func(), err error) {
	s.starting.RLock()
	defer s.starting.RUnlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.own.Store(cmd.Process.Pid, true)
	return func() { s.own.Delete(cmd.Process.Pid) }, nil
}

// reapMeanwhile reaps what runs now as soon as it ends, until stop is called: some runtimes wait for
// processes to be gone, and the dead that nobody has reaped are not.
func (s *session) reapMeanwhile() (stop func()) {
	pids := s.running()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			pids = slices.DeleteFunc(pids, s.reaped)
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-ended }
}

// waitGone waits until all of pids have ended, and reaps them.
func (s *session) waitGone(ctx context.Context, pids []int) error {
	ctx, cancel := context.WithTimeout(ctx, goneLimit)
	defer cancel()
	for _, pid := range pids {
		if err := sys.WaitGone(ctx, pid); err != nil {
			return err
		}
		s.reaped(pid)
	}
	return nil
}

// endAll ends what containers that were not deleted left.
func (s *session) endAll() error {
	var left []int
	for end := time.Now().Add(goneLimit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if left = s.running(); len(left) == 0 {
			return nil
		}
		if time.Until(end) < goneLimit*3/4 { // they had time to end by themselves
			for _, pid := range left {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have gone
			}
		}
	}
	return fmt.Errorf("processes %v do not end", left)
}

// programName is how a process was called: the program, and the verb where one follows.
func programName(pid int) string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	words := strings.Split(string(line), "\x00")
	if err != nil || words[0] == "" {
		return "unknown"
	}
	name := filepath.Base(words[0])
	if len(words) > 1 && strings.Trim(words[1], "abcdefghijklmnopqrstuvwxyz") == "" && words[1] != "" {
		name += " " + words[1]
	}
	return name
}

// pss is the memory of pids in bytes by the name of the program, with pages that several of them share
// counted once: each process' part of a shared page is the page divided by those that have it mapped
// (proc(5), smaps_rollup).
func pss(pids []int) (map[string]uint64, error) {
	total := map[string]uint64{}
	for _, pid := range pids {
		path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
		value := strings.TrimSuffix(valueIn(path, "Pss", ":"), " kB")
		kib, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read %s: no Pss in it", path)
		}
		total[programName(pid)] += kib << 10
	}
	return total, nil
}

// available is the part of this machine's memory that can still be used, from 0 to 1.
func available() float64 {
	kib := func(key string) float64 {
		n, _ := strconv.ParseFloat(strings.TrimSuffix(valueIn("/proc/meminfo", key, ":"), " kB"), 64)
		return n
	}
	return kib("MemAvailable") / max(kib("MemTotal"), 1)
}
