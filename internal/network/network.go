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
	// takes all multicast, and that it has a queue, which the kernel gives it with a qdisc.
	cookie    = "husk:"
	multicast = "m"
	queue     = "q"
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

	mu   sync.Mutex
	conn *rtnl.Conn    // to the namespace, which it keeps in being; guarded by mu
	undo cleanup.Stack // guarded by mu
}

// Attach takes over the interfaces of the namespace at path. Each card gets as many queues as are asked
// for. After an error nothing is changed.
func Attach(path string, queues int) (*Network, error) {
	for _, own := range []string{"/proc/self/ns/net", "/proc/1/ns/net"} {
		same, err := sys.SameNetwork(path, own)
		if same {
			return nil, fmt.Errorf("network namespace %s: %w", path, ErrHost)
		}
		if err != nil && own == "/proc/self/ns/net" { // not everybody may look at process 1
			return nil, err
		}
	}
	n := &Network{}
	err := sys.InNetwork(path, func() error { return n.attach(queues) })
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over network namespace %s: %w", path, err), n.Close())
	}
	return n, nil
}

// attach runs on a thread in the namespace.
func (n *Network) attach(queues int) (err error) {
	if n.conn, err = rtnl.Open(); err != nil {
		return err
	}
	n.undo.Add(n.conn.Close)
	if _, err := clean(n.conn); err != nil {
		return err
	}
	links, err := n.conn.Links()
	if err != nil {
		return err
	}
	list, err := collect(n.conn)
	if err != nil {
		return err
	}
	chosen, err := choose(links, list)
	if err != nil {
		return err
	}
	for i, l := range chosen {
		if l.Loopback() {
			continue
		}
		card, err := n.bridge(l, queues)
		if err != nil {
			return fmt.Errorf("interface %s: %w", l.Name, err)
		}
		card.MAC = deviceMAC(chosen, i)
		n.NICs = append(n.NICs, card)
	}
	n.Guest = request(chosen, list)
	return nil
}

// bridge makes a tap for an interface and has the kernel hand packets over, both ways.
func (n *Network) bridge(l rtnl.Link, queues int) (vmm.NIC, error) {
	card := vmm.NIC{Name: l.Name, MTU: l.MTU}
	name := fmt.Sprintf("%s%d", tapPrefix, l.Index)
	var err error
	if card.Taps, err = sys.OpenTap(name, queues); err != nil {
		return card, err
	}
	n.undo.Add(func() error { closeAll(card.Taps); return nil })
	if card.Vhosts, err = openVhosts(queues); err != nil {
		return card, err
	}
	n.undo.Add(func() error { closeAll(card.Vhosts); return nil })
	tap, err := n.find(name)
	if err != nil {
		return card, err
	}
	if err := n.prepareTap(tap, l); err != nil {
		return card, fmt.Errorf("set up its tap: %w", err)
	}
	if err := n.conn.AddIngress(tap); err != nil {
		return card, fmt.Errorf("add ingress qdisc to its tap: %w", err)
	}
	if err := n.conn.Redirect(tap, l.Index, priority, cookie); err != nil {
		return card, fmt.Errorf("redirect its tap's packets: %w", err)
	}
	return card, n.steal(l, tap)
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
func (n *Network) steal(l rtnl.Link, tap int) error {
	switch err := n.conn.AddIngress(l.Index); {
	case errors.Is(err, syscall.EEXIST): // somebody else's, which stays
	case err != nil:
		return fmt.Errorf("add ingress qdisc: %w", err)
	default:
		n.undo.Add(func() error { return unlessGone(n.conn.DeleteIngress(l.Index)) })
	}
	mark := cookie
	if filtersMulticast(l) {
		mark += multicast
	}
	if l.Queue == 0 {
		mark += queue
	}
	n.undo.Add(func() error { return unlessGone(restore(n.conn, l.Index, mark)) })
	if err := n.conn.Redirect(l.Index, tap, priority, mark); err != nil {
		return fmt.Errorf("redirect its packets: %w", err)
	}
	n.undo.Add(func() error { return unlessGone(n.conn.DeleteFilters(l.Index, priority)) })
	if filtersMulticast(l) { // last, so that the filter's mark tells of it
		if err := n.conn.SetLink(l.Index, rtnl.Change{Set: syscall.IFF_ALLMULTI}); err != nil {
			return fmt.Errorf("take all multicast: %w", err)
		}
	}
	return nil
}

// restore takes back what the mark of a filter says of its interface.
func restore(conn *rtnl.Conn, index int, mark string) error {
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
	if err := n.undo.Clean(); err != nil {
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
		f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)
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

// deviceMAC is the address that a card is plugged with, by which the guest finds it: the interface's own,
// unless another has the same, as those of one ipvlan have.
func deviceMAC(chosen []rtnl.Link, i int) net.HardwareAddr {
	own := chosen[i].MAC
	twin := slices.IndexFunc(chosen, func(l rtnl.Link) bool { return string(l.MAC) == string(own) })
	if usable(own) && twin == i {
		return own
	}
	return net.HardwareAddr{0x06, 'h', 'u', 's', 'k', byte(i)} // locally administered
}

// usable tells whether a card can have the address: neither a group's nor none.
func usable(mac net.HardwareAddr) bool {
	return len(mac) == 6 && mac[0]&1 == 0 && strings.Trim(string(mac), "\x00") != ""
}
