package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// telling is a hook that writes one line: its kind, the status and pid that it read, and which of the caller's namespaces
// it runs in.
func telling(kind, dir, host string) specs.Hook {
	script := `s=$(cat); for ns in mnt net uts; do eval "at=\$H_$ns"; [ "$(readlink /proc/self/ns/$ns)" = "$at" ] && n="$n $ns"; done
		p=$(echo "$s" | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p'); [ "${p:-0}" -gt 0 ] && p=pid || p=none
		echo "$KIND $(echo "$s" | sed -n 's/.*"status": *"\([a-z]*\)".*/\1/p') $p$n" >>"$DIR/told"`
	env := []string{"KIND=" + kind, "DIR=" + dir, "PATH=/usr/bin:/bin"}
	return specs.Hook{Path: host, Args: []string{"sh", "-c", script}, Env: append(env, namespaces()...)}
}

// namespaces are this process', for hooks to compare with.
func namespaces() (env []string) {
	for _, ns := range []string{"mnt", "net", "uts"} {
		link, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			link = "unknown"
		}
		env = append(env, "H_"+ns+"="+link)
	}
	return env
}

// hookKinds are the kinds of hooks that the OCI has, in their order.
var hookKinds = []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}

// hooksOf finds the list of a kind.
func hooksOf(h *specs.Hooks, kind string) *[]specs.Hook {
	return map[string]*[]specs.Hook{
		"prestart": &h.Prestart, "createRuntime": &h.CreateRuntime, "createContainer": &h.CreateContainer, //nolint:staticcheck // Docker uses prestart
		"startContainer": &h.StartContainer, "poststart": &h.Poststart, "poststop": &h.Poststop,
	}[kind]
}

// hooked is a bundle with a telling hook of each kind; told is the directory of what they tell.
func hooked(t *testing.T) (b *bundle, told string) {
	t.Helper()
	b = newBundle(t, "exec sleep 1000").ownRoot()
	told = t.TempDir()
	b.spec.Hooks = &specs.Hooks{}
	b.bind(told, "/told")
	for _, kind := range hookKinds {
		dir := told
		if kind == "startContainer" { // which runs in the container
			dir = "/told"
		}
		*hooksOf(b.spec.Hooks, kind) = []specs.Hook{telling(kind, dir, "/bin/sh")}
	}
	return b, told
}

// heard is what the hooks have told so far.
func heard(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "told"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(data)
}

// TestLifecycleHooks: every kind of hook runs at its time, in its namespaces, with the state on its standard input; with
// runc and with husk.
func TestLifecycleHooks(t *testing.T) {
	begin(t)
	const outside = " pid mnt net uts\n"
	for _, name := range []string{"runc", "husk"} {
		t.Run(name, func(t *testing.T) {
			r := newRuntime(t, name)
			b, dirTold := hooked(t)
			dir, id := b.write(), "hooks"
			t.Cleanup(func() { r.call("delete", "--force", id) })
			if !r.create(id, dir) {
				t.Fatal("create failed")
			}
			told := func() string { return heard(t, dirTold) }
			created, started := "prestart creating"+outside+"createRuntime creating"+outside, "poststart running"+outside
			inside := "startContainer starting none\n" // which is what crun gives it, in the guest
			if name == "runc" {
				// In its container's mount namespace; and runc 1.1.5 runs poststart hooks in create.
				created += "createContainer creating pid\n" + "poststart created" + outside
				started, inside = "", "startContainer created pid\n"
			} else {
				// The namespaces of a container of husk's are in the guest, where no hook of the host can run.
				created += "createContainer creating" + outside
			}
			expect(t, "hooks of create", told(), created)
			r.transit("start", id, dir, "start ID", true, "running")
			until(t, "the hook in the container has run", patience, func() bool { return strings.Contains(told(), inside) })
			// start does not wait for the one in the container: the two may come in either order.
			expect(t, "hooks of start", strings.Replace(strings.TrimPrefix(told(), created), inside, "", 1), started)
			r.transit("kill", id, dir, "kill ID KILL", true, "stopped")
			before := told()
			r.transit("delete", id, dir, "delete ID", true, "none")
			expect(t, "hooks of delete", strings.TrimPrefix(told(), before), "poststop stopped none mnt net uts\n")
		})
	}
}

// failures is what a failing hook of each kind does to its container: whether create succeeds, and the state after start.
// runc 1.1.5 differs in one: it runs poststart hooks in create, and fails then.
var failures = []struct {
	kind   string
	create bool
	status string
}{
	{"prestart", false, "none"},
	{"createRuntime", false, "none"},
	{"createContainer", false, "none"},
	{"startContainer", true, "stopped"},
	{"poststart", true, "running"},
	{"poststop", true, "running"},
}

// TestLifecycleHookFailures: what a failing hook does, with runc and with husk.
func TestLifecycleHookFailures(t *testing.T) {
	begin(t)
	for _, f := range failures {
		for _, name := range []string{"runc", "husk"} {
			t.Run(f.kind+"/"+name, func(t *testing.T) {
				r := newRuntime(t, name)
				b := newBundle(t, "exec sleep 1000")
				b.spec.Hooks = &specs.Hooks{}
				*hooksOf(b.spec.Hooks, f.kind) = []specs.Hook{{Path: "/bin/false"}}
				dir, id := b.write(), "failing"
				t.Cleanup(func() { r.call("delete", "--force", id) })
				creates, status := f.create, f.status
				if name == "runc" && f.kind == "poststart" {
					creates, status = false, "none"
				}
				if made := r.create(id, dir); made != creates {
					t.Fatalf("create succeeds: %v, want %v", made, creates)
				}
				if !creates {
					expect(t, "status", r.status(id), status)
					return
				}
				// Whether start has news of the hook in the container is open, as it does not wait for it.
				if got := r.call("start", id); got.code != 0 && f.kind != "startContainer" {
					t.Errorf("start: %s", got.stderr)
				}
				r.await(id, status)
				r.call("kill", id, "KILL")
				r.await(id, "stopped")
				if got := r.call("delete", id); got.code != 0 {
					t.Errorf("delete: %s", got.stderr)
				}
				expect(t, "status after delete", r.status(id), "none")
			})
		}
	}
}
