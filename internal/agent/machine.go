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
	if s.agent.config.Machine {
		if err := sys.Reseed(ctx); err != nil {
			s.agent.log.Warn("the guest may share its random numbers with a copy of it", "error", err)
		}
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
