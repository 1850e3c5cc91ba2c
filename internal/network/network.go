// Package network takes the interfaces of a network namespace over for a VM: each gets a tap beside it, and
// the kernel hands every packet from one to the other.
//
// Packets are taken where they come in, before the namespace's own network stack, so that the guest alone
// answers for the interface's addresses. The interface itself keeps its addresses and routes: they are what
// the guest is told to have, and what drivers such as ipvlan sort packets by. The tap belongs to whoever holds
// its files and goes with them; a filter that is left on an interface has no target then, by which Clean
// tells it from that of a VM that runs.
package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/sys/rtnl"
	"husk.dev/husk/internal/vmm"
)

const (
	// tapPrefix begins the name of every tap, which goes on with the number of its interface.
	tapPrefix = "husk-"
	// priority of our filters among those of an interface: behind what somebody set to police packets.
	priority = 0x6875
	// cookie begins the mark of our filters, which goes on with what else was changed of the interface: that it
	// takes all multicast, and that it has a queue, which the kernel gives it with a qdisc, and that its rate is limited.
	cookie    = "husk:"
	multicast = "m"
	queue     = "q"
	limited   = "t"
	// limitHandle names our limits among qdiscs.
	limitHandle = priority << 16
	// maxInterfaces is what the guest takes of them.
	maxInterfaces = 64
)

// ErrHost is matched by the refusal of the host's own network.
var ErrHost = errors.New("a virtual machine cannot have the host's network")

// Network is a namespace whose interfaces a VM has.
type Network struct {
	// NICs are the VM's network cards. Whoever starts the VM takes over their files.
	NICs []vmm.NIC
	// Guest is what the guest is to be told.
	Guest *agentv1.SetNetworkRequest

	options Options
	space   *os.File    // the namespace
	watch   *rtnl.Watch // hears of what changes from before the first look on

	mu    sync.Mutex
	conn  *rtnl.Conn    // to the namespace, which it keeps in being; guarded by mu
	cards []*card       // guarded by mu
	aside *os.File      // a namespace for taps that a monitor keeps; guarded by mu
	undo  cleanup.Stack // guarded by mu
}

// card is an interface that the VM has.
type card struct {
	index  int              // of the interface
	tap    int              // number of the tap beside it
	mtu    int              // of both
	own    net.HardwareAddr // of the interface, when it got the card
	device net.HardwareAddr // that the card is plugged with
	undo   cleanup.Stack
}

// Options say how a VM has a network.
type Options struct {
	Queues int // of each card
	// Ingress and Egress are the most that each interface brings to the guest and takes from it, in bits a second; 0 is
	// without bound.
	Ingress, Egress int64
	// Saved says that the VM continues a saved one with a card, which the first interface gets.
	Saved bool
}

// Attach takes over the interfaces of the namespace at path. After an error nothing is changed.
func Attach(path string, o Options) (*Network, error) {
	for _, own := range []string{"/proc/self/ns/net", "/proc/1/ns/net"} {
		same, err := sys.SameNetwork(path, own)
		if same {
			return nil, fmt.Errorf("network namespace %s: %w", path, ErrHost)
		}
		if err != nil && own == "/proc/self/ns/net" { // not everybody may look at process 1
			return nil, err
		}
	}
	n := &Network{options: o}
	err := sys.InNetwork(path, n.attach)
	if errors.Is(err, syscall.EPERM) {
		err = fmt.Errorf("%w (husk needs CAP_SYS_ADMIN, and CAP_NET_ADMIN over that namespace)", err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over network namespace %s: %w", path, err), n.Close())
	}
	return n, nil
}

// HasCards tells whether the network namespace at path has interfaces that a VM would have network cards for, false where
// it cannot be looked at. It is a guess of what Attach will find.
func HasCards(path string) bool {
	found := false
	err := inSpace(path, func(conn *rtnl.Conn) error {
		links, err := conn.Links()
		found = slices.ContainsFunc(links, func(l rtnl.Link) bool {
			return !l.Loopback() && l.Hardware == rtnl.Ethernet && !isTap(l)
		})
		return err
	})
	return err == nil && found
}

// Unconnected opens a tap of so many queues that nothing is connected to, in a network namespace that is gone once all
// of them are closed, and as many of the kernel's back ends, or none where the host has none. See vmm.NIC.
func Unconnected(queues int) (taps, vhosts []*os.File, err error) {
	err = sys.InNewNetwork(func() error {
		if taps, err = sys.OpenTap(tapPrefix+"0", queues); err != nil {
			return err
		}
		if vhosts, err = openVhosts(queues); err != nil {
			closeAll(taps)
		}
		return err
	})
	return taps, vhosts, err
}

// attach runs on a thread in the namespace.
func (n *Network) attach() (err error) {
	if n.conn, err = rtnl.Open(); err != nil {
		return err
	}
	n.undo.Add(n.conn.Close)
	if n.space, err = sys.ThisNetwork(); err != nil {
		return err
	}
	n.undo.Add(n.space.Close)
	if n.watch, err = rtnl.OpenWatch(); err != nil {
		return err
	}
	n.undo.Add(func() error { n.watch.Close(); return nil }) // closed already where Follow was stopped
	if _, err := clean(n.conn); err != nil {
		return err
	}
	chosen, list, err := n.look()
	if err != nil {
		return err
	}
	for _, l := range chosen {
		if l.Loopback() {
			continue
		}
		card, err := n.bridge(l)
		if err != nil {
			return fmt.Errorf("interface %s: %w", l.Name, err)
		}
		n.NICs = append(n.NICs, card)
	}
	n.Guest = request(chosen, n.device, list)
	n.Guest.Sysctls = unusual(chosen, nil)
	n.options.Saved = false // what is plugged in later is another card
	return nil
}

// look returns what there is for the guest now. What it cannot have is an error beside it.
func (n *Network) look() ([]rtnl.Link, lists, error) {
	links, err := n.conn.Links()
	if err != nil {
		return nil, lists{}, err
	}
	list, err := collect(n.conn)
	if err != nil {
		return nil, lists{}, err
	}
	chosen, refused := choose(links, list, func(index int) bool {
		return slices.ContainsFunc(n.cards, func(c *card) bool { return c.tap == index })
	})
	return chosen, list, refused
}

// bridge makes a tap for an interface and has the kernel hand packets over, both ways. It runs on a thread in the
// namespace. After an error nothing is changed.
func (n *Network) bridge(l rtnl.Link) (_ vmm.NIC, err error) {
	c := &card{index: l.Index, mtu: l.MTU, own: l.MAC, device: n.freeMAC(l.MAC)}
	nic := vmm.NIC{Name: l.Name, MAC: c.device, MTU: vmm.MaxMTU} // what it is now may change
	if usable(l.MAC) && bytes.Equal(c.device, vmm.SavedMAC) {
		nic.Reset = l.MAC
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.undo.Clean())
		}
	}()
	name := fmt.Sprintf("%s%d", tapPrefix, l.Index)
	if nic.Taps, err = sys.OpenTap(name, n.options.Queues); err != nil {
		return nic, err
	}
	c.undo.Add(func() error { closeAll(nic.Taps); return nil })
	if nic.Vhosts, err = openVhosts(n.options.Queues); err != nil {
		return nic, err
	}
	c.undo.Add(func() error { closeAll(nic.Vhosts); return nil })
	if c.tap, err = n.find(name); err != nil {
		return nic, err
	}
	if err := n.prepareTap(c.tap, l); err != nil {
		return nic, fmt.Errorf("set up its tap: %w", err)
	}
	if err := n.conn.AddIngress(c.tap); err != nil {
		return nic, fmt.Errorf("add ingress qdisc to its tap: %w", err)
	}
	if err := n.conn.Redirect(c.tap, l.Index, priority, cookie); err != nil {
		return nic, fmt.Errorf("redirect its tap's packets: %w", err)
	}
	if err := n.steal(c, l); err != nil {
		return nic, err
	}
	if err := n.limit(c, l); err != nil {
		return nic, err
	}
	n.cards = append(n.cards, c)
	return nic, nil
}

// prepareTap turns the tap on. The namespace's own stack is to say nothing on it: what it said would reach
// the guest.
func (n *Network) prepareTap(tap int, l rtnl.Link) error {
	if err := n.conn.SetLinkLocal(tap, false); err != nil && !errors.Is(err, syscall.EAFNOSUPPORT) {
		return err
	}
	return n.conn.SetLink(tap, rtnl.Change{
		Alias: "husk: the virtual machine's end of " + l.Name, MTU: l.MTU, Set: syscall.IFF_UP | syscall.IFF_NOARP,
	})
}

// steal has what comes in from the interface go to the tap.
func (n *Network) steal(c *card, l rtnl.Link) error {
	switch err := n.conn.AddIngress(l.Index); {
	case errors.Is(err, syscall.EEXIST): // somebody else's, which stays
	case err != nil:
		return fmt.Errorf("add ingress qdisc: %w", err)
	default:
		c.undo.Add(func() error { return unlessGone(n.conn.DeleteIngress(l.Index)) })
	}
	mark := cookie
	if filtersMulticast(l) {
		mark += multicast
	}
	if l.Queue == 0 {
		mark += queue
	}
	if n.options.Egress > 0 {
		mark += limited
	}
	c.undo.Add(func() error { return unlessGone(restore(n.conn, l.Index, mark)) })
	if err := n.conn.Redirect(l.Index, c.tap, priority, mark); err != nil {
		return fmt.Errorf("redirect its packets: %w", err)
	}
	c.undo.Add(func() error { return unlessGone(n.conn.DeleteFilters(l.Index, priority)) })
	if filtersMulticast(l) { // last, so that the filter's mark tells of it
		if err := n.conn.SetLink(l.Index, rtnl.Change{Set: syscall.IFF_ALLMULTI}); err != nil {
			return fmt.Errorf("take all multicast: %w", err)
		}
	}
	return nil
}

// limit bounds the rates of an interface: what goes to the guest waits at the tap, and what comes from it at the
// interface itself, where the mark of its filter tells of it.
func (n *Network) limit(c *card, l rtnl.Link) error {
	for _, way := range []struct {
		name  string
		index int
		bits  int64
	}{{"ingress", c.tap, n.options.Ingress}, {"egress", l.Index, n.options.Egress}} {
		if way.bits == 0 {
			continue
		}
		const leastBurst, mostBurst, burstTime, waitTime = 128 << 10, 16 << 20, 20, 200 // bytes, bytes, ms, ms
		rate := uint64(way.bits) / 8
		burst := min(max(rate*burstTime/1000, leastBurst), mostBurst)
		err := n.conn.Limit(way.index, limitHandle, rate, uint32(burst), uint32(min(burst+rate*waitTime/1000, 1<<31)))
		if errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("limit its %s: it has a queueing discipline of its own", way.name)
		}
		if err != nil {
			return fmt.Errorf("limit its %s (by the kernel's tbf): %w", way.name, err)
		}
	}
	return nil
}

// restore takes back what the mark of a filter says of its interface.
func restore(conn *rtnl.Conn, index int, mark string) error {
	mark = strings.TrimPrefix(mark, cookie)
	if strings.Contains(mark, limited) {
		if err := conn.Unlimit(index, limitHandle); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) { // not there yet
			return err
		}
	}
	change := rtnl.Change{NoQueue: strings.Contains(mark, queue)}
	if strings.Contains(mark, multicast) {
		change.Clear = syscall.IFF_ALLMULTI
	}
	return conn.SetLink(index, change)
}

// filtersMulticast tells whether the interface has to be asked for all multicast: the guest joins groups that
// the namespace's stack knows nothing of.
func filtersMulticast(l rtnl.Link) bool {
	return l.Kind != "veth" && l.Kind != "tun" && l.Flags&syscall.IFF_ALLMULTI == 0
}

// find returns the number of an interface.
func (n *Network) find(name string) (int, error) {
	links, err := n.conn.Links()
	if err != nil {
		return 0, err
	}
	for _, l := range links {
		if l.Name == name {
			return l.Index, nil
		}
	}
	return 0, fmt.Errorf("interface %s is gone", name)
}

// Close gives the interfaces back. The VM must have ended, or not have been started.
func (n *Network) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, c := range n.cards {
		errs = append(errs, c.undo.Clean())
	}
	if err := errors.Join(append(errs, n.undo.Clean())...); err != nil {
		return fmt.Errorf("give interfaces back: %w", err)
	}
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close() // closed already where a VM has them
	}
}

// unlessGone drops the error of undoing what went with its interface.
func unlessGone(err error) error {
	if errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// openVhosts opens the kernel's own virtio-net back end, once a queue; none where the host has none.
func openVhosts(queues int) ([]*os.File, error) {
	var files []*os.File
	for range queues {
		f, err := os.OpenFile(vmm.VhostNet, os.O_RDWR, 0)
		if err != nil {
			closeAll(files)
			for _, none := range []error{os.ErrNotExist, os.ErrPermission, syscall.ENODEV, syscall.ENXIO} {
				if errors.Is(err, none) {
					return nil, nil
				}
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// device is the MAC address that the card of an interface was plugged with.
func (n *Network) device(index int) net.HardwareAddr {
	for _, c := range n.cards {
		if c.index == index {
			return c.device
		}
	}
	return nil
}

// freeMAC is the address that a card is plugged with, by which the guest finds it: the interface's own, unless
// another card has it, as those of one ipvlan do.
func (n *Network) freeMAC(own net.HardwareAddr) net.HardwareAddr {
	taken := func(mac net.HardwareAddr) bool {
		return slices.ContainsFunc(n.cards, func(c *card) bool { return string(c.device) == string(mac) || string(c.own) == string(mac) })
	}
	if n.options.Saved && len(n.cards) == 0 {
		return vmm.SavedMAC
	}
	if usable(own) && !taken(own) {
		return own
	}
	for i := 0; ; i++ {
		if mac := (net.HardwareAddr{0x06, 'h', 'u', 's', 'k', byte(i)}); !taken(mac) || i > maxInterfaces { // locally administered
			return mac
		}
	}
}

// usable tells whether a card can have the address: neither a group's nor none.
func usable(mac net.HardwareAddr) bool {
	return len(mac) == 6 && mac[0]&1 == 0 && strings.Trim(string(mac), "\x00") != ""
}
