package rtnl

import (
	"golang.org/x/sys/unix"
)

// Constants of linux/pkt_sched.h that package unix lacks.
const (
	rootParent = 0xffffffff // TC_H_ROOT

	tbfParms  = 1
	tbfRate64 = 4
	tbfBurst  = 6
	ethernet  = 1 // TC_LINKLAYER_ETHERNET
)

// Limit bounds the rate at which an interface sends, in bytes a second. Up to burst bytes go at once, and up to queue
// bytes wait. The handle (a multiple of 65536) names the limit for Unlimit. An interface that has been given a qdisc
// already is an error that matches unix.EEXIST.
func (c *Conn) Limit(index int, handle uint32, rate uint64, burst, queue uint32) error {
	spec := func(rate uint64) []byte { // struct tc_ratespec
		b := []byte{0, ethernet, 0, 0, 0, 0, 0, 0}
		return native.AppendUint32(b, uint32(min(rate, 1<<32-1)))
	}
	parms := append(spec(rate), make([]byte, len(spec(0)))...) // struct tc_tbf_qopt
	parms = native.AppendUint32(parms, queue)
	parms = append(parms, make([]byte, 8)...)
	options := Add(nil, tbfParms, parms)
	options = Add(options, tbfRate64, native.AppendUint64(nil, rate))
	options = Add32(options, tbfBurst, burst)
	m := AddString(tcMessage(index, handle, rootParent, 0), tcaKind, "tbf")
	m = Add(m, tcaOptions, options)
	return c.Do(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, m)
}

// Unlimit takes back what Limit did.
func (c *Conn) Unlimit(index int, handle uint32) error {
	return c.Do(unix.RTM_DELQDISC, 0, tcMessage(index, handle, rootParent, 0))
}
