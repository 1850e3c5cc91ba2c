package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/sys/rtnl"
	"husk.dev/husk/internal/vmm"
)

const (
	// settle is how long nothing must change before the guest is told: plugins make an interface in many steps.
	settle = 25 * time.Millisecond
	// settleMost is when the guest is told although it goes on changing, and pause how long it is left alone then.
	settleMost = 400 * time.Millisecond
	pause      = 100 * time.Millisecond
	// retries is how often a change that failed is tried again by itself, each time after twice as long.
	retries    = 5
	retryFirst = time.Second
)

// VM is what Follow changes when the namespace does.
type VM interface {
	vmm.NICPlugger
	SetNetwork(ctx context.Context, r *agentv1.SetNetworkRequest) error
}

// follower has a VM follow what changes in its namespace.
type follower struct {
	*Network
	vm      VM
	log     *slog.Logger
	told    *agentv1.SetNetworkRequest // what the guest has
	barred  map[int]string             // why the VM does not get an interface
	warned  string                     // the last failure that was logged
	refused string                     // the last interface that was not taken, as it was logged
}

// Follow gives the VM interfaces that come and takes those that go, and tells its guest of changed addresses, routes
// and settings, until Unfollow is called or ctx ends. The VM runs and its guest was told Guest. What cannot be done is
// logged, and leaves the rest as it is.
func (n *Network) Follow(ctx context.Context, vm VM, log *slog.Logger) {
	f := &follower{Network: n, vm: vm, log: log, told: n.Guest, barred: map[int]string{}}
	failed := 0
	for ctx.Err() == nil {
		var until time.Time
		if failed > 0 && failed <= retries {
			until = time.Now().Add(retryFirst << (failed - 1))
		}
		changed, err := n.watch.Wait(until)
		if err != nil {
			return // it was closed
		}
		if changed {
			failed = 0
			n.awaitQuiet()
		}
		if f.follow(ctx) {
			failed = 0
		} else {
			failed++
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// Unfollow ends Follow.
func (n *Network) Unfollow() { n.watch.Close() }

// awaitQuiet waits until changes stop, for a while.
func (n *Network) awaitQuiet() {
	for end := time.Now().Add(settleMost); time.Now().Before(end); {
		if more, err := n.watch.Wait(time.Now().Add(settle)); err != nil || !more {
			return
		}
	}
}

// follow looks at the namespace and brings the VM in line. It tells whether that worked.
func (f *follower) follow(ctx context.Context) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.once(ctx)
	if ctx.Err() != nil {
		return true
	}
	if err == nil {
		f.warned = ""
		return true
	}
	if err.Error() != f.warned {
		f.warned = err.Error()
		f.log.Warn("the guest's network does not follow", "error", err)
	}
	return false
}

func (f *follower) once(ctx context.Context) error {
	chosen, list, refused := f.look()
	if chosen == nil && refused != nil { // the kernel gave no list
		return refused
	}
	if refused != nil && refused.Error() != f.refused {
		f.refused = refused.Error()
		f.log.Warn("the guest does not get an interface", "error", refused)
	}
	if err := f.drop(ctx, chosen, list); err != nil {
		return err
	}
	failed := f.add(ctx, &chosen)
	if err := f.tell(ctx, chosen, list); err != nil {
		return err
	}
	return failed
}

// drop takes away the cards whose interfaces are gone.
func (f *follower) drop(ctx context.Context, chosen []rtnl.Link, list lists) error {
	var gone []*card
	here := func(index int) bool {
		return slices.ContainsFunc(chosen, func(l rtnl.Link) bool { return l.Index == index })
	}
	for _, c := range f.cards {
		if !here(c.index) {
			gone = append(gone, c)
		}
	}
	for index := range f.barred {
		if !here(index) {
			delete(f.barred, index)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	// The guest is told first: it may have to leave routes through an interface to others.
	known := slices.DeleteFunc(slices.Clone(chosen), func(l rtnl.Link) bool { return !l.Loopback() && f.device(l.Index) == nil })
	told := f.tell(ctx, known, list)
	for _, c := range gone {
		err := f.vm.UnplugNIC(ctx, c.device)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			f.log.Warn("a network card stays in the guest", "error", err)
		}
		if err := f.putAside(c.tap); err != nil {
			f.log.Warn("a tap stays in the namespace", "error", err)
		}
		if err := c.undo.Clean(); err != nil {
			f.log.Warn("give an interface back", "error", err)
		}
		f.cards = slices.DeleteFunc(f.cards, func(other *card) bool { return other == c })
	}
	return told
}

// putAside moves a tap out of the namespace that the monitor has not let go of: QEMU since 9.2 keeps what is behind a card for as
// long as the card is there, and one that was there from the start stays. Deleted, it would have the monitor read errors without
// end. It goes with the monitor.
func (f *follower) putAside(tap int) error {
	links, err := f.conn.Links()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(links, func(l rtnl.Link) bool { return l.Index == tap && isTap(l) }) {
		return nil
	}
	if f.aside == nil {
		err := sys.InNewNetwork(func() (err error) {
			f.aside, err = sys.ThisNetwork()
			return err
		})
		if err != nil {
			return err
		}
		f.undo.Add(f.aside.Close)
	}
	return unlessGone(f.conn.SetLink(tap, rtnl.Change{Network: f.aside}))
}

// add gives the VM cards for new interfaces. Those that it cannot have are taken out of the list.
func (f *follower) add(ctx context.Context, chosen *[]rtnl.Link) (failed error) {
	*chosen = slices.DeleteFunc(*chosen, func(l rtnl.Link) bool {
		if l.Loopback() || f.device(l.Index) != nil {
			return false
		}
		if err := f.plug(ctx, l); err != nil {
			if f.barred[l.Index] != err.Error() && ctx.Err() == nil {
				f.barred[l.Index] = err.Error()
				f.log.Warn("the guest does not get an interface", "interface", l.Name, "error", err)
			}
			if !errors.Is(err, vmm.ErrNotSupported) { // that does not change by itself
				failed = fmt.Errorf("interface %s: %w", l.Name, err)
			}
			return true
		}
		return false
	})
	return failed
}

func (f *follower) plug(ctx context.Context, l rtnl.Link) error {
	var nic vmm.NIC
	err := f.inside(func() (err error) {
		nic, err = f.bridge(l)
		return err
	})
	if err != nil {
		return err
	}
	if err := f.vm.PlugNIC(ctx, nic); err != nil {
		last := f.cards[len(f.cards)-1]
		f.cards = f.cards[:len(f.cards)-1]
		if undone := last.undo.Clean(); undone != nil {
			f.log.Warn("give an interface back", "error", undone)
		}
		return err
	}
	f.log.Info("network card plugged in", "interface", l.Name, "mac", nic.MAC.String())
	return nil
}

// inside calls do on a thread in the namespace, which may have no name any more.
func (f *follower) inside(do func() error) error {
	return sys.InNetwork(fmt.Sprintf("/proc/self/fd/%d", f.space.Fd()), do)
}

// tell tells the guest of what it has, where that has changed.
func (f *follower) tell(ctx context.Context, chosen []rtnl.Link, list lists) error {
	for _, c := range f.cards {
		for _, l := range chosen {
			if l.Index != c.index || l.MTU == c.mtu {
				continue
			}
			if err := f.conn.SetLink(c.tap, rtnl.Change{MTU: l.MTU}); err != nil {
				return fmt.Errorf("set MTU of the tap of %s: %w", l.Name, err)
			}
			c.mtu = l.MTU
		}
	}
	r := request(chosen, f.device, list)
	if err := f.inside(func() error {
		r.Sysctls = unusual(chosen, f.told.GetSysctls())
		return nil
	}); err != nil {
		return err
	}
	if proto.Equal(r, f.told) {
		return nil
	}
	if err := f.vm.SetNetwork(ctx, r); err != nil {
		return err
	}
	f.told = r
	return nil
}
