package network

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys/rtnl"
)

// choose returns the interfaces that the guest gets, loopback among them, and why it cannot have others. One that
// holds no addresses and that a card cannot stand for is left out: kernels put unused tunnels into every
// namespace. So are the taps that are the VM's own.
func choose(links []rtnl.Link, l lists, own func(index int) bool) (chosen []rtnl.Link, refused error) {
	var all []rtnl.Link // but our own
	for _, link := range links {
		if !own(link.Index) {
			all = append(all, link)
		}
	}
	for _, link := range all {
		err := error(nil)
		switch {
		case isTap(link):
			err = fmt.Errorf("interface %s belongs to another virtual machine: a network namespace can be in one only", link.Name)
		case link.Loopback():
		case link.Hardware == rtnl.Ethernet:
			err = alone(link, all)
		case link.Up() && l.addressed(link.Index):
			err = fmt.Errorf("interface %s (%s) has no Ethernet link layer, which a virtual machine's network cards have", link.Name, link.Kind)
		default:
			continue
		}
		if err == nil && len(chosen) == maxInterfaces {
			err = fmt.Errorf("%d interfaces: at most %d", len(all), maxInterfaces)
		}
		if err == nil {
			chosen = append(chosen, link)
		} else if refused == nil {
			refused = err
		}
	}
	return chosen, refused
}

func isTap(l rtnl.Link) bool { return l.Kind == "tun" && strings.HasPrefix(l.Name, tapPrefix) }

// alone refuses an interface that works through another one of the namespace: the packets of that one would
// be the guest's before they get to this.
func alone(link rtnl.Link, links []rtnl.Link) error {
	under := link.Lower
	if link.Kind == "veth" { // its peer
		under = 0
	}
	for _, other := range links {
		switch {
		case other.Index == link.Master:
			return fmt.Errorf("interface %s is a port of %s in the same network namespace: husk cannot bring both into the guest", link.Name, other.Name)
		case other.Index == under:
			return fmt.Errorf("interface %s is on top of %s in the same network namespace: husk cannot bring both into the guest", link.Name, other.Name)
		}
	}
	return nil
}

// lists are what a namespace has beside interfaces, as the kernel listed it.
type lists struct{ addresses, routes, neighbors, rules [][]byte }

// addressed tells whether an interface has addresses.
func (l lists) addressed(index int) bool {
	return slices.ContainsFunc(l.addresses, func(m []byte) bool {
		return rtnl.CopyAddress(m, func(i int) int {
			if i == index {
				return i
			}
			return 0
		}) != nil
	})
}

func collect(conn *rtnl.Conn) (l lists, err error) {
	for _, family := range []uint8{syscall.AF_INET, syscall.AF_INET6} {
		for _, read := range []struct {
			to    *[][]byte
			kind  int
			flags uint8
		}{
			{&l.addresses, syscall.RTM_GETADDR, 0},
			{&l.routes, syscall.RTM_GETROUTE, 0},
			{&l.neighbors, syscall.RTM_GETNEIGH, 0},
			{&l.neighbors, syscall.RTM_GETNEIGH, rtnl.Proxies},
			{&l.rules, syscall.RTM_GETRULE, 0},
		} {
			list, err := conn.List(read.kind, family, read.flags)
			if err != nil {
				return l, err
			}
			*read.to = append(*read.to, list...)
		}
	}
	return l, nil
}

// request is what the guest is told: what is there of the chosen interfaces, and how they are set. device is the MAC
// address that the card of an interface was plugged with.
func request(chosen []rtnl.Link, device func(index int) net.HardwareAddr, l lists) *agentv1.SetNetworkRequest {
	r := &agentv1.SetNetworkRequest{}
	for _, link := range chosen {
		out := &agentv1.Interface{
			Index: uint32(link.Index), Name: link.Name, Mtu: uint32(link.MTU), Queue: uint32(link.Queue),
			Up: link.Up() || link.Loopback(), NoArp: link.NoARP(), Ipv6Off: link.IPv6Off, NoLinkLocal: link.NoLinkLocal,
		}
		if !link.Loopback() {
			out.Mac, out.Device = link.MAC, device(link.Index)
		}
		r.Interfaces = append(r.Interfaces, out)
	}
	known := func(index int) int {
		if slices.ContainsFunc(chosen, func(l rtnl.Link) bool { return l.Index == index }) {
			return index
		}
		return 0
	}
	copies := func(list [][]byte, one func([]byte, rtnl.Index) []byte) (out [][]byte) {
		for _, m := range list {
			if m = one(m, known); m != nil {
				out = append(out, m)
			}
		}
		return out
	}
	r.Addresses = copies(l.addresses, rtnl.CopyAddress)
	r.Routes = copies(l.routes, rtnl.CopyRoute)
	r.Neighbors = copies(l.neighbors, rtnl.CopyNeighbor)
	r.Rules = copies(l.rules, func(m []byte, _ rtnl.Index) []byte { return rtnl.CopyRule(m) })
	return r
}
