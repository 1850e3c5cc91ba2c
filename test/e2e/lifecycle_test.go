package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ociRuntime is an OCI runtime whose life of a container is compared.
type ociRuntime struct {
	t    *testing.T
	name string
	root string // of runc, for its state
}

// call runs one of the verbs that all runtimes have.
func (r ociRuntime) call(args ...string) result {
	r.t.Helper()
	if r.name == "husk" {
		return husk(r.t, args...).run()
	}
	cmd := exec.Command("runc", append([]string{"--root", r.root}, args...)...)
	if args[0] == "create" { // what it starts keeps its stdio
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			r.t.Fatal(err)
		}
		defer null.Close()
		stderr, err := os.Create(filepath.Join(r.root, "stderr"))
		if err != nil {
			r.t.Fatal(err)
		}
		defer stderr.Close()
		cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, stderr
	}
	return begun(r.t, cmd).wait()
}

// create makes the container id of a bundle whose output nobody reads.
func (r ociRuntime) create(id, dir string) bool {
	r.t.Helper()
	if r.name != "husk" {
		return r.call("create", "--bundle", dir, id).code == 0
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer null.Close()
	cmd := husk(r.t, "create", "--bundle", dir, id).cmd()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
	return begun(r.t, cmd).wait().code == 0
}

func (r ociRuntime) status(id string) string {
	s := r.call("state", id)
	if s.code != 0 {
		return "none"
	}
	var state specs.State
	parse(r.t, s.stdout, &state)
	return string(state.Status)
}

// await waits until the container has the status.
func (r ociRuntime) await(id, status string) {
	r.t.Helper()
	until(r.t, id+" is "+status, patience, func() bool { return r.status(id) == status })
}

// transition is a verb called in a state: whether it is allowed and the state that follows.
type transition struct {
	verb string // with ID for the container's id and BUNDLE for the bundle's directory
	ok   bool
	then string
	why  string // of a difference: what stands here is of husk, and runc does the opposite and goes to runc
	runc string
}

// lives are the states in the order in which one container goes through them; the last verb of each leads to the next.
var lives = []transition{
	// Not there.
	{"start ID", false, "none", "", ""},
	{"state ID", false, "none", "", ""},
	{"kill ID KILL", false, "none", "", ""},
	{"delete ID", false, "none", "", ""},
	{"delete --force ID", true, "none", "", ""},
	{"exec ID true", false, "none", "", ""},
	{"pause ID", false, "none", "", ""},
	{"resume ID", false, "none", "", ""},
	{"ps ID", false, "none", "", ""},
	{"update --pids-limit 9 ID", false, "none", "", ""},
	{"create --bundle /no/such/bundle ID", false, "none", "", ""},
	{"create --bundle BUNDLE ../ID", false, "none", "", ""},
	{"create --bundle BUNDLE", false, "none", "", ""},
	{"create --bundle BUNDLE ID", true, "created", "", ""},
	// Created.
	{"create --bundle BUNDLE ID", false, "created", "", ""},
	{"run --bundle BUNDLE ID", false, "created", "", ""},
	{"state ID", true, "created", "", ""},
	{"ps ID", true, "created", "", ""},
	{"exec ID true", true, "created", "", ""},
	{"resume ID", false, "created", "", ""},
	{"kill ID 0", true, "created", "", ""},
	{"kill ID NOSUCHSIGNAL", false, "created", "", ""},
	{"update --pids-limit 90 ID", true, "created", "", ""},
	{"pause ID", false, "created", "nothing of the container runs yet that could be paused", "paused"},
	{"start ID", true, "running", "", ""},
	// Running.
	{"create --bundle BUNDLE ID", false, "running", "", ""},
	{"run --bundle BUNDLE ID", false, "running", "", ""},
	{"start ID", false, "running", "", ""},
	{"delete ID", false, "running", "", ""},
	{"resume ID", false, "running", "", ""},
	{"state ID", true, "running", "", ""},
	{"ps ID", true, "running", "", ""},
	{"exec ID true", true, "running", "", ""},
	{"exec ID no-such-program", false, "running", "", ""},
	{"kill ID 0", true, "running", "", ""},
	{"kill ID USR1", true, "running", "", ""}, // the init of a PID namespace that does not expect it
	{"update --pids-limit 80 ID", true, "running", "", ""},
	{"pause ID", true, "paused", "", ""},
	// Paused.
	{"start ID", false, "paused", "", ""},
	{"pause ID", false, "paused", "", ""},
	{"delete ID", false, "paused", "", ""},
	{"exec ID true", false, "paused", "", ""},
	{"create --bundle BUNDLE ID", false, "paused", "", ""},
	{"ps ID", true, "paused", "", ""},
	{"update --pids-limit 70 ID", true, "paused", "", ""},
	{"resume ID", true, "running", "", ""},
	{"kill ID KILL", true, "stopped", "", ""},
	// Stopped.
	{"start ID", false, "stopped", "", ""},
	{"exec ID true", false, "stopped", "", ""},
	{"pause ID", false, "stopped", "", ""},
	{"resume ID", false, "stopped", "", ""},
	{"kill ID KILL", false, "stopped", "", ""},
	{"kill ID 0", false, "stopped", "", ""},
	{"create --bundle BUNDLE ID", false, "stopped", "", ""},
	{"state ID", true, "stopped", "", ""},
	{"delete ID", true, "none", "", ""},
	// Gone; and the id is free again.
	{"delete ID", false, "none", "", ""},
	{"create --bundle BUNDLE ID", true, "created", "", ""},
	{"delete ID", true, "none", "", ""},
}

// TestLifecycle takes a container through every state of the OCI's lifecycle (runtime.md) and calls every verb in
// each, with runc, which proves the table, and with husk.
func TestLifecycle(t *testing.T) {
	begin(t)
	for _, name := range []string{"runc", "husk"} {
		t.Run(name, func(t *testing.T) {
			r := newRuntime(t, name)
			dir, id := newBundle(t, "exec sleep 1000").write(), "lifecycle"
			t.Cleanup(func() { r.call("delete", "--force", id) })
			for i, l := range lives {
				ok, then := l.ok, l.then
				if l.why != "" && name == "runc" {
					ok, then = !l.ok, l.runc
				}
				r.transit(fmt.Sprintf("step %d", i), id, dir, l.verb, ok, then)
				if l.why != "" && name == "runc" && l.verb == "pause ID" {
					r.transit("back", id, dir, "resume ID", true, l.then)
				}
			}
		})
	}
}

func newRuntime(t *testing.T, name string) ociRuntime {
	t.Helper()
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("runc is not installed to prove the table with")
	}
	return ociRuntime{t: t, name: name, root: t.TempDir()}
}

// transit calls a verb, which must succeed or not and lead to a state.
func (r ociRuntime) transit(step, id, dir, verb string, ok bool, then string) {
	r.t.Helper()
	args := strings.Fields(strings.ReplaceAll(verb, "BUNDLE", dir))
	for i, a := range args {
		args[i] = strings.Replace(a, "ID", id, 1)
	}
	if ok && args[0] == "create" {
		if !r.create(id, dir) {
			r.t.Fatalf("%s: %s failed", step, verb)
		}
	} else if got := r.call(args...); (got.code == 0) != ok {
		r.t.Errorf("%s: %s with %s: exit code %d, want success: %v\nstderr: %s", step, verb, r.name, got.code, ok, got.stderr)
	} else if !ok && strings.TrimSpace(got.stderr) == "" && args[0] != "create" {
		r.t.Errorf("%s: %s with %s failed and gave no reason", step, verb, r.name)
	}
	if then == "stopped" {
		r.await(id, then)
	}
	if now := r.status(id); now != then {
		r.t.Fatalf("%s: after %s with %s the container is %s, want %s", step, verb, r.name, now, then)
	}
}

// TestSystemdCgroup: both refuse cgroup paths for systemd on a host without it.
func TestSystemdCgroup(t *testing.T) {
	begin(t)
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("systemd runs on this host")
	}
	b := newBundle(t, "true")
	b.spec.Linux.CgroupsPath = "system.slice:husk:test"
	dir := b.write()
	for _, name := range []string{"runc", "husk"} {
		r := newRuntime(t, name)
		got := r.call("--systemd-cgroup", "run", "--bundle", dir, "systemd")
		if got.code == 0 || !strings.Contains(got.stderr, "systemd") || strings.Count(strings.TrimSpace(got.stderr), "\n") > 0 {
			t.Errorf("%s: exit code %d, %q; want a failure that names systemd", name, got.code, got.stderr)
		}
		expect(t, "status", r.status("systemd"), "none")
	}
}
