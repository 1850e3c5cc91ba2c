package rtnl

import (
	"bytes"
	"errors"
	"syscall"
	"testing"
)

func TestAttrs(t *testing.T) {
	var row []byte
	row = Add(row, 1, []byte{1, 2, 3})
	row = Add32(row, 0x8000|2, 77)
	row = AddString(row, 3, "abcd")
	row = Add(row, 4, nil)
	got := Attrs(row)
	if len(got) != 4 || !bytes.Equal(got[0].Value, []byte{1, 2, 3}) || got[1].Type != 2 || Uint32(got[1].Value) != 77 ||
		String(got[2].Value) != "abcd" || len(got[3].Value) != 0 {
		t.Fatalf("Attrs: %v", got)
	}
	if Find(row, 9) != nil || Uint32(Find(row, 1)) != 0 || String(nil) != "" {
		t.Error("what is not there is found")
	}
	for n := range row { // what is cut short ends the row
		if len(Attrs(row[:n])) >= 4 {
			t.Errorf("%d of %d bytes hold four attributes", n, len(row))
		}
	}
}

func address(family byte, index uint32, flags uint32, more ...Attr) []byte {
	m := native.AppendUint32([]byte{family, 24, byte(flags), 0}, index)
	for _, a := range more {
		m = Add(m, a.Type, a.Value)
	}
	return Add32(m, syscall.IFA_LABEL+5, flags) // IFA_FLAGS
}

func twice(index int) int {
	if index > 100 {
		return 0
	}
	return 2 * index
}

func TestCopyAddress(t *testing.T) {
	const permanent, tentative, noDAD, failed, temporary = 0x80, 0x40, 2, 8, 1
	life := Attr{syscall.IFA_CACHEINFO, make([]byte, 16)}
	ip := Attr{syscall.IFA_ADDRESS, []byte{10, 0, 0, 1}}
	got := CopyAddress(address(syscall.AF_INET, 3, permanent|tentative|noDAD, life, ip), twice)
	if flags, _ := AddressFlags(got); Find(got[addressSize:], syscall.IFA_CACHEINFO) != nil || flags != noDAD || native.Uint32(got[4:]) != 6 {
		t.Errorf("a permanent address: %x", got)
	}
	if Describe(syscall.RTM_NEWADDR, got) != "10.0.0.1/24" {
		t.Errorf("Describe: %s", Describe(syscall.RTM_NEWADDR, got))
	}
	if again := CopyAddress(got, func(i int) int { return i }); !bytes.Equal(again, got) {
		t.Errorf("a copy of a copy differs: %x, %x", again, got)
	}
	if got := CopyAddress(address(syscall.AF_INET6, 3, 0, life), twice); Find(got[addressSize:], syscall.IFA_CACHEINFO) == nil {
		t.Error("an address with a life has lost it")
	}
	for what, m := range map[string][]byte{
		"temporary": address(syscall.AF_INET6, 3, temporary), "a duplicate": address(syscall.AF_INET6, 3, failed),
		"of an unknown interface": address(syscall.AF_INET, 101, 0), "of another family": address(syscall.AF_UNIX, 3, 0), "short": {2, 24, 0},
	} {
		if got := CopyAddress(m, twice); got != nil {
			t.Errorf("an address that is %s is copied: %x", what, got)
		}
	}
}

func route(table, protocol, kind byte, flags uint32, more ...Attr) []byte {
	m := native.AppendUint32([]byte{syscall.AF_INET, 24, 0, 0, table, protocol, 0, kind}, flags)
	for _, a := range more {
		m = Add(m, a.Type, a.Value)
	}
	return m
}

func number(kind uint16, n uint32) Attr { return Attr{kind, native.AppendUint32(nil, n)} }

func TestCopyRoute(t *testing.T) {
	const main, local, static, advertised, unicast, unreachable, broadcast = 254, 255, 4, 9, 1, 7, 3
	const onlink, dead, cloned = 4, 1, 0x200
	via := Attr{syscall.RTA_GATEWAY, []byte{10, 0, 0, 1}}
	got := CopyRoute(route(main, static, unicast, onlink|dead, via, number(syscall.RTA_OIF, 5), number(syscall.RTA_CACHEINFO, 1)), twice)
	if native.Uint32(got[8:]) != onlink || Uint32(Find(got[routeSize:], syscall.RTA_OIF)) != 10 || Find(got[routeSize:], syscall.RTA_CACHEINFO) != nil {
		t.Errorf("a route: %x", got)
	}
	if Direct(got) || !Outgoing(got) {
		t.Error("a route through a gateway counts as direct")
	}
	other := CopyRoute(route(main, static, unicast, onlink, number(syscall.RTA_OIF, 5), via), twice)
	if !bytes.Equal(got, other) {
		t.Errorf("the same route in another order: %x, %x", got, other)
	}
	hop := func(index uint32) []byte {
		h := native.AppendUint16(nil, 16)
		h = native.AppendUint32(append(h, dead, 3), index)
		return Add(h, via.Type, via.Value)
	}
	several := CopyRoute(route(main, static, unicast, 0, Attr{syscall.RTA_MULTIPATH, append(hop(5), hop(6)...)}), twice)
	hops := Find(several[routeSize:], syscall.RTA_MULTIPATH)
	if len(hops) != 32 || native.Uint32(hops[4:]) != 10 || native.Uint32(hops[20:]) != 12 || hops[2] != 0 || hops[3] != 3 || !bytes.Equal(hops[8:16], hop(5)[8:]) {
		t.Errorf("a route with several hops: %x", hops)
	}
	if got := CopyRoute(route(main, static, unreachable, 0), twice); got == nil || Outgoing(got) || !Direct(got) {
		t.Errorf("a route that leads nowhere: %x", got)
	}
	for what, m := range map[string][]byte{
		"local": route(local, static, unicast, 0), "to all": route(main, static, broadcast, 0), "advertised": route(main, advertised, unicast, 0),
		"a copy": route(main, static, unicast, cloned), "for where there is none": route(main, 2, unreachable, 0, number(syscall.RTA_PRIORITY, 1<<32-1)),
		"in the local table": route(0, static, unicast, 0, number(syscall.RTA_TABLE, local)), "out of an unknown interface": route(main, static, unicast, 0, number(syscall.RTA_OIF, 101)),
		"over an unknown hop": route(main, static, unicast, 0, Attr{syscall.RTA_MULTIPATH, append(hop(5), hop(101)...)}),
		"over half a hop":     route(main, static, unicast, 0, Attr{syscall.RTA_MULTIPATH, hop(5)[:12]}), "short": {2},
	} {
		if got := CopyRoute(m, twice); got != nil {
			t.Errorf("a route that is %s is copied: %x", what, got)
		}
	}
}

func TestCopyNeighbor(t *testing.T) {
	neighbor := func(state uint16, flags byte) []byte {
		m := native.AppendUint32([]byte{syscall.AF_INET, 0, 0, 0}, 4)
		m = append(native.AppendUint16(m, state), flags, 1)
		return Add(m, 1, []byte{10, 0, 0, 9})
	}
	const permanent, stale, proxy = 0x80, 4, 8
	if got := CopyNeighbor(neighbor(permanent, 0), twice); native.Uint32(got[4:]) != 8 || Describe(syscall.RTM_NEWNEIGH, got) != "10.0.0.9" {
		t.Errorf("a permanent one: %x", got)
	}
	if CopyNeighbor(neighbor(0, proxy), twice) == nil || CopyNeighbor(neighbor(stale, 0), twice) != nil || CopyNeighbor(nil, twice) != nil {
		t.Error("not those that were set by hand are copied")
	}
}

func TestVerdict(t *testing.T) {
	refusal := native.AppendUint32(nil, uint32(0xffffffff-uint32(syscall.EINVAL)+1))
	header := native.AppendUint32(nil, 20) // the request's, with four bytes of body
	header = append(header, make([]byte, 12)...)
	body := append(append(refusal, header...), 0, 0, 0, 0)
	full := AddString(body, extAckMessage, "no such thing")
	if err := verdict(0x200, full); !errors.Is(err, syscall.EINVAL) || err.Error() != "invalid argument (no such thing)" {
		t.Errorf("verdict: %v", err)
	}
	for _, short := range [][]byte{refusal, body, full[:30], refusal[:2]} {
		if err := verdict(0x200, short); len(short) >= 4 && !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%x: %v", short, err)
		}
	}
	if err := verdict(0, make([]byte, 4)); err != nil {
		t.Errorf("an acknowledgement: %v", err)
	}
}

// FuzzCopy: whatever the bytes, nothing is read beyond them, and copies stay the same when copied.
func FuzzCopy(f *testing.F) {
	f.Add(address(syscall.AF_INET, 3, 0))
	f.Add(route(254, 4, 1, 0, number(syscall.RTA_OIF, 5)))
	same := func(index int) int { return index }
	f.Fuzz(func(t *testing.T, m []byte) {
		for name, one := range map[string]func([]byte) []byte{
			"address": func(m []byte) []byte { return CopyAddress(m, same) }, "route": func(m []byte) []byte { return CopyRoute(m, same) },
			"neighbour": func(m []byte) []byte { return CopyNeighbor(m, same) }, "rule": CopyRule,
		} {
			if first := one(m); first != nil && !bytes.Equal(one(first), first) {
				t.Errorf("%s: %x becomes %x, and that becomes %x", name, m, first, one(first))
			}
			Describe(syscall.RTM_NEWROUTE, m)
		}
	})
}
