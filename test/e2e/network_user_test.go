package e2e

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// uplink is a machine of a test's own, as user-mode networking needs one, and what is behind its network.
func uplink(t *testing.T) (machine, beyond *space) {
	t.Helper()
	if _, err := exec.LookPath("passt"); err != nil {
		t.Skipf("%v (make setup installs it)", err)
	}
	machine = newSpace(t, "ip link set lo up")
	return machine, machine.uplink()
}

// uplink connects the machine that a namespace is with another.
func (machine *space) uplink() (beyond *space) {
	beyond = newSpace(machine.t, "ip link set lo up")
	machine.run("ip link add up0 type veth peer name w0 netns "+strconv.Itoa(beyond.pid), "ip link set up0 up", "ip addr add 10.90.0.2/24 dev up0")
	beyond.run("ip link set w0 up", "ip addr add 10.90.0.1/24 dev w0")
	machine.run("ip route add default via 10.90.0.1")
	machine.settled()
	return beyond
}

// husk is a husk command on the machine that a namespace is.
func (s *space) husk(config string, args ...string) *running {
	cmd := s.command(append([]string{env.binary, "--config", config}, args...)...)
	return begun(s.t, cmd)
}

// TestNetworkUser: a container on user-mode networking reaches what its machine reaches, but for the machine's own
// loopback, and is reached by the ports that it publishes.
func TestNetworkUser(t *testing.T) {
	begin(t)
	m, beyond := uplink(t)
	probe := probe(t)
	begun(t, beyond.command(probe, "serve", "7")).prints("serving\n")
	begun(t, m.command(probe, "serve", "9")).prints("serving\n") // on all of the machine's addresses
	remove(t, "user")
	c := m.husk(env.config, "run", "--name", "user", "--network", "user", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "5000:80/udp",
		"-v", probe+":/probe:ro", demo, "sh", "-ec", `/probe tcp 10.90.0.1:7 2000000; /probe udp 10.90.0.1:7 1000
		for a in 10.0.2.2 127.0.0.1 10.0.2.15; do ! timeout 3 /probe tcp $a:9 1 || echo reached $a; done; exec /probe serve 80`)
	c.prints("serving\n")
	for _, want := range []string{"same tcp 2000000\n", "same udp 1000\n"} {
		c.prints(want)
	}
	if out := c.stdout.String(); strings.Contains(out, "reached") {
		t.Errorf("the container reaches what listens on its machine's loopback: %s", out)
	}
	m.run(probe+" tcp 127.0.0.1:8080 300000", probe+" tcp 127.0.0.1:8081 300000")
	beyond.run(probe+" tcp 10.90.0.2:8080 300000", probe+" udp 10.90.0.2:5000 1000")
	if r := begun(t, beyond.command("timeout", "3", probe, "tcp", "10.90.0.2:8081", "1")).wait(); r.code == 0 {
		t.Error("a port of the loopback is reached from outside")
	}
	// A port can be taken once.
	r := m.husk(env.config, "run", "--rm", "--network", "user", "-p", "8080:80", demo, "true").wait()
	if r.code != 125 || !strings.Contains(r.stderr, "passt") {
		t.Errorf("a taken port: exit code %d, %q", r.code, r.stderr)
	}
	husk(t, "kill", "user", "KILL").ok()
	c.wait()
}

// TestNetworkUserEnds: passt, the VM and the owner end together, whoever dies first.
func TestNetworkUserEnds(t *testing.T) {
	begin(t)
	m, _ := uplink(t)
	for name, code := range map[string]int{"passt": 137, "owner": 137, "vmm": 137} {
		t.Run(name, func(t *testing.T) {
			begin(t)
			remove(t, "usermode")
			c := m.sub(t).husk(env.config, "run", "--name", "usermode", "--network", "user", demo, "sh", "-c", "echo up; exec sleep 1000")
			c.prints("up\n")
			passt := helper(t, "usermode", "passt")
			switch name {
			case "owner":
				kill9(t, record(t, "usermode").Owner.PID)
			default:
				kill9(t, helper(t, "usermode", name))
			}
			if r := c.wait(); r.code != code || name == "passt" && !strings.Contains(r.stderr, "user-mode networking ended") {
				t.Errorf("exit code %d, %q, want %d", r.code, r.stderr, code)
			}
			until(t, "passt has ended", 10*time.Second, func() bool {
				line, _ := os.ReadFile("/proc/" + strconv.Itoa(passt) + "/cmdline") // empty when it is dead
				return len(line) == 0
			})
		})
	}
}

// TestNetworkUserOfBundle: a configuration without a network namespace gets user-mode networking where that is
// allowed, and its ports from an annotation.
func TestNetworkUserOfBundle(t *testing.T) {
	begin(t)
	m, _ := uplink(t)
	probe := probe(t)
	b := newBundle(t, "exec /probe serve 80").ownRoot().bind(probe, "/probe")
	var kept []specs.LinuxNamespace
	for _, ns := range b.spec.Linux.Namespaces {
		if ns.Type != specs.NetworkNamespace {
			kept = append(kept, ns)
		}
	}
	b.spec.Linux.Namespaces = kept
	if r := b.run(); r.code == 0 || !strings.Contains(r.stderr, "host_network") {
		t.Errorf("exit code %d, %q, want that it is refused", r.code, r.stderr)
	}
	b.spec.Annotations = map[string]string{"dev.husk.publish": "8080:80, 8081:80/udp"}
	b.write()
	config := configured(t, `host_network = "user"`, `annotations = ["publish"]`)
	remove(t, "bundled")
	c := m.husk(config, "run", "--bundle", b.dir, "bundled")
	c.prints("serving\n")
	m.run(probe + " tcp 127.0.0.1:8080 1000")
	husk(t, "kill", "bundled", "KILL").ok()
	c.wait()
}

// TestNetworkUserFlags: what makes no sense is refused before anything is made.
func TestNetworkUserFlags(t *testing.T) {
	begin(t)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"--network", "none", "-p", "80:80"}, "--network user"},
		{[]string{"--network", "user", "-p", "80"}, "must be [ADDRESS:]HOST:GUEST"},
		{[]string{"--network", "user", "-p", "0:80"}, "must be [ADDRESS:]HOST:GUEST"},
		{[]string{"--network", "user", "-p", "80:80/sctp"}, "must be [ADDRESS:]HOST:GUEST"},
		{[]string{"--network", "user", "-p", "here:80:80"}, "must be [ADDRESS:]HOST:GUEST"},
	} {
		husk(t, append(append([]string{"run", "--rm"}, c.args...), demo, "true")...).fails(125, c.says)
	}
}

// TestNetworkUserWithoutRoot: an ordinary user's container reaches, and is reached, without any right.
func TestNetworkUserWithoutRoot(t *testing.T) {
	begin(t)
	if _, err := exec.LookPath("passt"); err != nil {
		t.Skipf("%v (make setup installs it)", err)
	}
	n := newOrdinary(t)
	m := &space{t: t, pid: n.pid, path: "/proc/" + strconv.Itoa(n.pid) + "/ns/net"}
	beyond := m.uplink()
	probe := probe(t)
	begun(t, beyond.command(probe, "serve", "7")).prints("serving\n")
	data := content(t, probe)
	if err := os.WriteFile(n.dir+"/demo/probe", []byte(data), 0o755); err != nil {
		t.Fatal(err)
	}
	r := n.run("husk", `echo 'template = "off"' >off.toml; h() { husk --config $D/off.toml "$@"; }; h import --cmd sh $D/demo demo >/dev/null && h run -d --name a --network user -p 8080:80 demo sh -c '/probe tcp 10.90.0.1:7 1000; exec /probe serve 80'
		i=0; until h logs a | grep serving || [ $((i+=1)) = 100 ]; do sleep 0.2; done; h logs a`)
	expect(t, "output", r.stdout, "a\nserving\nsame tcp 1000\nserving\n")
	m.run(probe + " tcp 127.0.0.1:8080 1000")
	beyond.run(probe + " tcp 10.90.0.2:8080 1000")
	n.run("husk", "h() { husk --config $D/off.toml \"$@\"; }; h kill a KILL; i=0; until h state a | grep -q stopped || [ $((i+=1)) = 100 ]; do sleep 0.1; done; h delete a")
}
