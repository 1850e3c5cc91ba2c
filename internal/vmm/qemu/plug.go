package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"husk.dev/husk/internal/vmm"
)

// unplugWait is how long a guest may take to let go of a card. Linux does in some 100 ms.
const unplugWait = 5 * time.Second

// cards are the network cards of a VM, as it runs.
type cards struct {
	mu    sync.Mutex
	ports []string             // guarded by mu: what is in each port, empty for nothing; nil on a machine without
	all   map[string]card      // guarded by mu: by MAC address
	next  int                  // guarded by mu: number of the next card
	disks map[string]diskPlace // guarded by mu: by serial; those that were plugged in have a port
	sets  int                  // guarded by mu: number of the next disk's set of descriptors
}

// card is how QEMU knows a network card.
type card struct {
	number int
	port   int // -1: in none, for it was there from the start
}

func (c card) device() string { return fmt.Sprintf("card%d", c.number) }
func (c card) back() string   { return fmt.Sprintf("net%d", c.number) }

// begin notes what the VM starts with.
func (c *cards) begin(s vmm.Spec) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all, c.next = map[string]card{}, len(s.NICs)
	c.disks, c.sets = map[string]diskPlace{}, max(len(s.Disks), vmm.SavedDisks)
	for _, d := range s.Disks {
		c.disks[d.Serial] = diskPlace{port: -1}
	}
	if s.Machine == q35 {
		c.ports = make([]string, portCount)
	}
	if s.From != nil {
		for i, share := range s.Shares {
			c.ports[i] = share.Tag
		}
	}
	for i, nic := range s.NICs {
		c.all[nic.MAC.String()] = card{number: i, port: -1}
	}
}

// take finds a place for a card.
func (c *cards) take(nic vmm.NIC) (card, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.all[nic.MAC.String()]; taken {
		return card{}, fmt.Errorf("MAC address %s is taken by another card", nic.MAC)
	}
	port, err := c.port("a network card")
	if err != nil {
		return card{}, err
	}
	one := card{number: c.next, port: port}
	c.next++
	c.ports[port], c.all[nic.MAC.String()] = one.device(), one
	return one, nil
}

// free forgets a card; its port is free again unless the device is still in it.
func (c *cards) free(mac string, gone bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if one, ok := c.all[mac]; ok {
		delete(c.all, mac)
		if one.port >= 0 && gone {
			c.ports[one.port] = ""
		}
	}
}

// PlugNIC plugs a network card in. See vmm.NICPlugger.
func (m *machine) PlugNIC(ctx context.Context, nic vmm.NIC) error {
	defer vmm.CloseNICs([]vmm.NIC{nic}) // QEMU has its own by then
	if err := nic.Check(); err != nil {
		return fmt.Errorf("plug network card %s: %w", nic.Name, err)
	}
	if nic.Stream != nil {
		return &vmm.UnsupportedError{Driver: name, What: "plugging a network card with a socket"}
	}
	one, err := m.cards.take(nic)
	if err != nil {
		return fmt.Errorf("plug network card %s: %w", nic.Name, err)
	}
	if err := m.plug(ctx, nic, one); err != nil {
		m.cards.free(nic.MAC.String(), true)
		return fmt.Errorf("plug network card %s: %w", nic.Name, err)
	}
	return nil
}

func (m *machine) plug(ctx context.Context, nic vmm.NIC, one card) (err error) {
	back := map[string]any{"type": "tap", "id": one.back()}
	for _, files := range []struct {
		key  string
		list []*os.File
	}{{"fd", nic.Taps}, {"vhostfd", nic.Vhosts}} {
		names := ""
		for i, f := range files.list {
			lent := fmt.Sprintf("%s-%s%d", one.back(), files.key, i)
			if err := m.qmp.executeWith(ctx, f, "getfd", map[string]string{"fdname": lent}, nil); err != nil {
				return err
			}
			defer func() {
				if err != nil { // what netdev_add took is gone from the list, and what it did not take is closed
					_ = m.qmp.execute(ctx, "closefd", map[string]string{"fdname": lent}, nil)
				}
			}()
			names += ":" + lent
		}
		switch len(files.list) {
		case 0:
		case 1:
			back[files.key] = names[1:]
		default:
			back[files.key+"s"] = names[1:]
		}
	}
	if len(nic.Vhosts) > 0 {
		back["vhost"] = true
	}
	if err := m.qmp.execute(ctx, "netdev_add", back, nil); err != nil {
		return err
	}
	err = m.qmp.execute(ctx, "device_add", nicPlug(nic, one), nil)
	if err != nil {
		err = errors.Join(err, m.qmp.execute(ctx, "netdev_del", map[string]string{"id": one.back()}, nil))
	}
	return err
}

// nicPlug is builder.nic as QMP's device_add has it.
func nicPlug(nic vmm.NIC, one card) map[string]any {
	return map[string]any{
		"driver": "virtio-net-pci-non-transitional", "id": one.device(), "bus": fmt.Sprintf("port%d", one.port),
		"netdev": one.back(), "mac": nic.MAC.String(), "status": false, "host_mtu": nic.MTU,
		"rx_queue_size": queueSize, "tx_queue_size": queueSize, "mq": len(nic.Taps) > 1,
		"vectors": vectors(len(nic.Taps)), "romfile": "",
	}
}

// UnplugNIC takes a network card out. See vmm.NICPlugger.
func (m *machine) UnplugNIC(ctx context.Context, mac net.HardwareAddr) error {
	m.cards.mu.Lock()
	one, ok := m.cards.all[mac.String()]
	m.cards.mu.Unlock()
	if !ok {
		return fmt.Errorf("unplug network card %s: there is none", mac)
	}
	err := m.takeOut(ctx, one)
	// The tap is the namespace's to have back, whatever the guest does with its card.
	if lost := m.qmp.execute(ctx, "netdev_del", map[string]string{"id": one.back()}, nil); lost != nil {
		return fmt.Errorf("unplug network card %s: %w", mac, errors.Join(err, lost))
	}
	m.cards.free(mac.String(), err == nil)
	if err != nil {
		return fmt.Errorf("unplug network card %s: %w", mac, err)
	}
	return nil
}

// takeOut asks the guest to let go of a card and waits until it has.
func (m *machine) takeOut(ctx context.Context, one card) error {
	if one.port < 0 { // what is not in a port stays, as a card with nothing behind it
		return nil
	}
	gone, forget := m.qmp.left(one.device())
	defer forget()
	if err := m.qmp.execute(ctx, "device_del", map[string]string{"id": one.device()}, nil); err != nil {
		return err
	}
	select {
	case <-gone:
		return nil
	case <-m.done:
		return errors.New("the virtual machine is gone")
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(unplugWait):
		return fmt.Errorf("the guest has not let go of it within %v", unplugWait)
	}
}
