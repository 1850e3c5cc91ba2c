package rtnl

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Constants of linux/pkt_sched.h, linux/pkt_cls.h and linux/tc_act/tc_mirred.h that package unix lacks.
const (
	tcMsgSize     = 20         // struct tcmsg
	ingressHandle = 0xffff0000 // of the one ingress qdisc that an interface may have
	ingressParent = 0xfffffff1 // TC_H_INGRESS
	ingressHook   = 0xfffffff2 // where filters of an ingress and of a clsact qdisc go

	tcaKind    = 1
	tcaOptions = 2

	u32Select   = 5
	u32Act      = 7
	u32Terminal = 1
	u32SelSize  = 16 // struct tc_u32_sel without keys

	actKind    = 1
	actOptions = 2
	actCookie  = 6

	mirredParms  = 2
	mirredSize   = 28 // struct tc_mirred
	egressRedir  = 1
	actionStolen = 4
)

// AddIngress gives an interface a qdisc for incoming packets. One that it has already is an error that
// matches unix.EEXIST.
func (c *Conn) AddIngress(index int) error {
	m := AddString(tcMessage(index, ingressHandle, ingressParent, 0), tcaKind, "ingress")
	return c.Do(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m)
}

// DeleteIngress removes the qdisc that AddIngress made, with all its filters.
func (c *Conn) DeleteIngress(index int) error {
	return c.Do(unix.RTM_DELQDISC, 0, AddString(tcMessage(index, ingressHandle, ingressParent, 0), tcaKind, "ingress"))
}

// Qdisc is a queueing discipline of an interface.
type Qdisc struct {
	Index   int // of the interface
	Kind    string
	Ingress bool
}

// Qdiscs lists those of all interfaces.
func (c *Conn) Qdiscs() ([]Qdisc, error) {
	list, err := c.Dump(unix.RTM_GETQDISC, tcMessage(0, 0, 0, 0))
	if err != nil {
		return nil, fmt.Errorf("list qdiscs: %w", err)
	}
	var all []Qdisc
	for _, m := range list {
		if len(m) >= tcMsgSize {
			all = append(all, Qdisc{
				Index: int(native.Uint32(m[4:])), Kind: String(Find(m[tcMsgSize:], tcaKind)), Ingress: native.Uint32(m[12:]) == ingressParent,
			})
		}
	}
	return all, nil
}

// Redirect sends every packet that comes in from one interface out of another. cookie, of at most 16
// bytes, marks the filter that does, and priority (1 to 65535) is its place among others; it must be
// free. The interface needs an ingress qdisc.
func (c *Conn) Redirect(from, to int, priority uint16, cookie string) error {
	mirred := make([]byte, 8, mirredSize)
	mirred = native.AppendUint32(mirred, actionStolen)
	mirred = append(mirred, make([]byte, 8)...)
	mirred = native.AppendUint32(mirred, egressRedir)
	mirred = native.AppendUint32(mirred, uint32(to))
	action := AddString(nil, actKind, "mirred")
	action = Add(action, actCookie, []byte(cookie))
	action = Add(action, actOptions, Add(nil, mirredParms, mirred))

	everything := make([]byte, u32SelSize) // no key: it matches every packet, the shortest too
	everything[0] = u32Terminal
	options := Add(nil, u32Select, everything)
	options = Add(options, u32Act, Add(nil, 1, action))
	m := AddString(tcMessage(from, 0, ingressHook, filterInfo(priority)), tcaKind, "u32")
	m = Add(m, tcaOptions, options)
	return c.Do(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m)
}

// DeleteFilters removes the filters of a priority for incoming packets. Where there are none it does nothing.
func (c *Conn) DeleteFilters(index int, priority uint16) error {
	err := c.Do(unix.RTM_DELTFILTER, 0, tcMessage(index, 0, ingressHook, filterInfo(priority)))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) { // no such filter, no such qdisc
		return nil
	}
	return err
}

// Filter is a filter for incoming packets.
type Filter struct {
	Priority uint16
	Cookie   string // of its first action
	// Target is the interface that it redirects to, 0 where that is gone or it does something else.
	Target int
}

// Filters lists an interface's filters for incoming packets, and the tables that they are kept in. Where it
// has no qdisc for them there are none.
func (c *Conn) Filters(index int) ([]Filter, error) {
	list, err := c.Dump(unix.RTM_GETTFILTER, tcMessage(index, 0, ingressHook, 0))
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	var all []Filter
	for _, m := range list {
		if len(m) < tcMsgSize {
			continue
		}
		f := Filter{Priority: uint16(native.Uint32(m[16:]) >> 16)}
		action := Find(Find(Find(m[tcMsgSize:], tcaOptions), u32Act), 1)
		f.Cookie = string(Find(action, actCookie))
		if parms := Find(Find(action, actOptions), mirredParms); len(parms) >= mirredSize {
			f.Target = int(native.Uint32(parms[mirredSize-4:]))
		}
		all = append(all, f)
	}
	return all, nil
}

// filterInfo is the priority with the protocol ETH_P_ALL, which is in network byte order.
func filterInfo(priority uint16) uint32 {
	protocol := native.Uint16([]byte{0, unix.ETH_P_ALL})
	return uint32(priority)<<16 | uint32(protocol)
}

func tcMessage(index int, handle, parent, info uint32) []byte {
	m := make([]byte, 4, tcMsgSize)
	m = native.AppendUint32(m, uint32(index))
	m = native.AppendUint32(m, handle)
	m = native.AppendUint32(m, parent)
	return native.AppendUint32(m, info)
}
