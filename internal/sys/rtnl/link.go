package rtnl

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	ifInfoSize = 16 // struct ifinfomsg (linux/rtnetlink.h)
	// Ethernet is the hardware type of what has Ethernet's link layer (ARPHRD_ETHER, linux/if_arp.h).
	Ethernet = unix.ARPHRD_ETHER
)

// Link is a network interface.
type Link struct {
	Index    int
	Hardware uint16 // ARPHRD_*
	Flags    uint32 // IFF_*
	Name     string
	Alias    string
	Kind     string // of a virtual one: veth, macvlan, tun, …
	MAC      net.HardwareAddr
	// Permanent is the MAC address that the device was made with, nil where that is not known.
	Permanent net.HardwareAddr
	MTU       int
	Queue     int // most packets that wait to be sent
	// Lower is the interface of the same namespace that this one is on top of, or a veth's peer in it; 0
	// for none.
	Lower   int
	Carrier bool // a tap's: whether somebody has it open
	Master  int  // the bridge, bond or VRF that it is a port of, 0 for none
	// IPv6Off tells that the interface has IPv6 turned off.
	IPv6Off bool
	// NoLinkLocal tells that it makes itself no IPv6 link-local address.
	NoLinkLocal bool
}

// Up tells whether the interface is turned on.
func (l Link) Up() bool { return l.Flags&unix.IFF_UP != 0 }

// NoARP tells whether it resolves no addresses.
func (l Link) NoARP() bool { return l.Flags&unix.IFF_NOARP != 0 }

// Loopback tells whether it is the loopback interface.
func (l Link) Loopback() bool { return l.Flags&unix.IFF_LOOPBACK != 0 }

// Links lists the interfaces of the namespace.
func (c *Conn) Links() ([]Link, error) {
	list, err := c.Dump(unix.RTM_GETLINK, make([]byte, ifInfoSize))
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var links []Link
	for _, m := range list {
		if len(m) >= ifInfoSize {
			links = append(links, parseLink(m))
		}
	}
	return links, nil
}

func parseLink(m []byte) Link {
	l := Link{Hardware: native.Uint16(m[2:]), Index: int(native.Uint32(m[4:])), Flags: native.Uint32(m[8:])}
	elsewhere := false
	for _, a := range Attrs(m[ifInfoSize:]) {
		switch a.Type {
		case unix.IFLA_IFNAME:
			l.Name = String(a.Value)
		case unix.IFLA_IFALIAS:
			l.Alias = String(a.Value)
		case unix.IFLA_ADDRESS:
			l.MAC = append(net.HardwareAddr(nil), a.Value...)
		case unix.IFLA_PERM_ADDRESS:
			l.Permanent = append(net.HardwareAddr(nil), a.Value...)
		case unix.IFLA_MTU:
			l.MTU = int(Uint32(a.Value))
		case unix.IFLA_TXQLEN:
			l.Queue = int(Uint32(a.Value))
		case unix.IFLA_LINK:
			l.Lower = int(Uint32(a.Value))
		case unix.IFLA_LINK_NETNSID:
			elsewhere = true
		case unix.IFLA_CARRIER:
			l.Carrier = len(a.Value) > 0 && a.Value[0] != 0
		case unix.IFLA_MASTER:
			l.Master = int(Uint32(a.Value))
		case unix.IFLA_LINKINFO:
			l.Kind = String(Find(a.Value, unix.IFLA_INFO_KIND))
		case unix.IFLA_AF_SPEC:
			l.parseIPv6(Find(a.Value, unix.AF_INET6))
		}
	}
	if elsewhere || l.Lower == l.Index {
		l.Lower = 0
	}
	return l
}

// The places of linux/if_link.h and linux/ipv6.h that parseIPv6 looks at.
const (
	inet6Conf        = 2
	inet6AddrGenMode = 8
	addrGenNone      = 1
	devconfDisable   = 26
	devconfSize      = 4 // bytes each
)

func (l *Link) parseIPv6(spec []byte) {
	if conf := Find(spec, inet6Conf); len(conf) >= (devconfDisable+1)*devconfSize {
		l.IPv6Off = native.Uint32(conf[devconfDisable*devconfSize:]) != 0
	}
	if mode := Find(spec, inet6AddrGenMode); len(mode) > 0 {
		l.NoLinkLocal = mode[0] == addrGenNone
	}
}

// Change is what SetLink changes of an interface. Zero values change nothing.
type Change struct {
	Name  string
	Alias string
	MAC   net.HardwareAddr
	MTU   int
	Queue int
	// NoQueue sets Queue to 0.
	NoQueue bool
	// LinkLocal lets it make itself an IPv6 link-local address from now on, when it is turned on.
	LinkLocal bool
	// Network is a network namespace that it is moved to. It may get another number there.
	Network *os.File
	// Set and Clear are flags (IFF_UP, IFF_NOARP, …).
	Set, Clear uint32
}

// SetLink changes an interface.
func (c *Conn) SetLink(index int, change Change) error {
	m := linkMessage(index, change.Set, change.Set|change.Clear)
	if change.Name != "" {
		m = AddString(m, unix.IFLA_IFNAME, change.Name)
	}
	if change.Alias != "" {
		m = AddString(m, unix.IFLA_IFALIAS, change.Alias)
	}
	if change.MAC != nil {
		m = Add(m, unix.IFLA_ADDRESS, change.MAC)
	}
	if change.MTU != 0 {
		m = Add32(m, unix.IFLA_MTU, uint32(change.MTU))
	}
	if change.Queue != 0 || change.NoQueue {
		m = Add32(m, unix.IFLA_TXQLEN, uint32(change.Queue))
	}
	if change.LinkLocal {
		m = addLinkLocal(m, true)
	}
	if change.Network != nil {
		m = Add32(m, unix.IFLA_NET_NS_FD, uint32(change.Network.Fd()))
	}
	return c.Do(unix.RTM_NEWLINK, 0, m)
}

// SetLinkLocal turns on or off that an interface makes itself an IPv6 link-local address. A kernel without
// IPv6 gives EAFNOSUPPORT.
func (c *Conn) SetLinkLocal(index int, on bool) error {
	return c.Do(unix.RTM_SETLINK, 0, addLinkLocal(linkMessage(index, 0, 0), on))
}

func addLinkLocal(m []byte, on bool) []byte {
	mode := []byte{addrGenNone}
	if on {
		mode[0] = 0
	}
	return Add(m, unix.IFLA_AF_SPEC, Add(nil, unix.AF_INET6, Add(nil, inet6AddrGenMode, mode)))
}

// DeleteLink removes a virtual interface.
func (c *Conn) DeleteLink(index int) error {
	return c.Do(unix.RTM_DELLINK, 0, linkMessage(index, 0, 0))
}

func linkMessage(index int, flags, mask uint32) []byte {
	m := make([]byte, 4, ifInfoSize)
	m = native.AppendUint32(m, uint32(index))
	m = native.AppendUint32(m, flags)
	return native.AppendUint32(m, mask)
}
