package shim

import (
	"sync"
	"time"

	events "github.com/containerd/containerd/api/events"
	tasktypes "github.com/containerd/containerd/api/types/task"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

// container is one container of the sandbox.
type container struct {
	id     string // containerd's
	name   string // in the sandbox and the state, see stateID
	bundle string
	rootfs string   // what the shim has mounted, "" for nothing
	staged []string // and below it, in that order
	// mounts is the path of the mount namespace in which the engine has mounted the root itself (CRI-O), which this process may
	// not see; "" where the shim does it.
	mounts string
	// disks are what the root is made of in place of that, attached what was plugged in for it.
	disks    *sandbox.RootDisks
	attached *sandbox.AttachedRoot
	spec     *specs.Spec
	init     *process
	stand    *sys.StandIn
	dir      *state.Dir
	first    bool // the virtual machine was made for it

	mu    sync.Mutex          // guards the fields below
	execs map[string]*process // by id
}

// process is the init of a container or one that was added to it.
type process struct {
	id    string // "" for the init
	stdio stdio
	spec  *specs.Process // of an added one

	// changing is held while the guest starts or freezes it, and while its end is told, which keeps its events in order. It is
	// taken before mu.
	changing sync.Mutex

	mu            sync.Mutex // guards the fields below
	status        tasktypes.Status
	pid           int
	opened        *opened
	inClosed      bool // CloseIO was called, perhaps before there was any input
	rows, columns uint32
	exit          sandbox.Exit // valid once exited is closed
	exited        chan struct{}
}

func newProcess(id string, s stdio) *process {
	return &process{id: id, stdio: s, status: tasktypes.Status_CREATED, exited: make(chan struct{})}
}

// process finds the init, for "", or an added one; nil where there is none.
func (c *container) process(exec string) *process {
	if exec == "" {
		return c.init
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.execs[exec]
}

// add adds a process and tells whether its id was free.
func (c *container) add(p *process) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[p.id] != nil {
		return false
	}
	c.execs[p.id] = p
	return true
}

func (c *container) drop(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, p.id)
}

func (p *process) stopped() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// ended records how the process ended, tells containerd and lets everybody go who waits for it.
func (p *process) ended(s *service, c *container, exit sandbox.Exit) {
	if exit.Time.IsZero() {
		exit.Time = time.Now()
	}
	p.changing.Lock() // a start that goes on publishes its event first
	defer p.changing.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exit, p.status = exit, tasktypes.Status_STOPPED
	if p.opened != nil {
		p.opened.end()
	}
	id := p.id
	if id == "" {
		id = c.id
	}
	if exit.Reason != "" {
		s.log.Warn("process lost", "container", c.id, "process", id, "reason", exit.Reason)
	}
	s.events.publish(topicExit, &events.TaskExit{
		ContainerID: c.id, ID: id, Pid: uint32(p.pid), ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.Time),
	})
	close(p.exited)
	s.settle()
}

// Topics of containerd's events (containerd, core/runtime/events.go).
const (
	topicCreate      = "/tasks/create"
	topicStart       = "/tasks/start"
	topicOOM         = "/tasks/oom"
	topicExit        = "/tasks/exit"
	topicDelete      = "/tasks/delete"
	topicExecAdded   = "/tasks/exec-added"
	topicExecStarted = "/tasks/exec-started"
	topicPaused      = "/tasks/paused"
	topicResumed     = "/tasks/resumed"
)
