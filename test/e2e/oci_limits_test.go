package e2e

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// limited is a bundle with limits whose container sees its own cgroup at /sys/fs/cgroup.
func limited(t *testing.T, script string) *bundle {
	b := newBundle(t, script)
	memory, quota, period, pids, shares := int64(64<<20), int64(50_000), uint64(100_000), int64(30), uint64(512)
	b.spec.Linux.Resources = &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &memory},
		CPU:    &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares},
		Pids:   &specs.LinuxPids{Limit: &pids},
	}
	return b
}

// cgroup reads one of the container's cgroup files in the guest.
func (c *box) cgroup(name string) string {
	c.t.Helper()
	return strings.TrimSpace(c.exec("cat /sys/fs/cgroup/" + name))
}

// TestLimits: the limits of config.json are the guest cgroup's, update changes them, and they hold.
func TestLimits(t *testing.T) {
	begin(t)
	c := limited(t, "exec sleep 1000").up()
	expect(t, "memory.max", c.cgroup("memory.max"), "67108864")
	expect(t, "cpu.max", c.cgroup("cpu.max"), "50000 100000")
	expect(t, "pids.max", c.cgroup("pids.max"), "30")
	// runc's conversion of shares to a weight: 1 + (shares - 2) * 9999 / 262142.
	expect(t, "cpu.weight", c.cgroup("cpu.weight"), "20")

	husk(t, "update", "--memory", "80m", "--pids-limit", "20", "--cpu-quota", "30000", "--cpu-period", "60000", c.id).ok()
	expect(t, "memory.max after update", c.cgroup("memory.max"), "83886080")
	expect(t, "pids.max after update", c.cgroup("pids.max"), "20")
	expect(t, "cpu.max after update", c.cgroup("cpu.max"), "30000 60000")
	husk(t, "update", "--cpu-shares", "1024", c.id).ok()
	expect(t, "cpu.weight after update", c.cgroup("cpu.weight"), "39")
	expect(t, "memory.max is left alone", c.cgroup("memory.max"), "83886080")

	fed := husk(t, "update", "--resources", "-", c.id)
	fed.in = `{"memory":{"limit":73400320,"reservation":10485760},"pids":{"limit":25}}`
	fed.ok()
	expect(t, "memory.max after update -r -", c.cgroup("memory.max"), "73400320")
	expect(t, "memory.low after update -r -", c.cgroup("memory.low"), "10485760")
	expect(t, "pids.max after update -r -", c.cgroup("pids.max"), "25")
	husk(t, "update", "-r", file(t, `{"pids":{"limit":22}}`), c.id).ok()
	expect(t, "pids.max after update -r FILE", c.cgroup("pids.max"), "22")
	if out := husk(t, "events", "--stats", c.id).ok(); !strings.Contains(out, `"limit":73400320`) || !strings.Contains(out, `"limit":22`) {
		t.Errorf("the statistics do not have the limits: %s", out)
	}

	bad := husk(t, "update", "--resources", "-", c.id)
	bad.in = `{"memory":`
	bad.fails(1, "resources")
	husk(t, "update", "--resources", "/no/such/file", c.id).fails(1, "/no/such/file")
	husk(t, "update", "--memory", "lots", c.id).fails(1, "--memory", "lots")
	husk(t, "update", "--cpu-quota", "much", c.id).fails(1, "much")
	expect(t, "memory.max after wrong updates", c.cgroup("memory.max"), "73400320")
	many := husk(t, "exec", c.id, "sh", "-c", "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; echo all").run()
	if strings.Contains(many.stdout, "all") && !strings.Contains(many.stderr, "fork") {
		t.Errorf("40 processes fit below a limit of 22: %+v", many)
	}
	expect(t, "status", status(t, c.id), "running")
}

// TestOOM: a process that takes too much is killed, the container and its virtual machine live on, and
// who watches hears of it.
func TestOOM(t *testing.T) {
	begin(t)
	c := limited(t, "exec sleep 1000").up()
	watch := husk(t, "events", "--interval", "1h", c.id).start()
	// The event counts from when it is watched; nothing tells when that is so but an event.
	until(t, "the watcher hears of a kill", patience, func() bool {
		expect(t, "exit code of what takes too much", husk(t, "exec", c.id, "tail", "/dev/zero").run().code, 137)
		return strings.Contains(watch.stdout.String(), `{"type":"oom","id":"`+c.id+`"}`)
	})
	expect(t, "status", status(t, c.id), "running")
	expect(t, "exec works still", c.exec("echo yes"), "yes\n")
	husk(t, "delete", "--force", c.id).ok()
	expect(t, "exit code of events when its container ends", watch.wait().code, 0)
}

// TestOOMOfInit: the container ends with 137 where its init takes too much.
func TestOOMOfInit(t *testing.T) {
	begin(t)
	b := limited(t, "")
	b.spec.Process.Args = []string{"tail", "/dev/zero"}
	r := b.run()
	expect(t, "exit code", r.code, 137)
}

// TestPause: what is paused does not run, can be looked at, and goes on.
func TestPause(t *testing.T) {
	begin(t)
	c := newBundle(t, `trap 'echo got-usr1' USR1; echo ready; while :; do echo tick; sleep 0.05; done`).up()
	c.printed("tick\n")
	husk(t, "pause", c.id).ok()
	expect(t, "status", status(t, c.id), "paused")
	before := content(t, c.out)
	husk(t, "exec", c.id, "true").fails(1, "paused")
	husk(t, "kill", c.id, "USR1").ok() // delivered once it runs again
	if out := husk(t, "ps", c.id).ok(); !strings.Contains(out, "sh -c") {
		t.Errorf("ps of a paused container printed %q", out)
	}
	// What was in flight when it was frozen may arrive, a second's worth of ticks may not.
	husk(t, "events", "--stats", c.id).ok()
	during := content(t, c.out)
	if strings.Contains(during, "got-usr1") || strings.Count(during, "tick")-strings.Count(before, "tick") > 2 {
		t.Errorf("a paused container printed %q", strings.TrimPrefix(during, before))
	}
	husk(t, "resume", c.id).ok()
	expect(t, "status", status(t, c.id), "running")
	c.printed("got-usr1\n")
	husk(t, "pause", c.id).ok()
	husk(t, "delete", "--force", c.id).ok()
	expect(t, "exit code of a container that was deleted while paused", c.exited(), 137)
}
