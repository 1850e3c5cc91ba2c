package sandbox

import (
	"context"
	"errors"
	"fmt"

	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/vmm"
)

// fitMemory makes the VM as large as the memory limits of its containers together, where that of c makes them more
// than it has. An error says how much there is in its place.
func (s *Sandbox) fitMemory(c *container, plan *ocispec.Plan) error {
	limit := memoryLimit(plan)
	if limit == 0 {
		return nil
	}
	c.mu.Lock()
	c.limitMiB = limit
	c.mu.Unlock()
	s.pod.growing.Lock() // also keeps two from taking the same memory for theirs
	defer s.pod.growing.Unlock()
	s.mu.Lock()
	vm, have := s.vm, s.pod.size.MemoryMiB+s.pod.grown
	s.mu.Unlock()
	want := s.config.OverheadMiB
	for _, other := range s.all() {
		other.mu.Lock()
		want += other.limitMiB
		other.mu.Unlock()
	}
	if want <= have {
		return nil
	}
	err := errors.New("the monitor cannot add any")
	if total, unknown := sys.MemoryTotal(); unknown == nil && int64(want) > int64(total>>20) {
		err = fmt.Errorf("the host has %d MiB", total>>20)
	} else if grower, ok := vm.(vmm.MemoryGrower); ok {
		err = bounded(func(ctx context.Context) error { return grower.GrowMemory(ctx, want-have) })
	}
	if err != nil {
		return fmt.Errorf("the memory limits of the containers need a virtual machine of %d MiB, but it has %d MiB: %w", want, have, err)
	}
	s.pod.grown += want - have
	s.log.Info("memory added", "mib", want-have, "container", c.id)
	return nil
}

// memoryLimit is the memory limit of a container in MiB, 0 for none.
func memoryLimit(plan *ocispec.Plan) int {
	r := plan.Spec.Linux.Resources
	if r == nil || r.Memory == nil || r.Memory.Limit == nil || *r.Memory.Limit <= 0 {
		return 0
	}
	return int((*r.Memory.Limit-1)>>20) + 1
}
