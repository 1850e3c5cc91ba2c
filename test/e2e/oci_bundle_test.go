package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// bundle is an OCI bundle that starts from what `husk spec` writes.
type bundle struct {
	t    *testing.T
	id   string // of the container that detached makes
	dir  string
	spec specs.Spec
}

// newBundle makes a bundle whose init is a shell that runs script, on the read-only busybox root that all
// tests share.
func newBundle(t *testing.T, script string) *bundle {
	t.Helper()
	b := &bundle{t: t, id: name(t), dir: t.TempDir()}
	husk(t, "spec", "--bundle", b.dir).ok()
	data, err := os.ReadFile(filepath.Join(b.dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &b.spec); err != nil {
		t.Fatalf("husk spec wrote what is no configuration: %v", err)
	}
	b.spec.Process.Terminal = false
	b.spec.Process.Args = []string{"sh", "-c", script}
	b.spec.Root.Path = env.rootfs
	return b
}

// ownRoot gives the bundle a root of its own that can be written.
func (b *bundle) ownRoot() *bundle {
	b.t.Helper()
	root := filepath.Join(b.dir, "rootfs")
	if out, err := exec.Command("cp", "-a", env.rootfs, root).CombinedOutput(); err != nil {
		b.t.Fatalf("copy root: %v: %s", err, out)
	}
	b.spec.Root = &specs.Root{Path: "rootfs"}
	return b
}

// root is a path in the bundle's own root, as the host has it.
func (b *bundle) root(name string) string { return filepath.Join(b.dir, "rootfs", name) }

// bind adds a bind mount.
func (b *bundle) bind(source, destination string, options ...string) *bundle {
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{
		Type: "bind", Source: source, Destination: destination, Options: append([]string{"rbind"}, options...),
	})
	return b
}

// write writes config.json and returns the bundle's directory.
func (b *bundle) write() string {
	b.t.Helper()
	data, err := json.Marshal(b.spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(b.dir, "config.json"), data, 0o644)
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return b.dir
}

// run runs the bundle to its end under the test's name.
func (b *bundle) run(flags ...string) result {
	b.t.Helper()
	return husk(b.t, append(append([]string{"run", "--bundle", b.write()}, flags...), name(b.t))...).run()
}

// runc runs the bundle with runc, for what must be the same there.
func (b *bundle) runc() result {
	b.t.Helper()
	program, err := exec.LookPath("runc")
	if err != nil {
		b.t.Skip("runc is not installed to compare with")
	}
	cmd := exec.Command(program, "--root", b.t.TempDir(), "run", "--bundle", b.write(), name(b.t))
	return begun(b.t, cmd).wait()
}

// name is a container id for the test.
func name(t *testing.T) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(t.Name()))
}

// file makes a file of the test with content.
func file(t *testing.T, content string) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "file")
	if err == nil {
		_, err = f.WriteString(content)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return f.Name()
}

// content is what a file holds.
func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// box is a container of a bundle that `husk create` has made.
type box struct {
	t        *testing.T
	id       string
	pid      int // of its host process
	out, err string
}

// create makes a container named after the test; it is deleted at the test's end.
func (b *bundle) create(flags ...string) *box {
	b.t.Helper()
	return b.detached("create", flags...)
}

// up makes a container and starts it.
func (b *bundle) up(flags ...string) *box {
	b.t.Helper()
	c := b.create(flags...)
	husk(b.t, "start", c.id).ok()
	return c
}

// detached runs a verb that leaves a container behind, whose output goes to files.
func (b *bundle) detached(verb string, flags ...string) *box {
	b.t.Helper()
	c := &box{t: b.t, id: b.id, out: file(b.t, ""), err: file(b.t, "")}
	pidFile := filepath.Join(b.t.TempDir(), "pid")
	remove(b.t, c.id)
	args := append([]string{verb, "--bundle", b.write(), "--pid-file", pidFile}, flags...)
	cmd := husk(b.t, append(args, c.id)...).cmd()
	var closeFiles [2]*os.File
	for i, path := range []string{c.out, c.err} {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			b.t.Fatal(err)
		}
		defer f.Close()
		closeFiles[i] = f
	}
	cmd.Stdout, cmd.Stderr = closeFiles[0], closeFiles[1]
	if r := begun(b.t, cmd).wait(); r.code != 0 {
		b.t.Fatalf("husk %q: exit code %d: %s", args, r.code, content(b.t, c.err))
	}
	digits := content(b.t, pidFile)
	var err error
	if c.pid, err = strconv.Atoi(digits); err != nil || c.pid < 2 {
		b.t.Fatalf("the pid file holds %q, want digits and nothing else", digits)
	}
	return c
}

// exec runs a command of the container's shell and returns what it printed.
func (c *box) exec(script string) string {
	c.t.Helper()
	return husk(c.t, "exec", c.id, "sh", "-c", script).ok()
}

// printed waits until the container has printed text.
func (c *box) printed(text string) {
	c.t.Helper()
	until(c.t, fmt.Sprintf("%s prints %q", c.id, text), patience, func() bool {
		return strings.Contains(content(c.t, c.out), text)
	})
}

// exited waits for the end of the container's host process, which is a child of this one since its own
// parent has ended, and returns its exit code.
func (c *box) exited() int {
	c.t.Helper()
	return reaped(c.t, c.pid)
}

func reaped(t *testing.T, pid int) int {
	t.Helper()
	var status syscall.WaitStatus
	until(t, fmt.Sprintf("process %d has ended", pid), patience, func() bool {
		got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		if err != nil {
			t.Fatalf("wait for process %d: %v", pid, err)
		}
		return got == pid
	})
	if !status.Exited() {
		t.Fatalf("process %d was ended by %v", pid, status.Signal())
	}
	return status.ExitStatus()
}

// alive tells whether a process of the host runs; a zombie does not.
func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(data), ") Z ")
}

// stopped waits until husk tells that the container has stopped.
func (c *box) stopped() {
	c.t.Helper()
	until(c.t, c.id+" is stopped", patience, func() bool { return status(c.t, c.id) == "stopped" })
}

// expect fails the test unless got is what was wanted.
func expect[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s is %#v, want %#v", what, got, want)
	}
}

// soon is how long something may take that no virtual machine takes part in. It bounds a wait only.
const soon = 20 * time.Second
