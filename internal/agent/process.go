package agent

import (
	"sync"
	"syscall"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent/proc"
	"husk.dev/husk/internal/agent/runner"
	"husk.dev/husk/internal/agent/stdio"
)

// maxProcesses bounds the processes that calls have started in one container, or as shells.
const maxProcesses = 1024

// process is a container's init, a further process in it, or a shell.
type process struct {
	pid     int
	streams *stdio.IO
}

// processes are the running processes of one container by their exec ids, "" for its init.
type processes struct {
	mu sync.Mutex
	// live has nil for one that is being started. Guarded by mu.
	live map[string]*process
}

func newProcesses() *processes { return &processes{live: map[string]*process{}} }

// reserve takes an exec id for a process that is about to be started.
func (p *processes) reserve(id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, taken := p.live[id]; taken {
		return fail(codes.AlreadyExists, "process %q exists already", id)
	}
	if len(p.live) >= maxProcesses {
		return fail(codes.ResourceExhausted, "more than %d processes", maxProcesses)
	}
	p.live[id] = nil
	return nil
}

func (p *processes) set(id string, process *process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live[id] = process
}

func (p *processes) remove(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.live, id)
}

// added are the pids of those that calls have started beside init.
func (p *processes) added() (pids []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, process := range p.live {
		if id != "" && process != nil {
			pids = append(pids, process.pid)
		}
	}
	return pids
}

// get returns a running process.
func (p *processes) get(container, id string) (*process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if found := p.live[id]; found != nil {
		return found, nil
	}
	if id == "" {
		return nil, fail(codes.NotFound, "container %q has no running init", container)
	}
	return nil, fail(codes.NotFound, "no running process %q", id)
}

// follow waits for a process of all and reports its exit. before runs first, with its status.
func (a *Agent) follow(container, exec string, all *processes, started runner.Process, p *process, before func(proc.Status)) {
	s := <-started.Exited
	if before != nil {
		before(s)
	}
	all.remove(exec)
	a.tellMounts()
	a.events.push(&agentv1.Event{Container: container, Exec: exec, Event: &agentv1.Event_Exit{
		Exit: &agentv1.Exit{Status: s.Code, TimeUnixNanos: s.Time.UnixNano()},
	}})
	p.streams.Finish()
	a.idle.Reset(idleWait)
}

// maxSignal is the last of Linux' signals, SIGRTMAX.
const maxSignal = 64

func toSignal(n uint32) (syscall.Signal, error) {
	if n > maxSignal { // 0 only asks whether the process is there, kill(2)
		return 0, fail(codes.InvalidArgument, "no signal has number %d", n)
	}
	return syscall.Signal(n), nil
}
