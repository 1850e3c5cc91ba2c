package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// noting is a hook that writes the state it is given to dir/NAME.json and its name to dir/order, with
// "+ran" once the container's own startContainer hook has run.
func noting(b *bundle, dir, name string) specs.Hook {
	script := `cat >"$DIR/$NAME.json"; test -e "$ROOT/in-guest" && NAME=$NAME+ran; echo "$NAME $0 $(pwd)" >>"$DIR/order"`
	return specs.Hook{
		Path: "/bin/sh", Args: []string{"sh", "-c", script, "arg0"},
		Env: []string{"DIR=" + dir, "NAME=" + name, "ROOT=" + b.root(""), "PATH=/usr/bin:/bin"},
	}
}

// withHooks gives a bundle every kind of hook, each of which notes that it ran below the returned directory.
func withHooks(b *bundle) (dir string) {
	dir = b.t.TempDir()
	b.ownRoot()
	one := func(name string) []specs.Hook { return []specs.Hook{noting(b, dir, name)} }
	b.spec.Hooks = &specs.Hooks{
		Prestart: one("prestart"), CreateRuntime: one("createRuntime"), CreateContainer: one("createContainer"),
		StartContainer: []specs.Hook{{
			Path: "/bin/sh", Args: []string{"sh", "-c", `cat >/in-guest; echo "$A" >>/in-guest`}, Env: []string{"A=env", "PATH=/bin"},
		}},
		Poststart: append(one("poststart"), noting(b, dir, "poststart2")), Poststop: append(one("poststop"), noting(b, dir, "poststop2")),
	}
	return dir
}

// order is which hooks have run.
func order(t *testing.T, dir string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "order"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, line := range strings.Split(strings.TrimSpace(string(data)), "\n") {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

func TestHooks(t *testing.T) {
	begin(t)
	b := newBundle(t, "exec sleep 1000")
	dir := withHooks(b)
	b.spec.Annotations = map[string]string{"org.example": "yes"}
	c := b.create()
	created := "prestart createRuntime createContainer"
	expect(t, "hooks after create", order(t, dir), created)
	husk(t, "start", c.id).ok()
	// Like runc, start does not wait for the hook in the container: whether poststart comes after it is open.
	ran := func() string { return strings.ReplaceAll(order(t, dir), "+ran", "") }
	started := created + " poststart poststart2"
	expect(t, "hooks after start", ran(), started)
	until(t, "the hook in the container has run", patience, func() bool {
		data, err := os.ReadFile(b.root("in-guest"))
		return err == nil && strings.HasSuffix(string(data), "env\n")
	})
	husk(t, "kill", c.id, "KILL").ok()
	c.stopped()
	expect(t, "hooks after the end", ran(), started)
	husk(t, "delete", c.id).ok()
	expect(t, "hooks after delete", ran(), started+" poststop poststop2")
	if !strings.HasPrefix(order(t, dir), created+" ") {
		t.Errorf("the hook in the container ran early: %s", order(t, dir))
	}

	for name, status := range map[string]string{
		"prestart": "creating", "createRuntime": "creating", "createContainer": "creating", "poststart": "running", "poststop": "stopped",
	} {
		var s specs.State
		parse(t, content(t, filepath.Join(dir, name+".json")), &s)
		if s.ID != c.id || string(s.Status) != status || s.Bundle != b.dir || s.Annotations["org.example"] != "yes" || !strings.HasPrefix(s.Version, "1.") {
			t.Errorf("the hook %s was given %+v", name, s)
		}
		if name != "poststop" {
			expect(t, "pid that "+name+" was given", s.Pid, c.pid)
		}
	}
	// The hook in the guest runs in the container, whose files are the bundle's.
	inside := content(t, b.root("in-guest"))
	if !strings.Contains(inside, c.id) || !strings.HasSuffix(inside, "env\n") {
		t.Errorf("the startContainer hook was given %q", inside)
	}
	first, _, _ := strings.Cut(content(t, filepath.Join(dir, "order")), "\n")
	expect(t, "name, first argument and directory of a hook", first, "prestart arg0 "+b.dir)
}

// TestHooksOfRun: in the foreground all of them run too.
func TestHooksOfRun(t *testing.T) {
	begin(t)
	b := newBundle(t, "echo ran; sleep 0.3; exit 4")
	dir := withHooks(b)
	expect(t, "result", b.run(), result{stdout: "ran\n", code: 4})
	expect(t, "hooks", strings.ReplaceAll(order(t, dir), "+ran", ""), "prestart createRuntime createContainer poststart poststart2 poststop poststop2")
}

// TestFailingHooks: a hook that fails before the container's program takes the container back, one that
// fails after it is a warning and stops no other.
func TestFailingHooks(t *testing.T) {
	begin(t)
	failing := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "echo because >&2; exit 3"}}
	for _, kind := range []string{"prestart", "createRuntime", "createContainer"} {
		t.Run(kind, func(t *testing.T) {
			b := newBundle(t, "echo never")
			dir := withHooks(b)
			list := map[string]*[]specs.Hook{
				"prestart": &b.spec.Hooks.Prestart, "createRuntime": &b.spec.Hooks.CreateRuntime, "createContainer": &b.spec.Hooks.CreateContainer,
			}[kind]
			*list = append([]specs.Hook{failing}, *list...)
			husk(t, "create", "--bundle", b.write(), name(t)).fails(1, kind, "exit status 3", "because")
			expect(t, "status", status(t, name(t)), "none")
			ran := order(t, dir)
			if strings.Contains(ran, kind) || strings.Contains(ran, "poststart") || !strings.HasSuffix(strings.ReplaceAll(ran, "+ran", ""), "poststop poststop2") {
				t.Errorf("after the failure these hooks ran: %s", ran)
			}
		})
	}
	t.Run("startContainer", func(t *testing.T) {
		b := newBundle(t, "echo never")
		withHooks(b)
		b.spec.Hooks.StartContainer = []specs.Hook{{Path: "/bin/false"}}
		c := b.create()
		husk(t, "start", c.id).run() // has no news of it yet, as runc's
		c.stopped()
		if code := c.exited(); code == 0 {
			t.Error("the host process exited with 0")
		}
		expect(t, "output", content(t, c.out), "")
		husk(t, "delete", c.id).ok()
	})
	t.Run("poststart and poststop", func(t *testing.T) {
		b := newBundle(t, "sleep 0.3; exit 5")
		dir := withHooks(b)
		b.spec.Hooks.Poststart = append([]specs.Hook{failing}, b.spec.Hooks.Poststart...)
		b.spec.Hooks.Poststop = append([]specs.Hook{failing}, b.spec.Hooks.Poststop...)
		r := b.run()
		expect(t, "exit code", r.code, 5)
		expect(t, "warnings", strings.Count(r.stderr, "because"), 2)
		if ran := strings.ReplaceAll(order(t, dir), "+ran", ""); !strings.HasSuffix(ran, " poststart poststart2 poststop poststop2") {
			t.Errorf("these hooks ran: %s", ran)
		}
	})
}

// TestHookTimeout: a hook that hangs is ended when its time is over, and what it left too.
func TestHookTimeout(t *testing.T) {
	begin(t)
	b := newBundle(t, "echo never")
	second := 1
	b.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{
		Path: "/bin/sh", Args: []string{"sh", "-c", "sleep 1000 & sleep 1000"}, Env: []string{"PATH=/usr/bin:/bin"}, Timeout: &second,
	}}}
	husk(t, "create", "--bundle", b.write(), name(t)).fails(1, "createRuntime", "timed out")
	b.spec.Hooks.CreateRuntime[0].Path = "/no/such/hook"
	husk(t, "create", "--bundle", b.write(), name(t)).fails(1, "createRuntime", "/no/such/hook")
	b.spec.Hooks.CreateRuntime[0].Path = "relative"
	husk(t, "create", "--bundle", b.write(), name(t)).fails(1, "createRuntime", "absolute")
}
