package sandbox

import (
	"context"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/hostcgroup"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/sys"
)

// joinCgroup puts this process, with all that it starts from now on, and the process that stands for the container
// into the control group that the configuration names. Where that cannot be done the container runs
// without: no limit of the container's depends on it.
func (s *Sandbox) joinCgroup(ctx context.Context, c *container, plan *ocispec.Plan, r CreateRequest) error {
	if !hostcgroup.Usable(plan.CgroupsPath) {
		return nil
	}
	defer s.timing.begin(ctx, "join cgroup")()
	c.mu.Lock()
	c.record.Cgroup = plan.CgroupsPath // before there is anything to remove
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	group, err := hostcgroup.Join(plan.CgroupsPath, toMove(r.HostPID)...)
	if err != nil {
		s.log.Warn("the processes of the sandbox stay in the caller's control group", "error", err)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cgroup = group
	s.undo.Add(group.Leave)
	return nil
}

// toMove is the process that stands for a container, where it is to join the group that this process joins.
func toMove(hostPID int) []int {
	switch {
	case hostPID <= 0, hostPID == os.Getppid(): // run in the foreground is its own caller's
		return nil
	case sys.IsOwnThread(hostPID): // which is where all of this process is, and systemd takes no threads
		return nil
	}
	return []int{hostPID}
}

// hostLimits are the limits of the first container that are the VM's too. Those of a pod's sandbox are of a process
// that only waits; the pod's own are in its annotations, and in the control group above.
func hostLimits(plan *ocispec.Plan) *specs.LinuxResources {
	if !ocispec.IsSandbox(plan.Spec) {
		return plan.Resources
	}
	limits := ocispec.SandboxResources(plan.Spec)
	limits.Pids = nil
	if limits.CPU != nil {
		cpu := *limits.CPU
		cpu.Shares = nil
		limits.CPU = &cpu
	}
	return limits
}

// roomyPIDs is from where on a limit of the container's processes leaves room for the host's processes and threads:
// of QEMU and virtiofsd some 130 at most, and those of husk.
const roomyPIDs = 512

// limitCgroup sets the limits on the host that mean something there: how the container's VM shares the processors
// with the rest of the host, and on which of them it runs. Memory is the VM's size. The container's processes are counted
// in the guest; the limit of them holds on the host too where it leaves room for what runs there.
func (s *Sandbox) limitCgroup(r *specs.LinuxResources) error {
	s.mu.Lock()
	group := s.cgroup
	s.mu.Unlock()
	if group == nil || r == nil {
		return nil
	}
	var l hostcgroup.Limits
	if c := r.CPU; c != nil {
		l.Shares, l.Quota, l.Period = deref(c.Shares), deref(c.Quota), deref(c.Period)
		l.CPUs, l.Mems = c.Cpus, c.Mems
	}
	if r.Pids != nil {
		l.PIDs = deref(r.Pids.Limit)
		if l.PIDs < roomyPIDs {
			l.PIDs = -1
		}
	}
	return group.Limit(l)
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
