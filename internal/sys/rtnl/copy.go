package rtnl

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Sizes of the fixed parts of messages (linux/if_addr.h, rtnetlink.h, neighbour.h, fib_rules.h).
const (
	addressSize  = 8
	routeSize    = 12
	neighborSize = 12
	ruleSize     = 12
	nextHopSize  = 8 // struct rtnexthop
)

// Index says what interface of another namespace stands for one of this, 0 for none.
type Index func(index int) int

// attrs copies the attributes of the given types, ordered by type, so that equal messages are equal bytes.
func attrs(row []byte, keep ...uint16) []Attr {
	list := slices.DeleteFunc(Attrs(row), func(a Attr) bool { return !slices.Contains(keep, a.Type) })
	slices.SortStableFunc(list, func(a, b Attr) int { return int(a.Type) - int(b.Type) })
	return list
}

// CopyAddress turns an address that was listed (RTM_GETADDR) into the message that adds it elsewhere
// (RTM_NEWADDR). It returns nil for an address that the other side makes itself, or should not have.
func CopyAddress(m []byte, index Index) []byte {
	if len(m) < addressSize || m[0] != unix.AF_INET && m[0] != unix.AF_INET6 {
		return nil
	}
	to := index(int(native.Uint32(m[4:])))
	flags := uint32(m[2])
	if f := Find(m[addressSize:], unix.IFA_FLAGS); f != nil {
		flags = Uint32(f)
	}
	const temporary, failed = unix.IFA_F_TEMPORARY, unix.IFA_F_DADFAILED
	if to == 0 || flags&failed != 0 || m[0] == unix.AF_INET6 && flags&temporary != 0 {
		return nil
	}
	out := native.AppendUint32([]byte{m[0], m[1], 0, m[3]}, uint32(to))
	const proto = 11 // IFA_PROTO
	for _, a := range attrs(m[addressSize:], unix.IFA_ADDRESS, unix.IFA_LOCAL, unix.IFA_LABEL, unix.IFA_BROADCAST,
		unix.IFA_CACHEINFO, unix.IFA_RT_PRIORITY, proto) {
		if a.Type == unix.IFA_CACHEINFO && flags&unix.IFA_F_PERMANENT != 0 {
			continue
		}
		out = Add(out, a.Type, a.Value)
	}
	flags &= unix.IFA_F_NODAD | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR | unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_MCAUTOJOIN
	return Add32(out, unix.IFA_FLAGS, flags)
}

// AddressFlags returns the flags (IFA_F_*) of what CopyAddress returned, and a function that gives it others.
func AddressFlags(m []byte) (flags uint32, set func(uint32)) {
	value := Find(m[addressSize:], unix.IFA_FLAGS)
	return Uint32(value), func(flags uint32) { native.PutUint32(value, flags) }
}

// CopyRoute turns a route that was listed (RTM_GETROUTE) into the message that adds it elsewhere
// (RTM_NEWROUTE). It returns nil for a route that the other side makes itself: those of the table "local", and
// what routers have advertised.
func CopyRoute(m []byte, index Index) []byte {
	if len(m) < routeSize || m[0] != unix.AF_INET && m[0] != unix.AF_INET6 {
		return nil
	}
	table, flags := uint32(m[4]), native.Uint32(m[8:])
	if t := Find(m[routeSize:], unix.RTA_TABLE); t != nil {
		table = Uint32(t)
	}
	switch m[7] {
	case unix.RTN_UNICAST, unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_THROW:
	default:
		return nil
	}
	const lowest = 1<<32 - 1 // the priority of IPv6's answer where there is no route
	if table == unix.RT_TABLE_LOCAL || flags&unix.RTM_F_CLONED != 0 || m[5] == unix.RTPROT_RA || m[5] == unix.RTPROT_REDIRECT ||
		Uint32(Find(m[routeSize:], unix.RTA_PRIORITY)) == lowest {
		return nil
	}
	out := append([]byte(nil), m[:8]...)
	out = native.AppendUint32(out, flags&unix.RTNH_F_ONLINK)
	for _, a := range attrs(m[routeSize:], unix.RTA_DST, unix.RTA_SRC, unix.RTA_OIF, unix.RTA_GATEWAY, unix.RTA_PRIORITY,
		unix.RTA_PREFSRC, unix.RTA_METRICS, unix.RTA_MULTIPATH, unix.RTA_FLOW, unix.RTA_TABLE, unix.RTA_MARK, unix.RTA_VIA,
		unix.RTA_PREF, unix.RTA_ENCAP_TYPE, unix.RTA_ENCAP) {
		switch a.Type {
		case unix.RTA_OIF:
			to := index(int(Uint32(a.Value)))
			if to == 0 {
				return nil
			}
			a.Value = native.AppendUint32(nil, uint32(to))
		case unix.RTA_MULTIPATH:
			if a.Value = copyHops(a.Value, index); a.Value == nil {
				return nil
			}
		}
		out = Add(out, a.Type, a.Value)
	}
	return out
}

// copyHops copies the hops of a route that has several (struct rtnexthop, each with attributes).
func copyHops(hops []byte, index Index) []byte {
	var out []byte
	for len(hops) >= nextHopSize {
		length := int(native.Uint16(hops))
		if length < nextHopSize || length > len(hops) {
			return nil
		}
		to := index(int(native.Uint32(hops[4:])))
		if to == 0 {
			return nil
		}
		start := len(out)
		out = append(out, 0, 0, hops[2]&unix.RTNH_F_ONLINK, hops[3])
		out = native.AppendUint32(out, uint32(to))
		out = append(out, hops[nextHopSize:length]...)
		native.PutUint16(out[start:], uint16(length))
		out = append(out, make([]byte, align(length)-length)...)
		hops = hops[min(align(length), len(hops)):]
	}
	return out
}

// Direct tells whether what CopyRoute returned needs no other route to reach a gateway.
func Direct(route []byte) bool {
	for _, a := range Attrs(route[routeSize:]) {
		switch a.Type {
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH:
			return false
		}
	}
	return true
}

// CopyNeighbor turns a neighbour that was listed (RTM_GETNEIGH) into the message that adds it elsewhere
// (RTM_NEWNEIGH). It returns nil for one that was not set by hand: neither permanent nor a proxy.
func CopyNeighbor(m []byte, index Index) []byte {
	if len(m) < neighborSize || m[0] != unix.AF_INET && m[0] != unix.AF_INET6 {
		return nil
	}
	to := index(int(native.Uint32(m[4:])))
	state, flags := native.Uint16(m[8:]), m[10]&(unix.NTF_PROXY|unix.NTF_ROUTER)
	if to == 0 || state&unix.NUD_PERMANENT == 0 && flags&unix.NTF_PROXY == 0 {
		return nil
	}
	out := native.AppendUint32([]byte{m[0], 0, 0, 0}, uint32(to))
	out = native.AppendUint16(out, state&unix.NUD_PERMANENT)
	out = append(out, flags, 0)
	for _, a := range attrs(m[neighborSize:], unix.NDA_DST, unix.NDA_LLADDR) {
		out = Add(out, a.Type, a.Value)
	}
	return out
}

// Priorities of the three rules that every namespace begins with.
const (
	ruleLocal   = 0
	ruleMain    = 32766
	ruleDefault = 32767
)

// CopyRule turns a routing rule that was listed (RTM_GETRULE) into the message that adds it elsewhere
// (RTM_NEWRULE). It returns nil for the three that every namespace begins with.
func CopyRule(m []byte) []byte {
	if len(m) < ruleSize || m[0] != unix.AF_INET && m[0] != unix.AF_INET6 {
		return nil
	}
	row := attrs(m[ruleSize:], unix.FRA_DST, unix.FRA_SRC, unix.FRA_IIFNAME, unix.FRA_OIFNAME, unix.FRA_GOTO, unix.FRA_PRIORITY,
		unix.FRA_FWMARK, unix.FRA_FWMASK, unix.FRA_TABLE, unix.FRA_SUPPRESS_PREFIXLEN, unix.FRA_SUPPRESS_IFGROUP, unix.FRA_L3MDEV,
		unix.FRA_UID_RANGE, unix.FRA_PROTOCOL, unix.FRA_IP_PROTO, unix.FRA_SPORT_RANGE, unix.FRA_DPORT_RANGE)
	switch Uint32(Find(m[ruleSize:], unix.FRA_PRIORITY)) {
	case ruleLocal, ruleMain, ruleDefault:
		return nil
	}
	out := append([]byte(nil), m[:ruleSize]...)
	const invert = 2 // FIB_RULE_INVERT; the other flags say how the rule fares
	native.PutUint32(out[8:], native.Uint32(out[8:])&invert)
	for _, a := range row {
		out = Add(out, a.Type, a.Value)
	}
	return out
}

// Proxies as flags of List asks for the neighbours that the machine answers for.
const Proxies = unix.NTF_PROXY

// List lists the addresses, routes, neighbours or rules (RTM_GETADDR, …) of an address family (AF_INET, …).
func (c *Conn) List(kind int, family, flags uint8) ([][]byte, error) {
	size := routeSize // which is that of rules and neighbours too
	if kind == unix.RTM_GETADDR {
		size = addressSize
	}
	m := make([]byte, size)
	m[0] = family
	if kind == unix.RTM_GETNEIGH {
		m[10] = flags
	}
	list, err := c.Dump(kind, m)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without IPv6
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network (%d): %w", kind, err)
	}
	return list, nil
}

// Outgoing tells whether what CopyRoute returned leads out of an interface: one that only says what is not
// to be reached need not.
func Outgoing(route []byte) bool {
	return Find(route[routeSize:], unix.RTA_OIF) != nil || Find(route[routeSize:], unix.RTA_MULTIPATH) != nil
}

// Describe names what an address, route or neighbour message is about, for errors.
func Describe(kind int, m []byte) string {
	size, attr, length := routeSize, uint16(unix.RTA_DST), ""
	if len(m) < addressSize {
		return "?"
	}
	switch kind {
	case unix.RTM_NEWADDR:
		size, attr, length = addressSize, unix.IFA_ADDRESS, fmt.Sprintf("/%d", m[1])
	case unix.RTM_NEWNEIGH:
		size, attr = neighborSize, unix.NDA_DST
	case unix.RTM_NEWROUTE, unix.RTM_NEWRULE:
		length = fmt.Sprintf("/%d", m[1])
	}
	if len(m) < size {
		return "?"
	}
	if ip, ok := netip.AddrFromSlice(Find(m[size:], attr)); ok {
		return ip.String() + length
	}
	return "default"
}
