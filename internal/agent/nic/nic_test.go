package nic

import (
	"errors"
	"strings"
	"testing"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys/rtnl"
)

func card(index uint32, name string) *agentv1.Interface {
	mac := []byte{2, 0, 0, 0, 0, byte(index)}
	return &agentv1.Interface{Index: index, Name: name, Device: mac, Mac: mac, Mtu: 1500, Up: true}
}

func TestApplyRefuses(t *testing.T) {
	many := func(n int) (list []*agentv1.Interface) {
		for i := range n {
			list = append(list, card(uint32(i+1), "e"+strings.Repeat("x", i%10)+string(rune('a'+i%26))+string(rune('a'+i/26))))
		}
		return list
	}
	short, long := card(1, "eth0"), card(1, "eth0")
	short.Mac, long.Mtu = short.Mac[:5], 65536
	for what, r := range map[string]*agentv1.SetNetworkRequest{
		"interface name \"\"":    {Interfaces: []*agentv1.Interface{card(1, "")}},
		"interface name \"a/b\"": {Interfaces: []*agentv1.Interface{card(1, "a/b")}},
		"interface name \"..\"":  {Interfaces: []*agentv1.Interface{card(1, "..")}},
		"interface name \"a23":   {Interfaces: []*agentv1.Interface{card(1, "a234567890123456")}},
		"its name or number":     {Interfaces: []*agentv1.Interface{card(1, "a"), card(2, "a")}},
		"b (1): another":         {Interfaces: []*agentv1.Interface{card(1, "a"), card(1, "b")}},
		"a (0)":                  {Interfaces: []*agentv1.Interface{card(0, "a")}},
		"MAC address":            {Interfaces: []*agentv1.Interface{short}},
		"MTU 65536":              {Interfaces: []*agentv1.Interface{long}},
		"65 interfaces":          {Interfaces: many(65)},
		"4097 addresses":         {Addresses: make([][]byte, 4097)},
		"16385 routes":           {Routes: make([][]byte, 16385)},
		"setting \"kernel/x\"":   {Sysctls: []*agentv1.Sysctl{{Path: "kernel/x"}}},
		"setting \"net/../x\"":   {Sysctls: []*agentv1.Sysctl{{Path: "net/../x"}}},
		"an entry of 4097 bytes": {Rules: [][]byte{make([]byte, 4097)}},
	} {
		if err := new(Network).Apply(t.Context(), r); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), what) {
			t.Errorf("Apply: %v, want ErrInvalid and %s", err, what)
		}
	}
	if err := check(&agentv1.SetNetworkRequest{Interfaces: many(64)}); err != nil {
		t.Errorf("64 interfaces: %v", err)
	}
}

func TestMatch(t *testing.T) {
	mac, other := []byte{2, 0, 0, 0, 0, 1}, []byte{2, 0, 0, 0, 0, 2}
	const loopback = 8
	links := []rtnl.Link{
		{Index: 1, Name: "lo", Flags: loopback}, {Index: 2, Kind: "vlan", MAC: mac}, {Index: 3, MAC: mac, Permanent: other}, {Index: 4, MAC: other, Permanent: mac},
	}
	for device, want := range map[string]int{"": 1, string(mac): 4, string(other): 3, "\x02\x00\x00\x00\x00\x03": 0} {
		if l, ok := match(links, []byte(device), nil); l.Index != want || ok != (want != 0) {
			t.Errorf("match(%x) = %d, %v, want %d", device, l.Index, ok, want)
		}
	}
	given := []rtnl.Link{{Index: 3, MAC: mac}}
	if l, ok := match(given, mac, map[string]int{"another": 3}); ok { // 3 has the address now, and is another card
		t.Errorf("match of a card that is not there yet = %d", l.Index)
	}
	for known, want := range map[int]int{3: 3, 9: 4} { // one that is gone is looked for anew
		if l, ok := match(links, mac, map[string]int{string(mac): known}); l.Index != want || !ok {
			t.Errorf("match of a card that was number %d = %d, %v, want %d", known, l.Index, ok, want)
		}
	}
}

func TestAsAdded(t *testing.T) {
	address := func(family, index, host byte) []byte { return []byte{family, 64, 0, 0, index, 0, 0, 0, host} }
	list := [][]byte{address(2, 1, 1), address(2, 1, 2), address(10, 1, 1), address(10, 1, 2), address(10, 2, 1), address(10, 2, 2)}
	var got string
	for _, m := range asAdded(list) {
		got += string(rune('0'+m[4])) + string(rune('0'+m[8])) + " "
	}
	if want := "11 12 12 11 22 21 "; got != want {
		t.Errorf("asAdded: %s, want %s", got, want)
	}
}
