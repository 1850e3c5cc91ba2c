package agent

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent/proc"
	"husk.dev/husk/internal/sys"
)

const (
	// maxHostname is the kernel's limit (__NEW_UTS_LEN).
	maxHostname = 64
	// memoryWait bounds how long memory that is plugged in may take to be there.
	memoryWait = 10 * time.Second
	// maxEntropy bounds what Hello takes, in bytes.
	maxEntropy = 512
	// runnerVersionFile may hold the first line of crun --version, so that crun need not be started for it.
	runnerVersionFile = "/etc/husk-runner"
)

// Hello sets the clock and the host name and tells who answers.
func (s service) Hello(ctx context.Context, r *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	if err := s.agent.setHostname(r.GetHostname()); err != nil {
		return nil, err
	}
	if _, err := s.agent.clock.set(r.GetNowUnixNanos(), true); err != nil {
		return nil, err
	}
	if err := s.agent.wakeUp(r); err != nil {
		return nil, err
	}
	reply := &agentv1.HelloResponse{
		Version:          agentv1.Version,
		Agent:            s.agent.config.Version,
		Kernel:           sys.KernelRelease(),
		Runner:           s.agent.runnerVersion(ctx),
		AgentRssKib:      proc.ResidentKiB(),
		BootMicroseconds: uint64(sys.Uptime().Microseconds()),
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		reply.MemoryTotalKib, reply.MemoryUsedKib = proc.MemInfo(text)
	}
	return reply, nil
}

// wakeUp makes the guest differ from the one that it may be a copy of, and lets it find what that one did
// not have.
func (a *Agent) wakeUp(r *agentv1.HelloRequest) error {
	if !a.config.Machine {
		return nil
	}
	if len(r.GetEntropy()) > maxEntropy {
		return fail(codes.InvalidArgument, "%d bytes of entropy: at most %d", len(r.GetEntropy()), maxEntropy)
	}
	if err := sys.Reseed(r.GetEntropy()); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if int(r.GetDisks()) > len(a.released) {
		return fail(codes.InvalidArgument, "%d disks: the guest was saved with %d", r.GetDisks(), len(a.released))
	}
	for range r.GetDisks() {
		if err := sys.BindDisk(a.released[0]); err != nil {
			return err
		}
		a.released = a.released[1:]
	}
	if !r.GetRescan() {
		return nil
	}
	before, err := sys.MemoryTotal()
	if err != nil {
		return err
	}
	if err := sys.RescanPCI(); err != nil {
		return err
	}
	return awaitMemory(before, uint64(r.GetMoreMemoryMib())<<20)
}

// awaitMemory waits until the kernel has found more bytes of memory than before: it takes them up beside
// everything else.
func awaitMemory(before, more uint64) error {
	// Some of the last block stays out where a part of it is all that is wanted.
	want := before + more - more/16
	for end := time.Now().Add(memoryWait); more > 0; time.Sleep(time.Millisecond) {
		now, err := sys.MemoryTotal()
		if err != nil {
			return err
		}
		if now >= want {
			break
		}
		if time.Now().After(end) {
			return fail(codes.DeadlineExceeded, "of %d KiB of further memory %d came within %v", more>>10, (now-before)>>10, memoryWait)
		}
	}
	return nil
}

// Rest gets the guest ready to be saved: what the copies of it will not have in common is let go of.
func (s service) Rest(context.Context, *agentv1.Empty) (*agentv1.Empty, error) {
	if !s.agent.config.Machine {
		return nil, fail(codes.FailedPrecondition, "this agent has no machine of its own")
	}
	s.agent.mu.Lock()
	defer s.agent.mu.Unlock()
	if len(s.agent.order) > 0 || s.agent.released != nil {
		return nil, fail(codes.FailedPrecondition, "the guest has containers, or rests already")
	}
	released, err := sys.ReleaseDisks()
	if err != nil {
		return nil, err
	}
	s.agent.released = released
	if err := s.agent.network.Rest(); err != nil {
		return nil, err
	}
	close(s.agent.resting)
	return empty, nil
}

// Resting is closed when the guest was told to get ready to be saved.
func (a *Agent) Resting() <-chan struct{} { return a.resting }

// Ping keeps the clock in step.
func (s service) Ping(_ context.Context, r *agentv1.PingRequest) (*agentv1.PingResponse, error) {
	offset, err := s.agent.clock.set(r.GetNowUnixNanos(), false)
	if err != nil {
		return nil, err
	}
	return &agentv1.PingResponse{OffsetNanoseconds: int64(offset)}, nil
}

func (a *Agent) setHostname(name string) error {
	if name == "" || !a.config.Machine {
		return nil
	}
	if len(name) > maxHostname || strings.ContainsAny(name, "\x00\n/") {
		return fail(codes.InvalidArgument, "invalid host name %q", name)
	}
	if err := syscall.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return nil
}

// runnerVersion is what crun says of itself, asked once.
func (a *Agent) runnerVersion(ctx context.Context) string {
	a.version.Do(func() {
		if text, err := os.ReadFile(runnerVersionFile); err == nil && a.config.Machine {
			line, _, _ := strings.Cut(string(text), "\n")
			a.versionText = line
			return
		}
		text, err := a.runner.Version(ctx)
		if err != nil {
			a.log.Warn("the runner does not tell its version", "error", err)
			text = "unknown"
		}
		a.versionText = text
	})
	return a.versionText
}

// bootTime is when the kernel started, by the clock as it is now.
func bootTime() time.Time { return time.Now().Add(-sys.Uptime()) }

// BuildVersion names the build of the running program where it was not given one.
func BuildVersion(given string) string {
	if given != "" {
		return given
	}
	return "unknown " + runtime.Version()
}
