package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent/cgroup"
	"husk.dev/husk/internal/agent/mnt"
	"husk.dev/husk/internal/agent/proc"
	"husk.dev/husk/internal/agent/spec"
	"husk.dev/husk/internal/agent/stdio"
	"husk.dev/husk/internal/cleanup"
)

const (
	// maxContainers bounds the containers of one guest.
	maxContainers = 1024
	// maxOwn bounds the files of a container's own.
	maxOwn = 16
	// cleanupWait bounds how long the remains of a container may take to go.
	cleanupWait = 10 * time.Second
)

// maxID is how long the id of a container or process may be.
const maxID = 128

// validID tells whether id is a name of a container or process: letters, digits, '_', '.', '+' and '-', but
// no name that a directory has already.
func validID(id string) bool {
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '.', c == '+', c == '-':
		default:
			return false
		}
	}
	return len(id) >= 1 && len(id) <= maxID && id != "." && id != ".."
}

// container is one container of the guest.
type container struct {
	id    string
	group cgroup.Group
	procs *processes

	// op is held by whoever changes the container's state, over the change.
	op    sync.Mutex
	root  *mnt.Root      // guarded by op
	files copyFrom       // guarded by op
	undo  *cleanup.Stack // what deleting the container runs; nil before and after its life; guarded by op

	mu    sync.Mutex
	state state     // guarded by mu
	pid   int       // of init; guarded by mu
	ran   time.Time // when init's program began, or was about to; guarded by mu
	// checkOOM and forgetOOM look at and end the watch for OOM kills; nil without one. Guarded by mu.
	checkOOM, forgetOOM func()
}

func (c *container) is() state {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

// become moves the container to a state, unless it has stopped meanwhile.
func (c *container) become(next state) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.state.can(next) {
		return false
	}
	if c.ran.IsZero() && next == running {
		c.ran = time.Now()
	}
	c.state = next
	return true
}

// find returns a container by its id.
func (a *Agent) find(id string) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.containers[id]; c != nil {
		return c, nil
	}
	return nil, fail(codes.NotFound, "no container %q", id)
}

// add takes an id for a container that is about to be made.
func (a *Agent) add(id string) (*container, error) {
	if !validID(id) {
		return nil, fail(codes.InvalidArgument, "invalid container id %q", id)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, taken := a.containers[id]; taken {
		return nil, fail(codes.AlreadyExists, "container %q exists already", id)
	}
	if len(a.containers) >= maxContainers {
		return nil, fail(codes.ResourceExhausted, "more than %d containers", maxContainers)
	}
	c := &container{id: id, group: a.group(id), procs: newProcesses()}
	a.containers[id] = c
	a.order = append(a.order, c)
	return c, nil
}

func (a *Agent) drop(c *container) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.containers, c.id)
	for i, other := range a.order {
		if other == c {
			a.order = append(a.order[:i:i], a.order[i+1:]...)
			return
		}
	}
}

// create makes a container up to where its init waits for start.
func (a *Agent) create(ctx context.Context, r *agentv1.CreateContainerRequest) (*container, error) {
	streams, err := a.streams.Open(ctx, r.GetStdio())
	if err != nil {
		return nil, err
	}
	made := false
	defer func() {
		if !made {
			streams.Abort()
		}
	}()
	c, err := a.add(r.GetId())
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	var undo cleanup.Stack
	defer undo.Clean()
	undo.Add(func() error { a.drop(c); return nil })

	if err := a.mounts.Shares(r.GetShares()); err != nil {
		return nil, err
	}
	if err := a.mounts.Memory(r.GetMemory(), &undo); err != nil {
		return nil, err
	}
	if err := a.mounts.Hold(spec.Sources(r.GetSpec()), &undo); err != nil {
		return nil, fmt.Errorf("open a mount's source: %w", err)
	}
	if err := a.ownFiles(r.GetId(), r.GetOwn(), &undo); err != nil {
		return nil, err
	}
	if r.GetReportMounts() {
		a.reportMounts()
	}
	if c.root, err = a.mounts.Assemble(ctx, r.GetRootfs()); err != nil {
		return nil, err
	}
	undo.Add(c.root.Unmount)
	seccomp := spec.Seccomp(r.GetSpec())
	config, err := a.rewrite(ctx, c, r, streams)
	if err != nil {
		return nil, err
	}
	bundle, err := a.bundle(config, &undo)
	if err != nil {
		return nil, err
	}
	if err := a.run(ctx, c, bundle, streams, spec.PrivatePIDs(config), &undo); err != nil {
		return nil, err
	}
	a.filters.put(seccomp, a.runner.Filter(c.id))
	c.undo, made = undo.Release(), true
	return c, nil
}

// rewrite makes the configuration of a container the guest's.
func (a *Agent) rewrite(ctx context.Context, c *container, r *agentv1.CreateContainerRequest, streams *stdio.IO) ([]byte, error) {
	filter := r.GetSeccompFilter()
	if len(filter) == 0 {
		filter = a.filters.get(spec.Seccomp(r.GetSpec()))
	}
	disks, err := blockDevices(ctx, r.GetDevices())
	if err != nil {
		return nil, err
	}
	return spec.Rewrite(r.GetSpec(), spec.Changes{
		Root: c.root.Path, Cgroup: filepath.Join(a.config.CgroupParent, c.id),
		Terminal: streams.Terminal(), Rows: streams.Size().Rows, Columns: streams.Size().Columns,
		Join: a.namespace, NoDevices: a.config.NoDevices, Filter: filter,
		SetSysctl: setSysctl, Disks: disks,
	})
}

// run has the container runner make the container, and watches over it.
func (a *Agent) run(ctx context.Context, c *container, bundle string, streams *stdio.IO, private bool, undo *cleanup.Stack) error {
	undo.Add(func() error { return a.runner.Forget(c.id) })
	undo.Add(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupWait)
		defer cancel()
		return c.group.Remove(ctx)
	})
	started, err := a.runner.Create(ctx, c.id, bundle, streams)
	if err != nil {
		return err
	}
	init := &process{pid: started.PID, streams: streams}
	c.procs.set("", init)
	c.mu.Lock()
	c.pid, c.state = started.PID, created
	c.mu.Unlock()
	a.watchOOM(c)
	c.holdFiles(started.PID, undo)
	go a.follow(c.id, "", c.procs, started, init, func(proc.Status) { a.initExited(c, private) })
	return nil
}

// watchOOM begins to report OOM kills in the container. Where the guest has no memory controller there
// are none.
func (a *Agent) watchOOM(c *container) {
	if c.group.Dir == "" {
		return
	}
	check, forget, err := a.oom.Watch(c.group, func() {
		a.events.push(&agentv1.Event{Container: c.id, Event: &agentv1.Event_Oom{Oom: &agentv1.OOM{}}})
	})
	if err != nil {
		if !errors.Is(err, cgroup.ErrNone) {
			a.log.Warn("OOM kills will not be reported", "container", c.id, "error", err)
		}
		return
	}
	c.mu.Lock()
	c.checkOOM, c.forgetOOM = check, forget
	c.mu.Unlock()
}

// initExited marks a container whose init has exited as stopped. What init leaves behind is killed: with a
// PID namespace of its own the kernel has done so.
func (a *Agent) initExited(c *container, private bool) {
	c.mu.Lock()
	c.state = stopped
	check := c.checkOOM
	c.mu.Unlock()
	if !private {
		if err := c.group.Kill(); err != nil && !errors.Is(err, cgroup.ErrNone) {
			a.log.Warn("processes may be left", "container", c.id, "error", err)
		}
	}
	if check != nil {
		check() // before the exit that follows from it is told
	}
}

// bundle writes the configuration where the container runner finds it.
func (a *Agent) bundle(config []byte, undo *cleanup.Stack) (string, error) {
	a.mu.Lock()
	a.bundles++
	dir := filepath.Join(a.config.RunDir, "b", strconv.Itoa(a.bundles))
	a.mu.Unlock()
	undo.Add(func() error { return os.RemoveAll(dir) })
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		return "", fmt.Errorf("make bundle: %w", err)
	}
	return dir, nil
}

// ownFiles writes what a container has of its own.
func (a *Agent) ownFiles(id string, files [][]byte, undo *cleanup.Stack) error {
	if len(files) == 0 {
		return nil
	}
	if len(files) > maxOwn {
		return fail(codes.InvalidArgument, "%d files of the container's own: at most %d", len(files), maxOwn)
	}
	dir := filepath.Join(a.config.RunDir, "own", id)
	undo.Add(func() error { return os.RemoveAll(dir) })
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the container's own files: %w", err)
	}
	for i, content := range files {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), content, 0o644); err != nil {
			return fmt.Errorf("make the container's own files: %w", err)
		}
	}
	return nil
}

// namespace finds the namespace of another container to join. Without an id the host meant the pod's, which
// its first container holds where no pod was made.
func (a *Agent) namespace(kind, id string) (string, error) {
	a.mu.Lock()
	p, order := a.pod, slices.Clone(a.order)
	a.mu.Unlock()
	if p != nil && (id == "" || id == p.id) {
		return a.podNamespace(p, kind) // which may take long
	}
	for _, c := range order {
		if id != "" && c.id != id {
			continue
		}
		c.mu.Lock()
		pid, now := c.pid, c.state
		c.mu.Unlock()
		if now == created || now == running || now == paused {
			return fmt.Sprintf("/proc/%d/ns/%s", pid, kind), nil
		}
		if id != "" {
			return "", wrongState("join a namespace of", id, now)
		}
	}
	if id != "" {
		return "", fail(codes.NotFound, "no container %q", id)
	}
	return "", nil
}

// start lets a created container run.
func (a *Agent) start(c *container) error {
	c.op.Lock()
	defer c.op.Unlock()
	if err := c.is().move("start", c.id, running); err != nil {
		return err
	}
	if err := a.runner.Start(c.id); err != nil {
		if now := c.is(); now == stopped {
			return wrongState("start", c.id, now) // it died before
		}
		return err
	}
	c.become(running) // it may have stopped already
	c.mu.Lock()
	pid := c.pid
	c.mu.Unlock()
	// Until then it is the runner's own process that a signal from whoever started it would find.
	proc.AwaitExec("/proc", pid, execWait)
	return nil
}

// execWait bounds the wait of start for the container's program. What takes longer to load runs on its own.
const execWait = 2 * time.Second

// settling is how long after its start a program is given to say what it does on signals.
const settling = 2 * time.Second

// settle waits until a program that has just begun has said what it does on a signal, and waits for something to happen; for
// at most settling after its start.
// The kernel throws away what reaches the first process of a PID namespace before that (pid_namespaces(7)), and on a slow
// machine a shell is still loading when its engine has long asked it to stop.
func (a *Agent) settle(ctx context.Context, c *container, sig syscall.Signal) {
	c.mu.Lock()
	pid, end, now := c.pid, c.ran.Add(settling), c.state
	c.mu.Unlock()
	if now != running || sig == 0 || sig == syscall.SIGKILL || sig == syscall.SIGSTOP || sig == syscall.SIGCONT {
		return
	}
	for ready := 0; ready < 2 && time.Now().Before(end) && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		ready++
		if !proc.Expects("/proc", pid, sig) || !proc.Sleeps("/proc", pid) {
			ready = 0
		}
	}
}

// remove removes a container that has stopped, or was never started.
func (a *Agent) remove(ctx context.Context, c *container) error {
	c.op.Lock()
	defer c.op.Unlock()
	switch now := c.is(); now {
	case stopped:
	case created:
		if err := a.killInit(ctx, c); err != nil {
			return err
		}
	case running, paused:
		return wrongState("delete", c.id, now)
	case creating: // and op is free: the creation has failed
		return fail(codes.NotFound, "no container %q", c.id)
	}
	if c.undo == nil {
		return fail(codes.NotFound, "no container %q", c.id) // deleted by another call
	}
	c.mu.Lock()
	forget := c.forgetOOM
	c.mu.Unlock()
	if forget != nil {
		forget()
	}
	if err := a.endCopies(ctx, c); err != nil {
		return err
	}
	undo := c.undo
	c.undo = nil
	if err := undo.Clean(); err != nil {
		return fmt.Errorf("delete container %q: %w", c.id, err)
	}
	return nil
}

// killInit ends a container that is to be deleted and waits until it is stopped.
func (a *Agent) killInit(ctx context.Context, c *container) error {
	c.mu.Lock()
	pid := c.pid
	c.mu.Unlock()
	if err := a.reaper.Signal(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill container %q: %w", c.id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, cleanupWait)
	defer cancel()
	for c.is() != stopped {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("kill container %q: %w", c.id, ctx.Err())
		}
	}
	return nil
}

// exec starts a further process in a container.
func (a *Agent) exec(ctx context.Context, r *agentv1.ExecRequest) (int, error) {
	if !validID(r.GetExec()) {
		return 0, fail(codes.InvalidArgument, "invalid exec id %q", r.GetExec())
	}
	streams, err := a.streams.Open(ctx, r.GetStdio())
	if err != nil {
		return 0, err
	}
	var undo cleanup.Stack
	defer undo.Clean()
	undo.Add(func() error { streams.Abort(); return nil })
	c, err := a.find(r.GetContainer())
	if err != nil {
		return 0, err
	}
	if now := c.is(); now != running && now != created {
		return 0, wrongState("exec in", c.id, now)
	}
	described, err := spec.Process(r.GetProcess(), streams.Terminal(), streams.Size().Rows, streams.Size().Columns)
	if err != nil {
		return 0, err
	}
	if err := c.procs.reserve(r.GetExec()); err != nil {
		return 0, err
	}
	undo.Add(func() error { c.procs.remove(r.GetExec()); return nil })
	started, err := a.runner.Exec(ctx, c.id, described, streams)
	if err != nil {
		if now := c.is(); now == stopped {
			return 0, wrongState("exec in", c.id, now) // it died meanwhile
		}
		return 0, err
	}
	undo.Release()
	p := &process{pid: started.PID, streams: streams}
	c.procs.set(r.GetExec(), p)
	go a.follow(c.id, r.GetExec(), c.procs, started, p, nil)
	return started.PID, nil
}
