package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sight prints what somebody in a network namespace sees of it: interfaces, addresses and routes, less what is husk's
// own and what kernels list differently.
const sight = `busybox ip -o link | awk '{sub(/[@:].*/, "", $2); for (i = 4; i < NF; i++) if ($i ~ /^link/) print "link", $2, $3 ~ /[<,]UP[,>]/ ? "up" : "down", $5, $(i+1)}' | grep -v 'link husk-' | sort
	busybox ip -o addr | sed -n 's/^[0-9]*: \([^ ]*\) *\(inet6* [^ ]*\).*/\1 \2/p' | sort
	busybox ip route; busybox ip -6 route | grep -v -e '^::1' -e fe80 -e ff00 | sed 's/  *metric 1024.*//; s/ *metric 256.*//' | sort
	busybox ip neigh | grep PERMANENT || :`

// follows runs commands in the namespace of a container and waits until the container sees what there is then.
func (s *space) follows(id string, commands ...string) {
	s.t.Helper()
	s.run(commands...)
	var want, got string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		want, got = s.run(sight), husk(s.t, "exec", id, "sh", "-c", sight).ok()
		if got == want {
			return
		}
	}
	s.t.Errorf("after %q the container sees\n%s\nwhat there is:\n%s\nits owner says: %s", commands, got, want,
		content(s.t, filepath.Join(env.run, id, "owner.log")))
}

// TestNetworkFollows changes the network of a container that runs.
func TestNetworkFollows(t *testing.T) {
	begin(t)
	peer := newSpace(t)
	s := newSpace(t, "ip link set lo up")
	ether := func(name string) string {
		return fmt.Sprintf("ip link add %s type veth peer name p-%s netns %d", name, name, peer.pid)
	}
	s.run(ether("eth0"), "ip link set eth0 addrgenmode none up", "ip addr add 10.1.0.2/24 dev eth0", "ip route add default via 10.1.0.1")
	peer.run("ip link set p-eth0 up", "ip addr add 10.1.0.1/24 dev p-eth0")
	s.settled()
	id := detach(t, "follower", "--network", "ns:"+s.path, demo, "sleep", "1000")
	s.follows(id)
	s.follows(id, ether("eth1"))
	peer.run("ip link set p-eth1 up", "ip addr add 10.2.0.1/24 dev p-eth1")
	s.follows(id, "ip link set eth1 addrgenmode none mtu 1400 up", "ip addr add 10.2.0.2/24 dev eth1", "ip -6 addr add fd02::2/64 dev eth1 nodad")
	peer.run("busybox ping -q -c 1 -W 20 10.2.0.2")
	s.follows(id, "ip addr add 10.1.0.9/24 dev eth0", "ip route add 10.7.0.0/16 via 10.2.0.1", "ip neigh add 10.2.0.7 lladdr 02:00:00:00:00:07 dev eth1 nud permanent")
	s.follows(id, "ip addr del 10.1.0.9/24 dev eth0", "ip route del 10.7.0.0/16", "ip neigh del 10.2.0.7 dev eth1", "ip link set eth1 mtu 9000")
	// What the container has set up itself is its own.
	husk(t, "shell", id, "sh", "-c", "busybox ip addr add 10.66.0.1/24 dev eth1 && busybox ip route add 10.67.0.0/24 dev eth1").ok()
	s.run("ip addr add 10.1.0.8/24 dev eth0")
	until(t, "the address is there", 30*time.Second, func() bool {
		return strings.Contains(husk(t, "exec", id, "busybox", "ip", "addr").ok(), "10.1.0.8/24")
	})
	if out := husk(t, "exec", id, "sh", "-c", "busybox ip addr; busybox ip route").ok(); !strings.Contains(out, "10.66.0.1/24") || !strings.Contains(out, "10.67.0.0/24") {
		t.Errorf("what the container had set up is gone: %s", out)
	}
	husk(t, "shell", id, "sh", "-c", "busybox ip addr del 10.66.0.1/24 dev eth1 && busybox ip route del 10.67.0.0/24 dev eth1").ok()
	s.follows(id, "ip addr del 10.1.0.8/24 dev eth0", "ip link set eth1 down")
	s.follows(id, "ip link set eth1 name net1", "ip link set net1 address 02:00:00:00:00:11 up", "ip addr replace 10.2.0.2/24 dev net1", "ip -6 addr flush dev net1")
	peer.run("busybox ping -q -c 1 -W 20 10.2.0.2")
	s.follows(id, fmt.Sprintf("ip link set net1 netns %d", peer.pid))
	peer.run("ip link del net1")
	// One that takes the place of another, and one that is there from the start.
	s.follows(id, ether("eth1"), "ip link del eth1", ether("eth1"), "ip link set eth1 addrgenmode none up", "ip addr add 10.3.0.2/24 dev eth1")
	s.follows(id, "ip link del eth0")
	s.follows(id, ether("eth0"), "ip link set eth0 addrgenmode none up", "ip addr add 10.1.0.2/24 dev eth0", "ip route add default via 10.1.0.1")
	peer.run("ip link set p-eth0 up", "ip addr replace 10.1.0.1/24 dev p-eth0", "busybox ping -q -c 1 -W 20 10.1.0.2")
	for i := range 10 {
		name := fmt.Sprintf("n%d", i)
		s.follows(id, "ip link del eth1", ether("eth1"), "ip link set eth1 addrgenmode none up", "ip addr add 10.3.0.2/24 dev eth1",
			ether(name), "ip link set "+name+" addrgenmode none up")
		s.follows(id, "ip link del "+name)
	}
	// One with the address of another.
	s.follows(id, ether("eth2"), "ip link set eth2 address $(cat /sys/class/net/eth0/address) addrgenmode none up", "ip addr add 10.4.0.2/24 dev eth2")
	s.follows(id, "ip link del eth2")
	s.follows(id, "ip link del eth1")
	if out := s.run("ip -o link"); strings.Count(out, "husk-") != 1 {
		t.Errorf("the VM has one card: %s", out)
	}
	husk(t, "kill", id, "KILL").ok()
	until(t, "nothing of the VM is left", 30*time.Second, func() bool {
		left := s.run("ip -o link; tc qdisc")
		return !strings.Contains(left, "husk-") && !strings.Contains(left, "ingress")
	})
}

// TestNetworkFollowsBeyond: more than fits, and what no card can stand for, is told and harms nothing.
func TestNetworkFollowsBeyond(t *testing.T) {
	begin(t)
	log := func(id string) string { return content(t, filepath.Join(env.run, id, "owner.log")) }
	says := func(id, what string) {
		t.Helper()
		until(t, "the owner says "+what, 30*time.Second, func() bool { return strings.Contains(log(id), what) })
	}
	s := newSpace(t, "ip link set lo up").with("ether eth0", "ip link set eth0 addrgenmode none up", "ip addr add 10.1.0.2/24 dev eth0").settled().untouched()
	id := detach(t, "beyond", "--network", "ns:"+s.path, demo, "sleep", "1000")
	s.with("ip link add on0 link eth0 type macvlan")
	says(id, "on0 is on top of eth0")
	s.follows(id, "ip link del on0", "ip addr add 10.1.0.3/24 dev eth0")
	var more, less []string
	for i := range 9 {
		more = append(more, fmt.Sprintf("ether m%d", i))
		less = append(less, fmt.Sprintf("ip link del m%d", i))
	}
	s.with(more...)
	says(id, "more than 8 devices")
	s.follows(id, append(less, "ip addr del 10.1.0.3/24 dev eth0")...)
	husk(t, "kill", id, "KILL").ok()
}

// TestNetworkFollowsNot: a machine without places for more cards says so, and still follows addresses.
func TestNetworkFollowsNot(t *testing.T) {
	begin(t)
	s := newSpace(t, "ip link set lo up").with("ether eth0", "ip link set eth0 addrgenmode none up", "ip addr add 10.1.0.2/24 dev eth0").settled().untouched()
	const id = "fixed"
	remove(t, id)
	with(t, []string{`machine = "microvm"`}, "run", "-d", "--name", id, "--network", "ns:"+s.path, demo, "sleep", "1000").ok()
	s.follows(id, "ip addr add 10.1.0.3/24 dev eth0")
	s.with("ether eth1")
	until(t, "the owner says why", 30*time.Second, func() bool {
		return strings.Contains(content(t, filepath.Join(env.run, id, "owner.log")), "needs machine q35")
	})
	s.follows(id, "ip link del eth1", "ip addr del 10.1.0.3/24 dev eth0")
	husk(t, "kill", id, "KILL").ok()
}

// TestNetworkFollowsToTheEnd kills owners while interfaces come.
func TestNetworkFollowsToTheEnd(t *testing.T) {
	begin(t)
	const id = "cut"
	s := newSpace(t, "ip link set lo up").with("ether eth0", "ip link set eth0 addrgenmode none up").settled()
	for _, delay := range []time.Duration{0, 30 * time.Millisecond, 60 * time.Millisecond, 150 * time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			begin(t)
			s := s.sub(t).untouched()
			detach(t, id, "--network", "ns:"+s.path, demo, "sleep", "1000")
			s.run("ip link add eth1 type bridge", "ip link set eth1 up", "ip link add eth2 type bridge")
			time.Sleep(delay)
			kill9(t, record(t, id).Owner.PID)
			husk(t, "delete", "--force", id).ok()
			s.run("ip link del eth1", "ip link del eth2")
		})
	}
}
