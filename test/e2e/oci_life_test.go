package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestLife takes a container through the OCI's life: every verb once, in order.
func TestLife(t *testing.T) {
	begin(t)
	b := newBundle(t, `trap 'echo stopping; exit 7' TERM; echo ran; echo to-stderr >&2; while :; do sleep 0.1; done`)
	b.spec.Annotations = map[string]string{"org.example.key": "value"}
	c := b.create()
	expect(t, "status after create", status(t, c.id), "created")
	expect(t, "the host process is alive", alive(c.pid), true)
	expect(t, "output before start", content(t, c.out), "")
	var s struct {
		Version     string `json:"ociVersion"`
		ID          string
		PID         int
		Bundle      string
		Annotations map[string]string
	}
	if err := json.Unmarshal([]byte(husk(t, "state", c.id).ok()), &s); err != nil {
		t.Fatal(err)
	}
	expect(t, "state's id", s.ID, c.id)
	expect(t, "state's pid", s.PID, c.pid)
	expect(t, "state's bundle", s.Bundle, b.dir)
	expect(t, "state's annotation", s.Annotations["org.example.key"], "value")
	if !strings.HasPrefix(s.Version, "1.") {
		t.Errorf("state's ociVersion is %q", s.Version)
	}

	husk(t, "start", c.id).ok()
	c.printed("ran\n")
	expect(t, "status after start", status(t, c.id), "running")
	husk(t, "kill", c.id).ok()
	expect(t, "exit code of the host process", c.exited(), 7)
	c.stopped()
	expect(t, "stdout", content(t, c.out), "ran\nstopping\n")
	expect(t, "stderr", content(t, c.err), "to-stderr\n")
	if out := husk(t, "state", c.id).ok(); !strings.Contains(out, `"pid": 0`) {
		t.Errorf("the state of a stopped container has a pid: %s", out)
	}
	husk(t, "delete", c.id).ok()
	husk(t, "state", c.id).fails(1, c.id, "does not exist")
	husk(t, "delete", c.id).fails(1, c.id, "does not exist")
}

func TestRunBundle(t *testing.T) {
	begin(t)
	b := newBundle(t, `cat; echo err >&2; pwd; exit 3`)
	c := husk(t, "run", "-b", b.write(), name(t))
	c.in = "fed\n"
	if r := c.run(); r != (result{stdout: "fed\n/\n", stderr: "err\n", code: 3}) {
		t.Errorf("run printed and returned %+v", r)
	}
	expect(t, "status afterwards", status(t, name(t)), "none")
}

// TestRunBundleDetached is how engines without create and start use a runtime.
func TestRunBundleDetached(t *testing.T) {
	begin(t)
	c := newBundle(t, `echo up; exec sleep 1000`).detached("run", "-d")
	c.printed("up\n")
	expect(t, "status", status(t, c.id), "running")
	husk(t, "delete", "--force", c.id).ok()
	expect(t, "exit code of the host process", c.exited(), 137)
	expect(t, "stderr", content(t, c.err), "")
	expect(t, "status afterwards", status(t, c.id), "none")
	husk(t, "delete", "--force", c.id).ok() // a second time too: engines retry
}

func TestExitCodesOfHostProcess(t *testing.T) {
	begin(t)
	for script, code := range map[string]int{"exit 0": 0, "exit 255": 255, "kill -ABRT $$; sleep 9": 134} {
		t.Run(script, func(t *testing.T) {
			b := newBundle(t, script)
			// As init of its PID namespace the shell would not get its own signal.
			b.spec.Process.Args = []string{"sh", "-c", "sh -c '" + script + "'; exit $?"}
			c := b.up()
			expect(t, "exit code", c.exited(), code)
		})
	}
}

func TestSignals(t *testing.T) {
	begin(t)
	b := newBundle(t, `for s in HUP INT QUIT USR1 USR2 TERM CONT; do trap "echo got-$s" $s; done
		echo ready; while :; do sleep 0.05; done`)
	c := b.up()
	c.printed("ready\n")
	for _, arg := range []struct{ signal, got string }{
		{"USR1", "got-USR1"}, {"SIGUSR2", "got-USR2"}, {"1", "got-HUP"}, {"sigint", "got-INT"}, {"Quit", "got-QUIT"},
	} {
		husk(t, "kill", c.id, arg.signal).ok()
		c.printed(arg.got + "\n")
	}
	// TERM is the default; this container ignores it.
	husk(t, "kill", c.id).ok()
	c.printed("got-TERM\n")
	// What is sent to the host process reaches the container.
	if err := syscall.Kill(c.pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.printed("got-CONT\n")
	expect(t, "status of a container that ignores TERM", status(t, c.id), "running")
	husk(t, "kill", c.id, "0").ok()
	husk(t, "kill", c.id, "KILL").ok()
	expect(t, "exit code", c.exited(), 137)
	c.stopped()
}

// TestKillAll: --all reaches processes that are not the init.
func TestKillAll(t *testing.T) {
	begin(t)
	b := newBundle(t, `trap 'echo init-usr1' USR1; echo ready; while :; do sleep 0.05; done`)
	c := b.up()
	c.printed("ready\n")
	other := husk(t, "exec", c.id, "sh", "-c", `trap 'exit 42' USR1; echo waiting; while :; do sleep 0.05; done`).start()
	other.prints("waiting\n")
	husk(t, "kill", c.id, "USR1").ok()
	c.printed("init-usr1\n")
	select {
	case <-other.done:
		t.Error("kill without --all reached another process")
	default:
	}
	husk(t, "kill", "--all", c.id, "USR1").ok()
	expect(t, "exit code of the other process", other.wait().code, 42)
	expect(t, "status", status(t, c.id), "running")
	husk(t, "kill", "--all", c.id, "KILL").ok()
	expect(t, "exit code", c.exited(), 137)
}

// TestDeleteMany takes several ids, and tells about the one that fails.
func TestDeleteMany(t *testing.T) {
	begin(t)
	c := newBundle(t, "exit 0").create()
	husk(t, "delete", "no-such-one", c.id).fails(1, "no-such-one")
	expect(t, "status of the other", status(t, c.id), "none")
}

// TestRootFlag: containers of one --root are not seen in another.
func TestRootFlag(t *testing.T) {
	begin(t)
	root := t.TempDir() + "/deep/root"
	in := func(args ...string) *command {
		c := husk(t, args...)
		c.flag = []string{"--root", root}
		return c
	}
	b := newBundle(t, "sleep 1000")
	t.Cleanup(func() { in("delete", "--force", "here").ok() })
	cmd := in("create", "--bundle", b.write(), "here").cmd()
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	expect(t, "exit code of create", begun(t, cmd).wait().code, 0)
	expect(t, "list of this root", in("list", "-q").ok(), "here\n")
	if out := husk(t, "list", "-q").ok(); strings.Contains(out, "here") {
		t.Errorf("list of the usual root shows %q", out)
	}
	if _, err := os.Stat(root + "/here"); err != nil {
		t.Error(err)
	}
}

// TestAcceptedFlags are flags of runc that change nothing here, and must not stop an engine.
func TestAcceptedFlags(t *testing.T) {
	begin(t)
	b := newBundle(t, "echo ran; sleep 0.2")
	b.spec.Linux.CgroupsPath = "system.slice:husk:test"
	c := husk(t, "run", "--bundle", b.write(), "--no-pivot", "--no-new-keyring", "--preserve-fds", "0", name(t))
	expect(t, "output", c.ok(), "ran\n")
}

// TestPreserveFDs: files cannot go into a virtual machine, which is said and is no reason to fail.
func TestPreserveFDs(t *testing.T) {
	begin(t)
	r := newBundle(t, "echo ran; sleep 0.2").run("--preserve-fds", "2")
	if r.code != 0 || r.stdout != "ran\n" || !strings.Contains(r.stderr, "--preserve-fds 2") {
		t.Errorf("run returned %+v, want a warning", r)
	}
}

// TestRunHandsOnSignals: what `husk run` is sent in the foreground goes to the container.
func TestRunHandsOnSignals(t *testing.T) {
	begin(t)
	b := newBundle(t, `trap 'echo got-hup' HUP; trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done`)
	r := husk(t, "run", "--bundle", b.write(), name(t)).start()
	r.prints("ready\n")
	r.signal(syscall.SIGHUP)
	r.prints("got-hup\n")
	r.signal(syscall.SIGTERM)
	expect(t, "result", r.wait(), result{stdout: "ready\ngot-hup\nbye\n", code: 3})
	expect(t, "status afterwards", status(t, name(t)), "none")
}

// TestUserNamespace runs what `husk spec --rootless` writes: a container whose root is another user.
func TestUserNamespace(t *testing.T) {
	begin(t)
	b := newBundle(t, "cat /proc/self/uid_map | tr -s ' '; id -u; echo x >/made")
	b.ownRoot()
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	b.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 65536}}
	b.spec.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1000, Size: 65536}}
	if err := os.Chown(b.root(""), 1000, 1000); err != nil {
		t.Fatal(err)
	}
	expect(t, "result", b.run(), result{stdout: " 0 1000 65536\n0\n"})
	info, err := os.Stat(b.root("made"))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "owner of what it wrote", info.Sys().(*syscall.Stat_t).Uid, 1000)
}
