package selftest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"husk.dev/husk/internal/child"
	"husk.dev/husk/internal/sys"
)

// reapEvery is how often the dead are reaped: husk waits for processes to be gone.
const reapEvery = 50 * time.Millisecond

// reaper is the parent of every process that husk leaves in the background, and keeps their exit codes.
type reaper struct {
	before map[int]bool // descendants that are none of ours
	stop   chan struct{}
	gone   chan struct{}

	mu    sync.Mutex
	own   map[int]bool // children that somebody waits for; guarded by mu, which is held while one is started
	codes map[int]int  // of those that were reaped; guarded by mu
}

func newReaper() *reaper {
	r := &reaper{before: descendants(), stop: make(chan struct{}), gone: make(chan struct{}), own: map[int]bool{}, codes: map[int]int{}}
	go func() {
		defer close(r.gone)
		for {
			select {
			case <-r.stop:
				return
			case <-time.After(reapEvery):
				r.reap()
			}
		}
	}()
	return r
}

func (r *reaper) close() {
	close(r.stop)
	<-r.gone
}

func (r *reaper) start(cmd *exec.Cmd, begin func(*exec.Cmd) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := begin(cmd); err != nil {
		return err
	}
	r.own[cmd.Process.Pid] = true
	return nil
}

// aside calls f, which may start processes of its own and wait for them.
func (r *reaper) aside(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *reaper) forget(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.own, pid)
}

// reap takes the exit codes of children that have ended and that nobody waits for.
func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, pid := range children() {
		if r.own[pid] || r.before[pid] {
			continue
		}
		var status syscall.WaitStatus
		if got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil); err != nil || got != pid {
			continue
		}
		r.codes[pid] = status.ExitStatus()
		if status.Signaled() {
			r.codes[pid] = 128 + int(status.Signal())
		}
	}
}

// code is the exit code of a process that has ended.
func (r *reaper) code(pid int) (code int, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	code, known = r.codes[pid]
	return code, known
}

// running are the descendants that are there because of husk.
func (r *reaper) running() (pids []int) {
	r.reap()
	for pid := range descendants() {
		if !r.before[pid] {
			pids = append(pids, pid)
		}
	}
	return pids
}

// children are the child processes of this one.
func children() (pids []int) {
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil
	}
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has gone
		}
		for _, word := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// descendants are the processes below this one: since it is their reaper, all that husk started.
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
		data, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue // it has gone
		}
		stat := string(data)
		fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // the name before may hold anything
		if len(fields) < 2 {
			continue
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
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

// startIn starts cmd in the network namespace at path. gone is closed when it has ended.
func startIn(cmd *exec.Cmd, path string, gone <-chan struct{}) error {
	return child.StartPrepared(cmd, func() error { return sys.JoinNetwork(path) }, gone)
}

// left names what containers that are gone have left.
func (s *session) left() (found []string) {
	for _, pid := range s.reaper.running() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // it may go meanwhile
		found = append(found, fmt.Sprintf("process %d (%.100s)", pid, strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))))
	}
	if s.dirs == nil {
		return found
	}
	for _, dir := range []string{s.dirs.run, filepath.Join(s.dirs.data, "containers")} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			found = append(found, err.Error())
		}
		for _, e := range entries {
			found = append(found, "files "+filepath.Join(dir, e.Name()))
		}
	}
	for _, dir := range []string{s.dirs.run, s.dirs.data} {
		if mounted, err := sys.MountsBelow(dir); err != nil || mounted {
			found = append(found, "mounts below "+dir)
		}
	}
	groups, _ := filepath.Glob(cgroupPattern(cgroupName("*"), "")) // the patterns are right
	more, _ := filepath.Glob(cgroupPattern(cgroupName("*"), "*"))
	for _, dir := range append(groups, more...) {
		found = append(found, "control group "+dir)
	}
	return found
}

// awaitNothing waits until nothing is left of the step's containers.
func (s *session) awaitNothing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.at.gone)
	defer cancel()
	var found []string
	err := until(ctx, "nothing is left", func() (bool, error) {
		found = s.left()
		return len(found) == 0, nil
	})
	if err != nil {
		return fmt.Errorf("left behind: %s", strings.Join(found, ", "))
	}
	return nil
}

// endAll removes what a step's containers left, which is nothing after one that went well.
func (s *session) endAll() error {
	if len(s.left()) == 0 {
		return nil
	}
	if s.dirs != nil {
		ctx, cancel := context.WithTimeout(context.Background(), deleteLimit)
		defer cancel()
		s.deleteAll(ctx)
	}
	end := time.Now().Add(s.at.gone)
	for killed := time.Now().Add(s.at.gone / 6); time.Now().Before(end); time.Sleep(poll) {
		if len(s.left()) == 0 {
			return nil
		}
		if time.Now().After(killed) { // they had time to end by themselves
			for _, pid := range s.reaper.running() {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have gone
			}
		}
	}
	return fmt.Errorf("cannot be removed: %s", strings.Join(s.left(), ", "))
}
