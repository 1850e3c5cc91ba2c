// Package proc starts processes, collects the exits of children and orphans, and lists what runs.
package proc

import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"husk.dev/husk/internal/sys"
)

// Status is how a process ended.
type Status struct {
	Code uint32 // exit code, or 128 + signal
	Time time.Time
}

// Reaper is the only place of the agent that waits for processes. As PID 1 it must wait for whatever
// dies, so nothing else may: os/exec would find its child's status taken. It hands each status to who
// started or watches the process.
//
// A process that the container runner leaves behind is an orphan that may die before anyone knows its
// pid. An Adoption makes the reaper keep such statuses until the pid is known.
type Reaper struct {
	all bool // waits for every child, as PID 1 must; else for those it knows

	mu sync.Mutex
	// live are the processes that someone waits for. Guarded by mu.
	live map[int]chan Status
	// strays are statuses of processes that nobody knew, kept while adoptions are open. Guarded by mu.
	strays    map[int]Status
	adoptions int // guarded by mu
}

// maxStrays bounds the statuses kept for an adoption: a container can make orphans at will.
const maxStrays = 4096

// NewReaper makes a reaper. With all set it takes every child's status, as PID 1 must, once Run runs;
// without, it becomes the parent of orphans and leaves children that it does not know alone, so that a
// test's own children are not lost.
func NewReaper(all bool) (*Reaper, error) {
	r := &Reaper{all: all, live: map[int]chan Status{}, strays: map[int]Status{}}
	if !all {
		if err := sys.Subreap(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Run collects exits until stop is closed. Without all it has nothing to do.
func (r *Reaper) Run(stop <-chan struct{}) {
	if !r.all {
		return
	}
	exits := make(chan os.Signal, 1)
	signal.Notify(exits, syscall.SIGCHLD)
	defer signal.Stop(exits)
	for {
		r.collect()
		select {
		case <-exits:
		case <-stop:
			return
		}
	}
}

// collect takes every status that is there. The lock is held over each wait, so that a pid that is not
// waited for yet cannot be taken by another process while the lock is held elsewhere.
func (r *Reaper) collect() {
	for {
		r.mu.Lock()
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			r.mu.Unlock()
			continue
		}
		if err != nil || pid <= 0 {
			r.mu.Unlock()
			return
		}
		r.deliver(pid, status(ws))
		r.mu.Unlock()
	}
}

// deliver hands a status on. Preconditions: mu is held.
func (r *Reaper) deliver(pid int, s Status) {
	if exited, known := r.live[pid]; known {
		delete(r.live, pid)
		exited <- s
		return
	}
	if r.adoptions > 0 && len(r.strays) < maxStrays {
		r.strays[pid] = s
	}
}

func status(ws syscall.WaitStatus) Status {
	s := Status{Code: uint32(ws.ExitStatus()), Time: time.Now()}
	if ws.Signaled() {
		s.Code = 128 + uint32(ws.Signal())
	}
	return s
}

// Start starts a program. Its status comes over the returned channel, which never blocks the reaper.
func (r *Reaper) Start(path string, args []string, attr *syscall.ProcAttr) (int, <-chan Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock() // over the fork: an exit cannot be collected before it is expected
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", path, err)
	}
	return pid, r.expect(pid), nil
}

// expect registers a process. Preconditions: mu is held and pid is a child that was not waited for.
func (r *Reaper) expect(pid int) <-chan Status {
	exited := make(chan Status, 1)
	r.live[pid] = exited
	if !r.all {
		go r.await(pid)
	}
	return exited
}

// await waits for one process where the reaper does not collect all.
func (r *Reaper) await(pid int) {
	err := sys.AwaitExit(pid)
	r.mu.Lock()
	defer r.mu.Unlock()
	var ws syscall.WaitStatus
	if err == nil {
		_, err = syscall.Wait4(pid, &ws, syscall.WNOHANG, nil)
	}
	if err != nil { // not our child after all: its status is nobody's
		r.deliver(pid, Status{Code: 255, Time: time.Now()})
		return
	}
	r.deliver(pid, status(ws))
}

// Adoption is a span of time in which orphans may die that will be asked for.
type Adoption struct{ reaper *Reaper }

// Adopt opens an adoption, before the program is started that leaves the orphan. Close ends it.
func (r *Reaper) Adopt() *Adoption {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.adoptions++
	return &Adoption{reaper: r}
}

// Watch returns the channel over which the status of the orphan pid comes, which may have died already.
func (a *Adoption) Watch(pid int) <-chan Status {
	r := a.reaper
	r.mu.Lock()
	defer r.mu.Unlock()
	s, died := r.strays[pid]
	// A pid that exists now is a later process than the stray of that number: nobody is waited for while
	// the lock is held.
	if died && syscall.Kill(pid, 0) == syscall.ESRCH {
		delete(r.strays, pid)
		exited := make(chan Status, 1)
		exited <- s
		return exited
	}
	return r.expect(pid)
}

// Close ends the adoption.
func (a *Adoption) Close() {
	r := a.reaper
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.adoptions--; r.adoptions == 0 {
		clear(r.strays)
	}
}

// Signal sends a signal to a process that someone waits for. syscall.ESRCH says that it has exited, even
// where its pid is taken anew.
func (r *Reaper) Signal(pid int, sig syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, live := r.live[pid]; !live {
		return syscall.ESRCH
	}
	return syscall.Kill(pid, sig)
}
