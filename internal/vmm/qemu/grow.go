package qemu

import (
	"context"
	"errors"
	"fmt"

	"husk.dev/husk/internal/vmm"
)

// GrowMemory adds RAM to a running VM. See vmm.MemoryGrower.
func (m *machine) GrowMemory(ctx context.Context, mib int) error {
	port, err := m.cards.reserve("memory")
	if err != nil {
		return fmt.Errorf("add %d MiB of memory: %w", mib, err)
	}
	if err := m.grow(ctx, roundUp(mib, memoryBlock), port); err != nil {
		m.cards.giveBack(port)
		return fmt.Errorf("add %d MiB of memory: %w", mib, err)
	}
	return nil
}

func (m *machine) grow(ctx context.Context, mib, port int) error {
	back := fmt.Sprintf("more%d", port)
	object := map[string]any{"qom-type": "memory-backend-memfd", "id": back, "size": int64(mib) << 20, "share": true}
	if err := m.qmp.execute(ctx, "object-add", object, nil); err != nil {
		return err
	}
	device := map[string]any{
		"driver": "virtio-mem-pci", "id": fmt.Sprintf("memory%d", port), "bus": fmt.Sprintf("port%d", port),
		"memdev": back, "requested-size": int64(mib) << 20,
	}
	err := m.qmp.execute(ctx, "device_add", device, nil)
	if err != nil {
		err = errors.Join(err, m.qmp.execute(ctx, "object-del", map[string]string{"id": back}, nil))
	}
	return err
}

// reserve takes a port for a device that stays until the VM ends.
func (c *cards) reserve(what string) (port int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.port(what)
}

// port finds a free port for what is to be plugged in and notes it there. Preconditions: mu is held.
func (c *cards) port(what string) (int, error) {
	if c.ports == nil {
		return 0, &vmm.UnsupportedError{Driver: name, What: "plugging " + what + " into machine " + microvm, Needs: "machine q35"}
	}
	for i, in := range c.ports {
		if in == "" {
			c.ports[i] = what
			return i, nil
		}
	}
	return 0, &vmm.UnsupportedError{Driver: name, What: fmt.Sprintf("more than %d devices that are plugged in", portCount)}
}

// giveBack frees a port that nothing was plugged into.
func (c *cards) giveBack(port int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ports[port] = ""
}
