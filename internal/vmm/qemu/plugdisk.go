package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"husk.dev/husk/internal/vmm"
)

const (
	// portDisks is how many disks one port takes: a device on PCI has eight functions. They come and go together.
	portDisks = 8
	// sparePorts are kept from disks, which may be shared in place of being plugged in: network cards and memory may not.
	sparePorts = 2
	// unplugDiskWait is how long a guest may take to let go of a port's disks.
	unplugDiskWait = 15 * time.Second
	// plugDiskWait is how long QEMU may take to plug disks in. The guest has no part in that.
	plugDiskWait = 30 * time.Second
)

// diskPlace is how QEMU knows a disk that was plugged in.
type diskPlace struct {
	set      int // of descriptors
	port     int // -1: in none, for it was there from the start
	function int // of the port's device; 0 is plugged last, and shows all to the guest
}

func (d diskPlace) device() string { return fmt.Sprintf("plug%d", d.set) }
func (d diskPlace) node() string   { return fmt.Sprintf("image%d", d.set) }

// PlugDisks plugs disks in. See vmm.DiskPlugger.
func (m *machine) PlugDisks(ctx context.Context, disks []vmm.Disk) error {
	places, err := m.cards.takeDisks(disks)
	if err != nil {
		return fmt.Errorf("plug disks: %w", err)
	}
	// A caller that goes away leaves nothing half done.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), plugDiskWait)
	defer cancel()
	return m.plugInto(ctx, disks, places)
}

// plugInto plugs disks into their places, the last port first. The guest sees those of a port when its function 0 has come,
// while other ports are still empty. What cannot be undone keeps its place.
func (m *machine) plugInto(ctx context.Context, disks []vmm.Disk, places []diskPlace) error {
	for i := len(disks) - 1; i >= 0; i-- {
		left, err := m.plugDisk(ctx, disks[i], places[i])
		if err == nil {
			continue
		}
		err = fmt.Errorf("plug disk %s: %w", disks[i].Serial, err)
		in := places[i+1:]
		if left {
			in = places[i:]
		}
		if undone := m.pullOut(context.WithoutCancel(ctx), in); undone != nil {
			return errors.Join(err, fmt.Errorf("%w: %w", vmm.ErrHeld, undone))
		}
		m.cards.freeDisks(disks, places)
		return err
	}
	return nil
}

// takeDisks finds places for disks.
func (c *cards) takeDisks(disks []vmm.Disk) (places []diskPlace, err error) {
	if err := vmm.CheckDisks(disks); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range disks {
		if d.Pmem {
			return nil, &vmm.UnsupportedError{Driver: name, What: "plugging virtio-pmem (disk " + d.Serial + ")"}
		}
		if _, taken := c.disks[d.Serial]; taken {
			return nil, fmt.Errorf("serial %q is taken by another disk", d.Serial)
		}
	}
	if c.ports != nil && c.empty() < (len(disks)+portDisks-1)/portDisks+sparePorts {
		return nil, &vmm.UnsupportedError{Driver: name, What: fmt.Sprintf("more disks that are plugged in: %d ports are free", c.empty())}
	}
	port := 0
	for i := range disks {
		if i%portDisks == 0 {
			if port, err = c.port("disks"); err != nil {
				return nil, err // a machine without ports
			}
		}
		places = append(places, diskPlace{set: c.sets, port: port, function: i % portDisks})
		c.sets++
	}
	for i, d := range disks {
		c.disks[d.Serial] = places[i]
	}
	return places, nil
}

// empty counts the ports that are empty. Preconditions: mu is held.
func (c *cards) empty() (n int) {
	for _, in := range c.ports {
		if in == "" {
			n++
		}
	}
	return n
}

// plugDisk plugs one disk in. After an error it tells whether something of it may be left: QEMU has not answered, and may do
// what it was asked for yet, or it did not undo what it had done.
func (m *machine) plugDisk(ctx context.Context, d vmm.Disk, at diskPlace) (left bool, err error) {
	f, info, _, err := openDisk(d)
	if err != nil {
		return false, err
	}
	defer f.Close() // QEMU has its own by then
	if err := m.qmp.executeWith(ctx, f, "add-fd", map[string]any{"fdset-id": at.set}, nil); err != nil {
		return !refused(err), err
	}
	image := rawDisk(at.node(), at.set, d.ReadOnly, info.Mode().Type() != 0)
	if err := m.qmp.execute(ctx, "blockdev-add", image, nil); err != nil {
		return m.undoDisk(ctx, at, err, false)
	}
	device := map[string]any{
		"driver": "virtio-blk-pci-non-transitional", "id": at.device(), "bus": fmt.Sprintf("port%d", at.port),
		"addr": fmt.Sprintf("0.%d", at.function), "multifunction": true,
		"drive": at.node(), "serial": d.Serial, "werror": "report",
	}
	if err := m.qmp.execute(ctx, "device_add", device, nil); err != nil {
		return m.undoDisk(ctx, at, err, true)
	}
	return false, nil
}

// undoDisk closes what is behind a disk that QEMU has refused, with err, and tells whether something may be left.
func (m *machine) undoDisk(ctx context.Context, at diskPlace, err error, node bool) (left bool, _ error) {
	if !refused(err) {
		return true, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unplugDiskWait)
	defer cancel()
	var undone error
	if node {
		undone = m.qmp.execute(ctx, "blockdev-del", map[string]string{"node-name": at.node()}, nil)
	}
	if undone == nil {
		undone = m.qmp.execute(ctx, "remove-fd", map[string]any{"fdset-id": at.set}, nil)
	}
	return undone != nil, errors.Join(err, undone)
}

// refused tells whether QEMU has answered a command that failed: all others it may have done, or do yet.
func refused(err error) bool {
	var answer *qmpError
	return errors.As(err, &answer)
}

// UnplugDisks takes disks out. See vmm.DiskPlugger.
func (m *machine) UnplugDisks(ctx context.Context, disks []vmm.Disk) error {
	places, err := m.cards.plugged(disks)
	if err == nil {
		err = m.pullOut(ctx, places)
	}
	if err != nil {
		return fmt.Errorf("unplug disks: %w", err)
	}
	m.cards.freeDisks(disks, places)
	return nil
}

// plugged finds disks that were plugged in.
func (c *cards) plugged(disks []vmm.Disk) (places []diskPlace, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range disks {
		at, ok := c.disks[d.Serial]
		if !ok || at.port < 0 {
			return nil, fmt.Errorf("disk %q is none that was plugged in", d.Serial)
		}
		places = append(places, at)
	}
	return places, nil
}

// freeDisks forgets disks, and their ports, that are empty.
func (c *cards) freeDisks(disks []vmm.Disk, places []diskPlace) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, d := range disks {
		delete(c.disks, d.Serial)
		c.ports[places[i].port] = ""
	}
}

// pullOut has the guest let go of all disks of some ports, and closes what is behind them. Where function 0 is not there
// yet the guest knows of none, and each goes by itself. A device that is not there is gone.
func (m *machine) pullOut(ctx context.Context, places []diskPlace) error {
	ctx, cancel := context.WithTimeout(ctx, unplugDiskWait)
	defer cancel()
	whole := map[int]bool{} // ports whose function 0 is going
	waits := make([]<-chan struct{}, len(places))
	for i, at := range places {
		gone, forget := m.qmp.left(at.device())
		defer forget()
		waits[i] = gone
	}
	for i, at := range places { // of each port the function 0 first, if it is among them
		if whole[at.port] {
			continue // it goes with function 0
		}
		err := m.qmp.execute(ctx, "device_del", map[string]string{"id": at.device()}, nil)
		var answer *qmpError
		switch {
		case err == nil:
			whole[at.port] = at.function == 0
		case errors.As(err, &answer) && answer.Class == "DeviceNotFound":
			gone := make(chan struct{})
			close(gone)
			waits[i] = gone
		default:
			return err
		}
	}
	for i, at := range places {
		select {
		case <-waits[i]:
		case <-m.done:
			return errors.New("the virtual machine is gone")
		case <-ctx.Done():
			return fmt.Errorf("the guest has not let go of its disks: %w", ctx.Err())
		}
		if err := m.qmp.execute(ctx, "blockdev-del", map[string]string{"node-name": at.node()}, nil); err != nil {
			return err
		}
		if err := m.qmp.execute(ctx, "remove-fd", map[string]any{"fdset-id": at.set}, nil); err != nil {
			return err
		}
	}
	return nil
}
