package rtnl

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// MakeAddress is the message that adds an address (RTM_NEWADDR) to an interface.
func MakeAddress(index int, p netip.Prefix) []byte {
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if p.Addr().IsLinkLocalUnicast() {
		scope = unix.RT_SCOPE_LINK
	}
	m := native.AppendUint32([]byte{family(p.Addr()), byte(p.Bits()), 0, scope}, uint32(index))
	m = Add(m, unix.IFA_ADDRESS, p.Addr().AsSlice())
	if p.Addr().Is4() {
		m = Add(m, unix.IFA_LOCAL, p.Addr().AsSlice())
	}
	return Add32(m, unix.IFA_FLAGS, unix.IFA_F_PERMANENT)
}

// MakeLinkRoute is the message that adds the route (RTM_NEWROUTE) to the neighbours of an address.
func MakeLinkRoute(index int, p netip.Prefix) []byte {
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if p.Addr().Is4() {
		scope = unix.RT_SCOPE_LINK
	}
	m := []byte{family(p.Addr()), byte(p.Bits()), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_KERNEL, scope, unix.RTN_UNICAST, 0, 0, 0, 0}
	m = Add(m, unix.RTA_DST, p.Masked().Addr().AsSlice())
	if p.Addr().Is4() {
		m = Add(m, unix.RTA_PREFSRC, p.Addr().AsSlice())
	} else {
		m = Add32(m, unix.RTA_PRIORITY, 256) // as the kernel's own
	}
	return Add32(m, unix.RTA_OIF, uint32(index))
}

// MakeDefaultRoute is the message that adds a default route (RTM_NEWROUTE) through a gateway.
func MakeDefaultRoute(index int, gateway netip.Addr) []byte {
	m := []byte{family(gateway), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0}
	m = Add(m, unix.RTA_GATEWAY, gateway.AsSlice())
	return Add32(m, unix.RTA_OIF, uint32(index))
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// AddAddress adds an address to an interface.
func (c *Conn) AddAddress(index int, p netip.Prefix) error {
	return c.Do(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL, MakeAddress(index, p))
}

// AddDefaultRoute adds a default route through a gateway.
func (c *Conn) AddDefaultRoute(index int, gateway netip.Addr) error {
	return c.Do(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, MakeDefaultRoute(index, gateway))
}
