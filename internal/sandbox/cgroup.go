package sandbox

import (
	"os"

	"husk.dev/husk/internal/hostcgroup"
	"husk.dev/husk/internal/ocispec"
)

// joinCgroup puts this process, with all that it starts from now on, and the process that stands for the container
// into the control group that the configuration names. Where that cannot be done the container runs
// without, as it does for paths that go to systemd: no limit of the container's depends on it.
func (s *Sandbox) joinCgroup(c *container, plan *ocispec.Plan, r CreateRequest) error {
	if !hostcgroup.Usable(plan.CgroupsPath) {
		return nil
	}
	defer s.timing.begin("join cgroup")()
	c.mu.Lock()
	c.record.Cgroup = plan.CgroupsPath // before there is anything to remove
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	var others []int
	if r.HostPID > 0 && r.HostPID != os.Getppid() { // run in the foreground is its own caller's
		others = append(others, r.HostPID)
	}
	group, err := hostcgroup.Join(plan.CgroupsPath, others...)
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
