package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// on runs a container of the demo's root in a namespace, with the probe in /probe.
func on(t *testing.T, s *space, probe string, flags ...string) func(id, script string) *command {
	return func(id, script string) *command {
		args := append([]string{"run", "--rm", "--name", id, "--network", "ns:" + s.path, "-v", probe + ":/probe:ro"}, flags...)
		return husk(t, append(args, demo, "sh", "-c", script)...)
	}
}

// lan is a bridge in a namespace of its own with two more namespaces on it, all made by CNI.
type lan struct{ host, one, two *space }

func newLAN(t *testing.T, mtu int) lan {
	t.Helper()
	l := lan{newSpace(t, "ip link set lo up"), newSpace(t, "ip link set lo up"), newSpace(t, "ip link set lo up")}
	config := fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "net", "type": "bridge", "bridge": "cni0", "isGateway": true, "mtu": %d, %s}`,
		mtu, hostLocal(t.TempDir(), "10.77.0.0/24", "fd77::/64"))
	for _, s := range []*space{l.one, l.two} {
		l.host.attach(s, "eth0", "bridge", config)
		s.settled().untouched()
	}
	// A bridge that snoops on memberships learns of its own late on a busy machine, and until then withholds from itself
	// who asks for its IPv6 addresses.
	l.host.run("echo 0 >/sys/class/net/cni0/bridge/multicast_snooping || ip link set cni0 type bridge mcast_snooping 0")
	l.host.settled()
	return l
}

// TestNetworkTraffic sends data between two containers and between one and the host's part of their network: large and
// small, by TCP and UDP, IPv4 and IPv6, over cards with one queue and with several.
func TestNetworkTraffic(t *testing.T) {
	begin(t)
	for _, c := range []struct {
		mtu  int
		cpus string
	}{{1500, "1"}, {1280, "2"}, {9000, "2"}} {
		t.Run(fmt.Sprintf("MTU %d, %s processors", c.mtu, c.cpus), func(t *testing.T) {
			begin(t)
			probe := probe(t)
			l := newLAN(t, c.mtu)
			remove(t, "server")
			server := on(t, l.one, probe, "--cpus", c.cpus)("server", "exec /probe serve 7").start()
			server.prints("serving\n")
			gateway := begun(t, l.host.command(probe, "serve", "7"))
			gateway.prints("serving\n")

			var script []string
			for _, to := range []string{"10.77.0.1", "10.77.0.2", "[fd77::1]", "[fd77::2]"} {
				script = append(script, "/probe tcp "+to+":7 20000000", "/probe udp "+to+":7 1", "/probe udp "+to+":7 60000",
					"ping -c 1 -W 20 -s 30000 "+strings.Trim(to, "[]")+" >/dev/null", "echo reached "+to)
			}
			out := on(t, l.two, probe, "--cpus", c.cpus)("client", "set -e\n"+strings.Join(script, "\n")+"\ncat /sys/class/net/eth0/mtu").ok()
			for _, to := range []string{"10.77.0.1", "10.77.0.2", "[fd77::1]", "[fd77::2]"} {
				if !strings.Contains(out, "reached "+to) {
					t.Errorf("%s was not reached: %s", to, out)
				}
			}
			if !strings.HasSuffix(out, fmt.Sprintf("\n%d\n", c.mtu)) {
				t.Errorf("the container's MTU is not %d: %s", c.mtu, out)
			}
			l.host.run(probe+" tcp 10.77.0.2:7 5000000", probe+" tcp [fd77::2]:7 5000000", probe+" udp 10.77.0.2:7 9000",
				"busybox ping -q -c 1 -W 20 -s "+fmt.Sprint(c.mtu-28)+" 10.77.0.2")
			husk(t, "kill", "server", "KILL").ok()
			server.wait()
		})
	}
}

// TestNetworkIsTheGuests: the host's own stack in the namespace, which has the same addresses, answers nothing while
// the guest runs.
func TestNetworkIsTheGuests(t *testing.T) {
	begin(t)
	probe := probe(t)
	l := newLAN(t, 1500)
	remove(t, "quiet")
	inside := begun(t, l.one.command(probe, "serve", "7")) // what the namespace's stack would connect to
	inside.prints("serving\n")
	l.host.run(probe + " tcp 10.77.0.2:7 100")
	c := on(t, l.one, probe)("quiet", "echo up; exec sleep 1000").start()
	c.prints("up\n")
	for _, address := range []string{"10.77.0.2:7", "[fd77::2]:7"} {
		r := begun(t, l.host.command(probe, "tcp", address, "100")).wait()
		if r.code != 1 || !strings.Contains(r.stderr, "connection refused") {
			t.Errorf("%s: exit code %d, %s%s; want that the guest refuses it", address, r.code, r.stdout, r.stderr)
			guest := husk(t, "exec", "quiet", "sh", "-c", "busybox ip addr; busybox ip -6 route; cat /proc/net/snmp6 /proc/net/dev").run()
			t.Logf("the guest has:\n%s%s\nthe host's side has:\n%s", guest.stdout, guest.stderr, l.host.run("ip -6 neigh", "ip -6 addr", "ip -6 route", "ip -s link"))
		}
	}
	l.host.run("ip neigh flush all", "busybox ping -q -c 3 -W 20 10.77.0.2", "busybox ping -q -c 3 -W 20 fd77::2")
	out := l.host.run("busybox ping -c 4 -i 0.2 -W 5 10.77.0.2", "busybox ping -c 4 -i 0.2 -W 5 fd77::2")
	if strings.Contains(out, "DUP") || strings.Count(out, " 0% packet loss") != 2 {
		t.Errorf("not every ping has one answer: %s", out)
	}
	husk(t, "kill", "quiet", "KILL").ok()
	c.wait()
	l.host.run(probe + " tcp 10.77.0.2:7 100") // the interface is the namespace's again
}

// TestNetworkFiles: what engines give a container for names arrives.
func TestNetworkFiles(t *testing.T) {
	begin(t)
	b := newBundle(t, "cat /etc/resolv.conf /etc/hosts; hostname; sysctl -n net.ipv4.ip_forward net.ipv6.conf.eth0.accept_ra").ownRoot()
	b.bind(file(t, "nameserver 10.77.0.1\n"), "/etc/resolv.conf").bind(file(t, "10.77.0.9 other\n"), "/etc/hosts")
	b.spec.Hostname = "named"
	b.spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "net.ipv6.conf.eth0.accept_ra": "0"}
	b.in(newSpace(t).with("ether eth0", "ip link set eth0 up"))
	if r := b.run(); r.code != 0 || r.stdout != "nameserver 10.77.0.1\n10.77.0.9 other\nnamed\n1\n0\n" {
		t.Errorf("exit code %d, %q, %s", r.code, r.stdout, r.stderr)
	}
}

// TestNetworkOfHooks: interfaces that a hook sets up in the network namespace of the process it is told of, as
// Docker's does, are the container's.
func TestNetworkOfHooks(t *testing.T) {
	begin(t)
	peer := newSpace(t)
	script := fmt.Sprintf(`pid=$(sed 's/.*"pid": *\([0-9]*\).*/\1/')
		exec nsenter --net=/proc/%d/ns/net sh -ec "
			ip link add eth0 type veth peer name p0
			ip addr add 10.8.0.1/24 dev p0
			ip link set p0 up
			ip link set eth0 netns $pid
			nsenter --net=/proc/$pid/ns/net ip addr add 10.8.0.2/24 dev eth0
			nsenter --net=/proc/$pid/ns/net ip link set eth0 up"`, peer.pid)
	b := newBundle(t, "ping -q -c 1 -W 20 10.8.0.1 >/dev/null && echo reached; exec sleep 1000")
	b.spec.Hooks = &specs.Hooks{Prestart: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: os.Environ()}}} //nolint:staticcheck // Docker uses it
	b.raw().up().printed("reached")
}
