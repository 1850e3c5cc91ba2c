// Package agent is husk's side inside the guest: it answers the calls of api/agent/v1, runs containers
// through crun, and as PID 1 waits for every process.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/ttrpc"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent/cgroup"
	"husk.dev/husk/internal/agent/mnt"
	"husk.dev/husk/internal/agent/nic"
	"husk.dev/husk/internal/agent/proc"
	"husk.dev/husk/internal/agent/runner"
	"husk.dev/husk/internal/agent/stdio"
)

// Config says where things are, so that an agent can also run in a test. GuestConfig has what is so in a
// guest.
type Config struct {
	Runner        string // path of crun
	RunnerRoot    string // crun's --root
	CgroupManager string // crun's --cgroup-manager
	CgroupRoot    string // where cgroup2 is mounted
	CgroupParent  string // the group below it that containers' groups are made in, "/husk"
	RunDir        string // for bundles, mounts and sockets; a short path
	ShareDir      string // shares are mounted below it

	PID1    bool // every orphan is the agent's to wait for
	Machine bool // the clock and the host name are the agent's to set
	// NoDevices leaves device rules out, for a test on a machine where BPF programs cannot be loaded.
	NoDevices bool
	Version   string
	// Log takes what goes wrong where no call can be told; nil throws it away.
	Log *slog.Logger
}

// GuestConfig is the configuration of an agent that is PID 1 of a guest.
func GuestConfig() Config {
	return Config{
		Runner: "/usr/bin/crun", RunnerRoot: "/run/crun", CgroupManager: "cgroupfs",
		CgroupRoot: "/sys/fs/cgroup", CgroupParent: "/husk",
		RunDir: "/run/husk", ShareDir: agentv1.ShareDir,
		PID1: true, Machine: true,
	}
}

// Agent serves one guest. New makes it, Serve runs it.
type Agent struct {
	config  Config
	log     *slog.Logger
	reaper  *proc.Reaper
	runner  *runner.Runner
	streams *stdio.Registry
	mounts  *mnt.Table
	files   *mnt.Files
	oom     *cgroup.Watcher
	events  *events
	shell   *shell
	clock   *clock
	filters *filters
	resting chan struct{} // closed by Rest
	idle    *time.Timer   // gives memory back after a time in which no process ended

	network  nic.Network
	returned returned

	mu sync.Mutex
	// containers by id; nil while one is being made. order lists them by creation. Guarded by mu.
	containers map[string]*container
	order      []*container
	pod        *pod     // guarded by mu; nil where a container is what the others join
	bundles    int      // guarded by mu; numbers the bundle directories
	released   []string // guarded by mu: disks that a saved guest has no driver on

	version     sync.Once
	versionText string // of crun, after version
}

// New makes an agent. Failures to prepare show when Serve is called.
func New(c Config) *Agent {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Agent{
		config: c, log: c.Log,
		streams:    stdio.NewRegistry(),
		mounts:     mnt.NewTable(filepath.Join(c.RunDir, "m"), c.ShareDir, filepath.Join(c.RunDir, "memory")),
		files:      mnt.NewFiles(filepath.Join(c.RunDir, "files")),
		events:     newEvents(),
		clock:      &clock{ours: c.Machine},
		filters:    newFilters(),
		resting:    make(chan struct{}),
		idle:       time.AfterFunc(idleWait, giveBack),
		containers: map[string]*container{},
	}
}

const (
	// idleWait is how long the agent waits after a process has ended before it gives memory back.
	idleWait = 5 * time.Second
	// wantedKiB is the resident memory with which that is not worth its time.
	wantedKiB = 12 << 10
)

// giveBack gives memory that large output took back to the guest, which Go would do in its own good time.
func giveBack() {
	if proc.ResidentKiB() > wantedKiB {
		debug.FreeOSMemory()
	}
}

// prepare makes what the agent needs to run.
func (a *Agent) prepare() error {
	for _, dir := range []string{a.config.RunDir, a.config.RunnerRoot, filepath.Join(a.config.RunDir, "x"), a.config.ShareDir} {
		// The root of a user namespace, who is nobody here, comes through to its files.
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("prepare: %w", err)
		}
	}
	var err error
	if a.reaper, err = proc.NewReaper(a.config.PID1); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if a.oom, err = cgroup.NewWatcher(); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	a.runner = runner.New(a.config.Runner, a.config.RunnerRoot, a.config.CgroupManager,
		filepath.Join(a.config.RunDir, "x"), a.reaper)
	a.shell = newShell(a)
	return nil
}

// Serve answers calls that come over rpc and takes streams that come over io until ctx ends or either
// listener fails. It closes both. An agent serves once.
func (a *Agent) Serve(ctx context.Context, rpc, io net.Listener) error {
	defer rpc.Close()
	defer io.Close()
	if err := a.prepare(); err != nil {
		return err
	}
	defer a.oom.Close()
	defer a.idle.Stop()
	stop := make(chan struct{})
	defer close(stop)
	go a.reaper.Run(stop)
	go a.oom.Run()

	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(answer))
	if err != nil {
		return fmt.Errorf("serve agent: %w", err)
	}
	defer server.Close()
	agentv1.RegisterAgentService(server, service{a})
	failed := make(chan error, 2)
	go func() { failed <- server.Serve(ctx, rpc) }()
	go func() { failed <- a.streams.Serve(io) }()
	select {
	case err = <-failed:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return nil
	}
	return fmt.Errorf("serve agent: %w", err)
}

// group is the cgroup of a container.
func (a *Agent) group(id string) cgroup.Group {
	if a.config.CgroupRoot == "" {
		return cgroup.Group{}
	}
	return cgroup.Group{Dir: filepath.Join(a.config.CgroupRoot, a.config.CgroupParent, id)}
}
