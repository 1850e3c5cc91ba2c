package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// looks are what a container can see of its network, each as JSON.
var looks = []string{
	"addr", "route show table main", "-6 route show table main", "route show table 100", "-6 route show table 100",
	"neigh show nud permanent", "neigh show proxy", "rule", "-6 rule",
}

// look is the script that prints all of looks, a line each.
func look() string {
	var script []string
	for _, l := range looks {
		script = append(script, "ip2 -j "+l+" 2>/dev/null | tr -d '\\n'; echo")
	}
	return strings.Join(script, "\n")
}

// ofHost are what interfaces have because of what they are on the host.
var ofHost = []string{"ifindex", "link_index", "link_netnsid", "link", "qdisc", "protocol", "promiscuity", "allmulti", "txqlen"}

// seen takes apart what look printed. What a virtual network card cannot have is left out, and so are
// answers for which there is nothing to say.
func seen(t *testing.T, printed string) map[string][]map[string]any {
	t.Helper()
	lines := strings.Split(strings.TrimRight(printed, "\n"), "\n")
	if len(lines) != len(looks) {
		t.Fatalf("the container printed %q, want %d lines", printed, len(looks))
	}
	all := map[string][]map[string]any{}
	for i, line := range lines {
		var list []map[string]any
		if line != "" && line != "[" { // which ip prints before it finds that there is no such table
			if err := json.Unmarshal([]byte(line), &list); err != nil {
				t.Fatalf("ip %s printed %q: %v", looks[i], line, err)
			}
		}
		for _, entry := range list {
			if looks[i] == "addr" {
				for _, key := range ofHost {
					delete(entry, key)
				}
				if os.Getenv("KERNEL") == "distro" { // which is not told to hide it
					delete(entry, "permaddr")
				}
				info, _ := entry["addr_info"].([]any)
				for _, a := range info {
					delete(a.(map[string]any), "protocol")
				}
			}
		}
		// Kernels before 6.3 have this route twice.
		all[looks[i]] = slices.DeleteFunc(list, func(entry map[string]any) bool { return entry["dst"] == "::1" })
	}
	return all
}

// same runs a container with runc and then with husk in the same namespace and compares what they see. It
// returns what else the container of husk printed.
func same(t *testing.T, s *space, script string) string {
	t.Helper()
	s.untouched()
	b := newBundle(t, look()).ownRoot().program("ip").raw().in(s)
	r := b.runc()
	if r.code != 0 {
		t.Fatalf("runc: %s", r.stderr)
	}
	want := seen(t, r.stdout)
	// A kernel finds a link's state some time after it is up; runc's container is of links that were up before.
	const wait = "for i in $(seq 100); do ip2 -o link show up | grep -v ' lo:' | grep -q 'state UNKNOWN' || break; sleep 0.1; done\n"
	b.spec.Process.Args = []string{"sh", "-c", wait + look() + "\necho ---\n" + script}
	r = b.run()
	if strings.Contains(r.stderr, "Multipath support not enabled") {
		t.Skip("the guest's kernel has no routes with several gateways")
	}
	if r.code != 0 {
		t.Fatalf("husk: exit code %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
	}
	printed, more, _ := strings.Cut(r.stdout, "---\n")
	got := seen(t, printed)
	for _, l := range looks {
		if len(got[l])+len(want[l]) > 0 && !reflect.DeepEqual(got[l], want[l]) {
			t.Errorf("ip %s\nhusk: %s\nrunc: %s", l, text(t, got[l]), text(t, want[l]))
		}
	}
	if len(want["addr"]) == 0 {
		t.Error("runc's container sees no interface: nothing was compared")
	}
	return more
}

func text(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestNetworkLooksTheSame makes interfaces with CNI plugins. A container sees what it would see under runc, and
// reaches the host's part.
func TestNetworkLooksTheSame(t *testing.T) {
	begin(t)
	for _, c := range []struct {
		name, plugin, config string
		reaches              bool
	}{
		{"bridge", "bridge", `"bridge": "cni0", "isGateway": true, "hairpinMode": true, "mtu": 1400`, true},
		{"ptp", "ptp", `"ipMasq": false`, true},
		{"macvlan", "macvlan", `"master": "up0", "mode": "bridge"`, true},
		{"ipvlan l2", "ipvlan", `"master": "up0", "mode": "l2"`, true},
		{"ipvlan l3", "ipvlan", `"master": "up0", "mode": "l3"`, false}, // nobody there routes back
	} {
		t.Run(c.name, func(t *testing.T) {
			begin(t)
			behind := newSpace(t)
			host := newSpace(t, "ip link set lo up", fmt.Sprintf("ip link add up0 type veth peer name up1 netns %d", behind.pid), "ip link set up0 up")
			behind.run("ip link set up1 up", "ip addr add 10.77.0.1/24 dev up1", "ip addr add fd77::1/64 dev up1 nodad")
			inside := newSpace(t, "ip link set lo up")
			host.attach(inside, "eth0", c.plugin, fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "net", "type": %q, %s, %s}`,
				c.plugin, c.config, hostLocal(t.TempDir(), "10.77.0.0/24", "fd77::/64")))
			inside.settled()
			script := ""
			gateways := []string{"10.77.0.1", "fd77::1"}
			if !c.reaches {
				gateways = nil
			}
			for _, g := range gateways {
				script += "ping -c 2 -W 20 " + g + " >/dev/null && echo reached " + g + "\n"
			}
			out := same(t, inside, script+"true")
			for _, g := range gateways {
				if !strings.Contains(out, "reached "+g) {
					t.Errorf("the container does not reach %s: %q", g, out)
				}
			}
		})
	}
}

// TestNetworkOfChains runs chains of plugins, as engines do, and several of them for one container, as Multus does.
func TestNetworkOfChains(t *testing.T) {
	begin(t)
	for _, c := range []struct {
		name   string
		chains [][]string // configurations without what all have in common
		script string     // in the container
		prints string
	}{
		{"portmap, firewall, bandwidth, tuning", [][]string{{
			`"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}`,
			`"type": "portmap", "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}`,
			`"type": "firewall"`,
			`"type": "bandwidth", "ingressRate": 80000000, "ingressBurst": 8000000, "egressRate": 80000000, "egressBurst": 8000000`,
			`"type": "tuning", "mac": "c2:b0:57:49:47:f1", "mtu": 1454, "sysctl": {"net.core.somaxconn": "555", "net.ipv4.conf.eth0.arp_filter": "1", "net.ipv4.ip_local_port_range": "20000 30000"}`,
		}}, "ping -c 1 -W 20 10.77.0.1 >/dev/null && echo reached; cd /proc/sys/net; cat core/somaxconn ipv4/conf/eth0/arp_filter; echo $(cat ipv4/ip_local_port_range)", "reached\n555\n1\n20000 30000\n"},
		{"several interfaces, static addresses", [][]string{{
			`"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.77.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}`,
		}, {
			`"type": "macvlan", "master": "up0", "mode": "bridge", "ipam": {"type": "static", "addresses": [{"address": "10.78.0.9/24"}, {"address": "fd78::9/64"}], "routes": [{"dst": "10.79.0.0/16", "gw": "10.78.0.1"}]}`,
		}, {
			`"type": "ptp", "ipam": {"type": "static", "addresses": [{"address": "10.80.0.9/24", "gateway": "10.80.0.1"}]}`,
			`"type": "sbr"`,
		}}, "for a in 10.77.0.1 10.78.0.1 10.80.0.1; do ping -c 1 -W 20 $a >/dev/null && echo reached $a; done", "reached 10.77.0.1\nreached 10.78.0.1\nreached 10.80.0.1\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin(t)
			behind := newSpace(t)
			host := newSpace(t, "ip link set lo up", fmt.Sprintf("ip link add up0 type veth peer name up1 netns %d", behind.pid), "ip link set up0 up")
			behind.run("ip link set up1 up", "ip addr add 10.78.0.1/24 dev up1")
			inside := newSpace(t, "ip link set lo up")
			for i, chain := range c.chains {
				host.chain(inside, fmt.Sprintf("eth%d", i), chain)
			}
			inside.settled()
			if out := same(t, inside, c.script); out != c.prints {
				t.Errorf("the container printed %q, want %q", out, c.prints)
			}
		})
	}
}

// settled waits until the kernel knows that links are up, has made their own IPv6 addresses, and knows that nobody
// else has those.
func (s *space) settled() *space {
	s.t.Helper()
	const unsettled = `ip -6 addr show tentative; ip link | grep NO-CARRIER || :
		for i in $(ip -o link show up | sed 's/^[0-9]*: //; s/[@:].*//'); do
			if [ $i = lo ] || ip -d link show $i | grep -q 'addrgenmode none' || [ $(sysctl -n net.ipv6.conf.$i.disable_ipv6) = 1 ]; then continue; fi
			ip -6 addr show dev $i scope link | grep -q fe80 || echo $i
		done`
	until(s.t, "links and IPv6 addresses are settled", 20*time.Second, func() bool { return s.run(unsettled) == "" })
	return s
}

// TestNetworkByHand sets interfaces up in ways that plugins do not, or rarely.
func TestNetworkByHand(t *testing.T) {
	begin(t)
	for name, commands := range byHand() {
		t.Run(name, func(t *testing.T) {
			begin(t)
			same(t, newSpace(t, "ip link set lo up").with(commands...).settled(), "true")
		})
	}
}

// byHand are commands for a namespace; see with.
func byHand() map[string][]string {
	var ten []string
	for i := range 10 {
		ten = append(ten, fmt.Sprintf("ether net%d", i), fmt.Sprintf("ip link set net%d up", i),
			fmt.Sprintf("ip addr add 10.0.%d.2/24 dev net%d", i, i), fmt.Sprintf("ip -6 addr add fd00:%d::2/64 dev net%d nodad", i, i))
	}
	return map[string][]string{
		"loopback only":  nil,
		"ten interfaces": ten,
		"names": {
			"ether a2345678901234e", "ip link set a2345678901234e up", "ip addr add 10.1.0.2/24 dev a2345678901234e",
			"ether eth1", "ether eth0", "ip addr add 10.2.0.2/24 dev eth1", "ip link set eth1 up", "ip link set eth0 up",
		},
		"no address":         {"ether eth0", "ip link set eth0 up"},
		"turned off":         {"ether eth0", "ip addr add 10.1.0.2/24 dev eth0"},
		"IPv6 only":          {"ether eth0", "ip link set eth0 up", "ip addr add fd01::2/64 dev eth0 nodad", "ip route add default via fd01::1"},
		"IPv6 turned off":    {"ether eth0", "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1", "ip link set eth0 up", "ip addr add 10.1.0.2/24 dev eth0"},
		"no IPv6 of its own": {"ether eth0", "ip link set eth0 addrgenmode none", "ip link set eth0 up", "ip addr add 10.1.0.2/24 dev eth0"},
		"MTU 1280":           {"ether eth0 mtu 1280", "ip link set eth0 up", "ip addr add 10.1.0.2/24 dev eth0", "ip addr add fd01::2/64 dev eth0 nodad"},
		"MTU 9000":           {"ether eth0 mtu 9000", "ip link set eth0 up", "ip addr add 10.1.0.2/24 dev eth0"},
		"addresses": {
			"ether eth0", "ip link set eth0 up", "ip addr add 10.1.0.2/24 brd + dev eth0", "ip addr add 10.1.0.3/24 dev eth0 label eth0:1",
			"ip addr add 10.3.0.1 peer 10.3.0.2/32 dev eth0", "ip addr add 10.4.0.1/24 dev eth0 noprefixroute", "ip addr add 10.5.0.1/24 dev eth0 metric 50",
			"ip addr add 10.6.0.1/24 dev eth0 scope link", "ip addr add fd01::2/64 dev eth0 nodad", "ip addr add fd02::2/128 dev eth0 nodad noprefixroute",
			"ip addr add 127.0.0.53/8 dev lo", "ip addr add 10.9.9.9/32 dev lo",
		},
		"routes": {
			"ether eth0", "ether eth1", "ip link set eth0 up", "ip link set eth1 up",
			"ip addr add 10.1.0.2/24 dev eth0", "ip addr add 10.2.0.2/24 dev eth1", "ip addr add fd01::2/64 dev eth0 nodad",
			"ip route add default via 10.1.0.1 metric 100", "ip route add default via 10.2.0.1 metric 200", "ip route add 10.3.0.0/16 via 10.3.9.9 dev eth0 onlink",
			"ip route add 10.4.0.0/16 via 10.1.0.1 src 10.1.0.2 mtu 1300", "ip route add blackhole 10.6.0.0/16", "ip route add unreachable 10.7.0.0/16", "ip route add 10.8.0.0/16 dev eth1 scope link proto static",
			"ip route add fd03::/64 via fd01::9", "ip route add default via fe80::1 dev eth0", "ip route add unreachable fd04::/64",
			"ip route add fd05::/64 nexthop via fd01::7 nexthop via fd01::8", "ip route del 10.2.0.0/24", "ip route add 10.2.0.0/25 dev eth1",
			"ip route add default via 10.1.0.1 table 100", "ip -6 route add default via fd01::1 table 100",
			"ip rule add from 10.1.0.2 lookup 100", "ip -6 rule add from fd01::2 lookup 100 priority 1000",
		},
		"several gateways": {
			"ether eth0", "ether eth1", "ip link set eth0 up", "ip link set eth1 up", "ip addr add 10.1.0.2/24 dev eth0", "ip addr add 10.2.0.2/24 dev eth1",
			"ip route add 10.5.0.0/16 nexthop via 10.1.0.8 weight 3 nexthop via 10.2.0.8",
		},
		"neighbours": {
			"ether eth0", "ip link set eth0 up", "ip addr add 10.1.0.2/24 dev eth0", "ip addr add fd01::2/64 dev eth0 nodad",
			"ip neigh add 10.1.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent", "ip neigh add fd01::9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
			"ip neigh add proxy 10.1.0.77 dev eth0", "ip neigh add 10.1.0.10 lladdr 02:00:00:00:00:10 dev eth0 nud stale",
		},
		"the same MAC address twice": {
			"ether eth0 address 02:00:00:00:00:01", "ether eth1 address 02:00:00:00:00:01",
			"ip link set eth0 up", "ip link set eth1 up", "ip addr add 10.1.0.2/24 dev eth0", "ip addr add 10.2.0.2/24 dev eth1",
		},
		"no ARP": {"ether eth0", "ip link set eth0 arp off up", "ip addr add 10.1.0.2/24 dev eth0"},
	}
}
