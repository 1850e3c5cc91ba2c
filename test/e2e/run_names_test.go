package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestRunHasNetwork: a container that asks for nothing reaches what its machine reaches, from a template that has its network
// set up too.
func TestRunHasNetwork(t *testing.T) {
	elsewhere(t, ready)
	husk(t, "import", "--cmd", "sh", env.rootfs, demo).ok()
	m, beyond := uplink(t)
	probe := probe(t)
	begun(t, beyond.command(probe, "serve", "7")).prints("serving\n")
	for _, start := range []string{"boot", "template"} {
		if start == "template" {
			build(t, "--card", "user")
		}
		remove(t, "plain")
		c := m.husk(env.config, "run", "--name", "plain", "-v", probe+":/probe:ro", demo, "sh", "-ec",
			`ip -4 -o addr show eth0; ip route; cat /sys/class/net/eth0/mtu; /probe tcp 10.90.0.1:7 2000000; exec sleep 1000`)
		c.prints("same tcp 2000000\n")
		for _, want := range []string{"10.0.2.15/24", "default via 10.0.2.2 dev eth0", "\n65520\n"} {
			if out := c.stdout.String(); !strings.Contains(out, want) {
				t.Errorf("by %s: no %q in %q", start, want, out)
			}
		}
		expect(t, "the VM's start", vmStart(t, "plain"), start)
		husk(t, "kill", "plain", "KILL").ok()
		if r := c.wait(); r.stderr != "" {
			t.Errorf("by %s: stderr %q", start, r.stderr)
		}
		husk(t, "delete", "plain").ok()
	}
}

// TestRunWithoutNetwork: where there is none to be had the container runs, and one line says why, which a script that reads
// stdout does not see.
func TestRunWithoutNetwork(t *testing.T) {
	begin(t)
	alone := newSpace(t, "ip link set lo up")
	const script = "ls /sys/class/net; grep -c localhost /etc/hosts; ls /etc/hostname /etc/resolv.conf"
	const want = "lo\n2\n/etc/hostname\n/etc/resolv.conf\n"
	r := alone.husk(env.config, "run", "--rm", demo, "sh", "-c", script).wait()
	if r.code != 0 || r.stdout != want || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "no default route") {
		t.Errorf("without a route: code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	if r := alone.husk(env.config, "run", "--rm", "--network", "none", demo, "sh", "-c", script).wait(); r.code != 0 || r.stdout != want || r.stderr != "" {
		t.Errorf("with none: code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	if r := alone.husk(env.config, "run", "--rm", "--network", "user", demo, "true").wait(); r.code != 125 || !strings.Contains(r.stderr, "user-mode networking") {
		t.Errorf("asked for: code %d, stderr %q", r.code, r.stderr)
	}
	// passt that fails is as one that is not there, and one that was asked for an error.
	m, _ := uplink(t)
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, "passt"), []byte("#!/bin/sh\necho it cannot >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	broken := func(args ...string) result {
		cmd := m.command(append([]string{env.binary, "--config", env.config, "run", "--rm"}, args...)...)
		cmd.Env = append(os.Environ(), "PATH="+path+":"+os.Getenv("PATH"))
		return begun(t, cmd).wait()
	}
	if r := broken(demo, "sh", "-c", script); r.code != 0 || r.stdout != want || !strings.Contains(r.stderr, "no network: no user-mode networking: passt") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("passt fails: code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	if r := broken("--network", "user", demo, "true"); r.code != 125 || !strings.Contains(r.stderr, "it cannot") {
		t.Errorf("passt fails and was asked for: code %d, stderr %q", r.code, r.stderr)
	}
}

// TestRunNames: the files that tell a container of its network.
func TestRunNames(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	own := filepath.Join(dir, "own")
	if err := os.WriteFile(own, []byte("mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("cp", "-a", env.rootfs, root).CombinedOutput(); err != nil {
		t.Fatalf("copy root: %v: %s", err, out)
	}
	withoutNames(t, root)
	for name, c := range map[string]struct {
		flags  []string
		script string
		want   string
	}{
		"name": {[]string{"-h", "box"}, "cat /etc/hostname; hostname; grep box /etc/hosts", "box\nbox\n127.0.0.1\tbox\n"},
		"hosts": {[]string{"--add-host", "db:10.1.2.3", "--add-host", "six:[fd00::1]"}, "grep -e db -e six /etc/hosts; grep -c ^::1 /etc/hosts",
			"10.1.2.3\tdb\nfd00::1\tsix\n1\n"},
		"resolver": {[]string{"--dns", "10.1.1.1", "--dns", "fd00::53", "--dns-search", "a.test", "--dns-option", "ndots:2"}, "cat /etc/resolv.conf",
			"nameserver 10.1.1.1\nnameserver fd00::53\nsearch a.test\noptions ndots:2\n"},
		"written":    {nil, "echo x >/etc/hosts; echo y >/etc/resolv.conf; cat /etc/hosts /etc/resolv.conf", "x\ny\n"},
		"read-only":  {[]string{"--read-only", "-h", "box"}, "cat /etc/hostname; (echo x >/etc/hosts) 2>/dev/null || echo refused", "box\nrefused\n"},
		"in memory":  {[]string{"--storage-size", "0", "-h", "box"}, "cat /etc/hostname", "box\n"},
		"a volume":   {[]string{"-v", own + ":/etc/hosts"}, "cat /etc/hosts; test -s /etc/hostname && echo name", "mine\nname\n"},
		"all of etc": {[]string{"-v", dir + ":/etc"}, "ls /etc", "own\n"},
		"a root":     {[]string{"--rootfs", root, "--read-only"}, "cat /etc/hosts 2>/dev/null || echo none", "none\n"},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"run", "--rm", "--network", "none"}, c.flags...)
			if c.flags == nil || c.flags[0] != "--rootfs" {
				args = append(args, demo)
			}
			expect(t, "output", husk(t, append(args, "sh", "-c", c.script)...).ok(), c.want)
		})
	}
	expect(t, "what the image has", husk(t, "run", "--rm", "--network", "none", "-v", own+":/etc/hosts", demo, "sh", "-c", "cat /etc/hosts").ok(), "mine\n")
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("the volume has %v, %v", left, err)
	}
}

// withoutNames removes from a copy of the shared root what other tests' runtimes have made there to mount on.
func withoutNames(t *testing.T, root string) {
	t.Helper()
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		if err := os.RemoveAll(filepath.Join(root, "etc", name)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRunNamesInside: links of an image lead nowhere outside of its root.
func TestRunNamesInside(t *testing.T) {
	begin(t)
	root := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("cp", "-a", env.rootfs, root).CombinedOutput(); err != nil {
		t.Fatalf("copy root: %v: %s", err, out)
	}
	withoutNames(t, root)
	outside := filepath.Join(filepath.Dir(root), "outside")
	for name, target := range map[string]string{"resolv.conf": "/../../outside", "hosts": "../../outside", "hostname": outside} {
		if err := os.Symlink(target, filepath.Join(root, "etc", name)); err != nil {
			t.Fatal(err)
		}
	}
	husk(t, "import", "--cmd", "sh", root, "linked").ok()
	t.Cleanup(func() { husk(t, "rmi", "linked").run() })
	for _, image := range [][]string{{"linked"}, {"--rootfs", root}} {
		r := husk(t, append(append([]string{"run", "--rm", "--network", "none", "-h", "box"}, image...), "sh", "-c", "cat /etc/hostname; ls /")...).run()
		if r.code != 0 || !strings.HasPrefix(r.stdout, "box\n") || !strings.Contains(r.stdout, "outside") {
			t.Errorf("%v: code %d, %q, %q", image, r.code, r.stdout, r.stderr)
		}
	}
	if _, err := os.Lstat(outside); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want nothing there", outside, err)
	}
}

// TestRunLocalNameserver: a name server that listens on the machine's loopback answers in the container.
func TestRunLocalNameserver(t *testing.T) {
	begin(t)
	m, _ := uplink(t)
	probe := probe(t)
	begun(t, m.command(probe, "serve", "53")).prints("serving\n")
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\nsearch a.test\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		t.Skipf("this machine has no /etc/resolv.conf: %v", err)
	}
	script := fmt.Sprintf(`mount --bind %s %s && exec "$@"`, conf, target)
	r := begun(t, m.command("unshare", "--mount", "sh", "-ec", script, "sh", env.binary, "--config", env.config, "run", "--rm",
		"-v", probe+":/probe:ro", demo, "sh", "-c", "cat /etc/resolv.conf; /probe udp 127.0.0.1:53 100")).wait()
	expect(t, "output", r.stdout, "nameserver 127.0.0.1\nsearch a.test\nsame udp 100\n")
}

// TestRunBeyondTheMachine: limits that the machine does not have are refused with one line.
func TestRunBeyondTheMachine(t *testing.T) {
	begin(t)
	for _, c := range []struct{ flag, value, says string }{
		{"--cpus", "999", fmt.Sprintf("must be from 0.01 to %d", runtime.NumCPU())},
		{"--cpus", "0.001", "must be from 0.01"},
		{"--memory", "99999g", "but the host has"},
		{"--add-host", "x", "NAME:ADDRESS"},
		{"--add-host", "x:y", "no address"},
		{"--dns", "x", "no address"},
	} {
		husk(t, "run", "--rm", "--network", "none", c.flag, c.value, demo, "true").fails(125, c.says)
	}
}

// TestAskedWhileEnding: whatever is asked of a container that is being killed, the answer is that of before or of after.
func TestAskedWhileEnding(t *testing.T) {
	begin(t)
	for range 4 {
		id := detach(t, "ending", "--network", "none", demo, "sleep", "1000")
		var all []*running
		kill := husk(t, "kill", id, "KILL").start()
		for range 3 {
			for _, verb := range [][]string{
				{"events", "--stats", id}, {"ps", id}, {"exec", id, "true"}, {"shell", id, "true"}, {"pause", id}, {"kill", id, "KILL"},
				{"update", "--pids-limit", "9", id}, {"state", id},
			} {
				all = append(all, husk(t, verb...).start())
			}
		}
		if r := kill.wait(); r.code != 0 && !strings.Contains(r.stderr, "not running") { // one of the others may come first
			t.Errorf("kill: code %d, %q", r.code, r.stderr)
		}
		for _, one := range all {
			r := one.wait()
			ended := r.code == 137 && r.stderr != "" // an exec that went with the VM
			if r.code != 0 && r.code != 137 && !strings.Contains(r.stderr, "not running") && !strings.Contains(r.stderr, "that is paused") || strings.Contains(r.stderr, "ttrpc") || strings.Contains(r.stderr, "dial") && !ended {
				t.Errorf("code %d, %q", r.code, r.stderr)
			}
		}
		husk(t, "delete", "--force", id).run()
	}
}
