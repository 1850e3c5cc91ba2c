package e2e

import (
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
