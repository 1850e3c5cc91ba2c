package sandbox

import (
	"sync"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// Exit is how a process ended.
type Exit struct {
	Status uint32 // exit code, or 128 + signal
	Time   time.Time
	Reason string // why, where the VM and not the program ended it
}

// killed is the status of a process that died with its VM: 128 + SIGKILL.
const killed = 137

// process is one process of a container: its init or one that was added by Exec.
type process struct {
	exec    string // empty for the init
	streams *streams

	once   sync.Once
	lost   sync.Once
	exit   Exit          // valid once ended is closed
	ended  chan struct{} // the process is gone
	hurry  chan struct{} // … with its VM: no output is to come
	exited chan struct{} // … and its output has been handed on
}

func newProcess(exec string) *process {
	return &process{
		exec: exec, ended: make(chan struct{}), hurry: make(chan struct{}), exited: make(chan struct{}),
	}
}

// end records how the process ended; the first call counts.
func (p *process) end(exit Exit) {
	p.once.Do(func() {
		p.exit = exit
		close(p.ended)
	})
}

// lose ends a process whose VM is gone, and gives up on a reader that does not take its output.
func (p *process) lose(exit Exit) {
	p.end(exit)
	p.lost.Do(func() { close(p.hurry) })
}

// finish waits for the end and for the output, then calls then and lets everybody go who waits for exited.
func (p *process) finish(then func(Exit)) {
	<-p.ended
	if p.streams != nil {
		p.streams.drain(p.hurry)
		p.streams = nil // the process may be asked for some time longer, they are not
	}
	if then != nil {
		then(p.exit)
	}
	close(p.exited)
}

func exitOf(e *agentv1.Exit) Exit {
	return Exit{Status: e.Status, Time: time.Unix(0, e.TimeUnixNanos)}
}
