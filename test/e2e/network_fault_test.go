package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/state"
)

// TestNetworkOfDeadOwner: whatever moment an owner is killed at, deleting its container leaves the namespace as it was,
// and the next one can have it.
func TestNetworkOfDeadOwner(t *testing.T) {
	begin(t)
	const id = "netless"
	s := newSpace(t, "ip link set lo up").with("ether eth0", "ip link set eth0 up", "ether eth1", "ip link set eth1 up").settled()
	s.untouched()
	t.Run("running", func(t *testing.T) {
		begin(t)
		remove(t, id)
		s.sub(t).untouched()
		c := husk(t, "run", "--name", id, "--network", "ns:"+s.path, demo, "sh", "-c", "echo up; exec sleep 1000").start()
		c.prints("up\n")
		kill9(t, record(t, id).Owner.PID)
		if r := c.wait(); r.code != 137 {
			t.Errorf("exit code %d, want 137: %s", r.code, r.stderr)
		}
		husk(t, "delete", "--force", id).ok()
	})
	for _, delay := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 200 * time.Millisecond} {
		t.Run("after "+delay.String(), func(t *testing.T) {
			begin(t)
			remove(t, id)
			s.sub(t).untouched()
			c := husk(t, "run", "--name", id, "--network", "ns:"+s.path, demo, "sleep", "1000").start()
			until(t, "there is a tap", patience, func() bool { return strings.Contains(s.run("ip -o link"), ": husk-") })
			time.Sleep(delay)
			dir, err := state.Open(env.run, id)
			if err != nil {
				t.Fatal(err)
			}
			r, err := dir.Load()
			if err != nil {
				t.Fatal(err)
			}
			kill9(t, r.Owner.PID)
			c.wait()
			husk(t, "delete", "--force", id).ok()
		})
	}
	husk(t, "run", "--rm", "--network", "ns:"+s.path, demo, "ip", "link", "show", "eth0").ok()
}

// sub is the namespace for a part of its test.
func (s *space) sub(t *testing.T) *space { return &space{t: t, pid: s.pid, path: s.path} }

// TestNetworkOfFailure: what a container that could not be made has changed is undone.
func TestNetworkOfFailure(t *testing.T) {
	begin(t)
	s := newSpace(t).with("ether eth0", "ip link set eth0 up").settled().untouched()
	husk(t, "run", "--rm", "--network", "ns:"+s.path, demo, "no-such-program").fails(127, "no-such-program")
}

// TestNetworkInUse: a namespace whose interfaces one VM has is not given to another.
func TestNetworkInUse(t *testing.T) {
	begin(t)
	s := newSpace(t).with("ether eth0", "ip link set eth0 up").settled().untouched()
	remove(t, "first")
	c := husk(t, "run", "--rm", "--name", "first", "--network", "ns:"+s.path, demo, "sh", "-c", "echo up; exec sleep 1000").start()
	c.prints("up\n")
	husk(t, "run", "--rm", "--network", "ns:"+s.path, demo, "true").fails(125, "belongs to another virtual machine")
	if out := s.run("tc filter show dev eth0 ingress"); !strings.Contains(out, "husk-") {
		t.Errorf("the first one has lost its packets: %q", out)
	}
	husk(t, "kill", "first", "KILL").ok()
	c.wait()
	husk(t, "run", "--rm", "--network", "ns:"+s.path, demo, "true").ok()
}

// TestNetworkVanishes: a container outlives its interface and its namespace.
func TestNetworkVanishes(t *testing.T) {
	begin(t)
	const id = "lost"
	for _, c := range []struct {
		name string
		do   func(s *space)
	}{
		{"interface", func(s *space) { s.run("ip link del eth0") }},
		{"namespace", func(s *space) { kill9(s.t, s.pid) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin(t)
			s := newSpace(t).with("ether eth0", "ip link set eth0 up").settled()
			husk(t, "run", "-d", "--name", id, "--network", "ns:"+s.path, demo, "sleep", "1000").ok()
			remove(t, id)
			c.do(s)
			if out := husk(t, "exec", id, "echo", "alive").ok(); out != "alive\n" {
				t.Errorf("the container printed %q", out)
			}
			if r := husk(t, "delete", "--force", id).run(); r.code != 0 || r.stderr != "" {
				t.Errorf("delete: exit code %d, %q", r.code, r.stderr)
			}
		})
	}
}

// TestNetworkFlag: networks that there are not.
func TestNetworkFlag(t *testing.T) {
	begin(t)
	for network, words := range map[string][]string{
		"ns:/no/such/namespace": {"/no/such/namespace"},
		"ns:/dev/null":          {"/dev/null", "namespace"},
		"ns:/proc/self/ns/net":  {"cannot have the host's network"},
		"ns:":                   {"none, user or ns:PATH"},
		"host":                  {"cannot have the host's network"},
		"bridge":                {"none, user or ns:PATH"},
	} {
		husk(t, "run", "--rm", "--network", network, demo, "true").fails(125, words...)
	}
	husk(t, "run", "--rm", "--network", "none", demo, "true").ok()
}

// TestNetworkRates: what goes each way takes as long as the rate that it is limited to makes it; an interface that has
// been given a limit of its own cannot have another, and nothing is changed of it.
func TestNetworkRates(t *testing.T) {
	begin(t)
	probe := probe(t)
	l := newLAN(t, 1500)
	begun(t, l.host.command(probe, "serve", "7")).prints("serving\n")
	const script = "cat /proc/uptime; /probe tcp 10.77.0.1:7 600000; cat /proc/uptime"
	for key, least := range map[string]float64{"nic_ingress_bps": 1.5, "nic_egress_bps": 1.5} { // 600,000 bytes less a burst of 128 KiB, at 2 Mbit/s: 1.9 s
		out := with(t, []string{key + " = 2000000"}, "run", "--rm", "--network", "ns:"+l.one.path, "-v", probe+":/probe:ro", demo, "sh", "-ec", script).ok()
		var before, after, idle float64
		var said string
		if _, err := fmt.Sscanf(out, "%f %f\nsame tcp %s\n%f", &before, &idle, &said, &after); err != nil {
			t.Fatalf("the container printed %q: %v", out, err)
		}
		if took := after - before; took < least || took > 20*least {
			t.Errorf("%s: 600,000 bytes took %.2f s", key, took)
		}
	}
	l.two.run("tc qdisc add dev eth0 root handle 7: pfifo")
	with(t, []string{"nic_egress_bps = 2000000"}, "run", "--rm", "--network", "ns:"+l.two.path, demo, "true").fails(125, "eth0", "queueing discipline of its own")
	with(t, []string{"nic_egress_bps = 2000000"}, "run", "--rm", "--network", "user", demo, "true").fails(125, "no limits of rates")
	with(t, []string{"nic_egress_bps = 200"}, "run", "--rm", demo, "true").fails(125, "nic_egress_bps", "64000")
	l.two.run("tc qdisc del dev eth0 root")
}

// TestNetworkPolicy: rules of the host on its end of a veth hold for the guest, which cannot go around them.
func TestNetworkPolicy(t *testing.T) {
	begin(t)
	for _, c := range []struct{ by, rule, undo string }{
		{
			"iptables", "iptables -A INPUT -i cni0 -p tcp --dport 8 -j REJECT --reject-with tcp-reset",
			"iptables -D INPUT -i cni0 -p tcp --dport 8 -j REJECT --reject-with tcp-reset",
		},
		{
			"nftables", "nft 'add table inet ruled { chain arriving { type filter hook input priority 0; iifname cni0 tcp dport 8 reject with tcp reset; }; }'",
			"nft delete table inet ruled",
		},
		{ // before the bridge sees a frame
			"nftables on the veth", "nft \"add table netdev ruled { chain arriving { type filter hook ingress device $veth priority 0; tcp dport 8 drop; }; }\"",
			"nft delete table netdev ruled",
		},
	} {
		t.Run(c.by, func(t *testing.T) {
			begin(t)
			probe := probe(t)
			l := newLAN(t, 1500)
			begun(t, l.host.command(probe, "serve", "7")).prints("serving\n")
			begun(t, l.host.command(probe, "serve", "8")).prints("serving\n")
			try := func(id string) string {
				const script = "for port in 7 8; do timeout 20 /probe tcp 10.77.0.1:$port 1000 || echo refused; done"
				return on(t, l.one, probe)(id, script).ok()
			}
			number := l.one.run(`ip -o link show eth0 | sed 's/.*@if\([0-9]*\):.*/\1/'`)
			l.host.run("veth=$(ip -o link | sed -n 's/^"+strings.TrimSpace(number)+`: \([^@:]*\)@.*/\1/p')`, c.rule)
			if out := try("ruled"); out != "same tcp 1000\nrefused\n" {
				t.Errorf("under the rule the container printed %q", out)
			}
			l.host.run(c.undo)
			if out := try("free"); out != "same tcp 1000\nsame tcp 1000\n" {
				t.Errorf("without the rule the container printed %q", out)
			}
		})
	}
}
