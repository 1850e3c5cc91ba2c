package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// monitors returns the pids of the VM monitors of this test's descendants whose command line holds text.
func monitors(text string) (pids []int) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	for _, file := range lines {
		line, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(line, []byte("qemu")) || !bytes.Contains(line, []byte(text)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && below(pid, os.Getpid()) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// parent is the id of a process' parent, 0 where there is none.
func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	up, _ := strconv.Atoi(fields[1])
	return up
}

func below(pid, ancestor int) bool {
	for ; pid > 1; pid = parent(pid) {
		if pid == ancestor {
			return true
		}
	}
	return false
}

// monitor waits for the one monitor whose command line holds text.
func monitor(t *testing.T, text string) int {
	t.Helper()
	var pids []int
	began := time.Now()
	for len(pids) == 0 {
		if time.Since(began) > patience {
			t.Fatalf("no monitor with %q in its command line", text)
		}
		pids = monitors(text) // without a pause: what is looked for is there for a moment
	}
	return pids[0]
}

// TestTemplateBuilderKilled kills a builder at each of its phases: its VM goes with it, the next one sweeps what
// it left.
func TestTemplateBuilderKilled(t *testing.T) {
	elsewhere(t, ready)
	for _, phase := range []string{"boot", "save", "check"} {
		t.Run(phase, func(t *testing.T) {
			begin(t)
			builder := husk(t, "template", "build", "--card", "no").start()
			until(t, "the builder is at "+phase, patience, func() bool {
				return strings.Contains(builder.stderr.String(), phase+" (")
			})
			if phase == "boot" {
				monitor(t, "guest=template")
			}
			builder.signal(syscall.SIGKILL)
			builder.wait()
			until(t, "its monitor is gone", soon, func() bool { return len(monitors("guest=template")) == 0 })
			if list := templates(t); len(list) > 0 {
				t.Skipf("it was quicker: %+v", list)
			}
			startsBy(t, "boot")
			key := build(t)
			if left := inStore(t); left != key {
				t.Errorf("in the store: %s, want %s alone", left, key)
			}
			startsBy(t, "template")
			husk(t, "template", "rm", key).ok()
		})
	}
}

// TestTemplateBuildersMonitorKilled: a build whose VM dies fails in one line, leaves a note and nothing else.
func TestTemplateBuildersMonitorKilled(t *testing.T) {
	elsewhere(t, ready)
	builder := husk(t, "template", "build", "--card", "no").start()
	kill9(t, monitor(t, "guest=template"))
	r := builder.wait()
	last := r.stderr[strings.LastIndex(strings.TrimSpace(r.stderr), "\n")+1:]
	if r.code != 1 || !strings.HasPrefix(last, "husk: build template: ") {
		t.Errorf("exit code %d, stderr %q", r.code, r.stderr)
	}
	if left := inStore(t); !strings.HasSuffix(left, ".failed") || strings.Contains(left, " ") {
		t.Errorf("in the store: %q, want a note", left)
	}
	key := build(t) // by hand, whatever the note says
	if left := inStore(t); left != key {
		t.Errorf("in the store: %q, want %s alone", left, key)
	}
}

// TestTemplateInterrupted: an interrupt ends a build, leaves nothing and no note.
func TestTemplateInterrupted(t *testing.T) {
	elsewhere(t, ready)
	builder := husk(t, "template", "build", "--card", "no").start()
	monitor(t, "guest=template")
	builder.signal(syscall.SIGINT)
	if r := builder.wait(); r.code == 0 {
		t.Errorf("exit code %d: %s", r.code, r.stderr)
	}
	if left := inStore(t); left != "" {
		t.Errorf("in the store: %q", left)
	}
	startsBy(t, "boot")
}

// TestTemplateMonitorKilledAtStart kills a monitor while it continues a template: the container runs in a VM
// that boots, and the template, which is not to blame, stays.
func TestTemplateMonitorKilledAtStart(t *testing.T) {
	elsewhere(t, ready)
	key := build(t)
	for _, kind := range []string{"directory", "volume"} {
		args := []string{"run", "--rm", "--name", "struck"}
		if kind == "volume" {
			args = append(args, "-v", t.TempDir()+":/v")
		}
		c := husk(t, append(args, "--rootfs", env.rootfs, "echo", "works")...).start()
		kill9(t, monitor(t, "guest=struck"))
		if r := c.wait(); r.code != 0 || r.stdout != "works\n" {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", kind, r.code, r.stdout, r.stderr)
		}
	}
	if left := inStore(t); left != key {
		t.Errorf("in the store: %q, want %s alone", left, key)
	}
	startsBy(t, "template")
}

// TestTemplateOwnerKilledAtStart kills an owner while its monitor continues a template.
func TestTemplateOwnerKilledAtStart(t *testing.T) {
	elsewhere(t, ready)
	build(t)
	const id = "orphan"
	c := husk(t, "run", "--name", id, "--rootfs", env.rootfs, "echo", "works").start()
	kill9(t, parent(monitor(t, "guest="+id)))
	if r := c.wait(); r.code == 0 || r.stdout != "" {
		t.Errorf("exit code %d, stdout %q", r.code, r.stdout)
	}
	until(t, "its monitor is gone", soon, func() bool { return len(monitors("guest="+id)) == 0 })
	husk(t, "delete", "--force", id).ok()
	if s := status(t, id); s != "none" {
		t.Errorf("the container is %s", s)
	}
	startsBy(t, "template")
}

// TestTemplateDiskFull has templates built where there is no room: containers boot, a note says why there is no
// template, and nothing else is left.
func TestTemplateDiskFull(t *testing.T) {
	begin(t)
	disk := smallDisk(t, "16m")
	config := disk.config(filepath.Join(t.TempDir(), "run"), filepath.Join(disk.dir, "data"))
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(content(t, config), `"off"`, `"on"`)), 0o600); err != nil {
		t.Fatal(err)
	}
	works := func() {
		t.Helper()
		if out := disk.husk(config, "run", "--rm", "--network", "none", "--rootfs", env.rootfs, "echo", "works").ok(); out != "works\n" {
			t.Errorf("the container printed %q", out)
		}
	}
	works()
	var left []string
	until(t, "a note says why there is no template", patience, func() bool {
		left = disk.files("data/templates")
		return strings.Contains(strings.Join(left, " "), ".failed") && len(monitors("guest=template")) == 0
	})
	time.Sleep(time.Second)
	if left = disk.files("data/templates"); len(left) != 2 || !strings.HasSuffix(left[0], "/.lock") || !strings.HasSuffix(left[1], ".failed") {
		t.Errorf("left in data_dir: %q", left)
	}
	if note := content(t, filepath.Join(disk.seen, "data/templates", filepath.Base(left[len(left)-1]))); !strings.Contains(note, "no space") {
		t.Errorf("note %q", note)
	}
	works() // and nobody builds again
	if pids := monitors("guest=template"); len(pids) > 0 {
		t.Errorf("a template is built again right after a failure: %v", pids)
	}
	disk.fill(0)
	works()
	r := disk.husk(config, "template", "build", "--card", "no").run()
	if last := strings.TrimSpace(r.stderr); r.code != 1 || !strings.Contains(last, "no space") || strings.Count(last, "husk: ") != 1 {
		t.Errorf("template build: exit code %d, stderr %q", r.code, r.stderr)
	}
	if out := disk.husk(config, "template", "ls", "--json").ok(); strings.TrimSpace(out) != "[]" {
		t.Errorf("templates: %s", out)
	}
}

// TestTemplateReplacedUnderStarts starts containers while their template is removed and built, again and again:
// none of them fails.
func TestTemplateReplacedUnderStarts(t *testing.T) {
	elsewhere(t, ready)
	starts := 20
	if large() {
		starts = 100
	}
	build(t)
	stop := make(chan struct{})
	var builder, all sync.WaitGroup
	var rounds atomic.Int32
	builder.Go(func() {
		for ; ; rounds.Add(1) {
			select {
			case <-stop:
				return
			default:
			}
			if r := husk(t, "template", "rm", "--all").run(); r.code != 0 {
				t.Errorf("rm: %s", r.stderr)
			}
			if r := husk(t, "template", "build", "--card", "no").run(); r.code != 0 {
				t.Errorf("build: %s", r.stderr)
			}
		}
	})
	places := make(chan struct{}, 20)
	began := time.Now()
	for i := 0; i < starts || rounds.Load() < 2 && time.Since(began) < patience; i++ {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			id := fmt.Sprintf("many-%d", i)
			r := husk(t, "run", "--rm", "--name", id, "--rootfs", env.rootfs, "echo", id).run()
			if r.code != 0 || r.stdout != id+"\n" {
				t.Errorf("%s: exit code %d, stdout %q, stderr %q", id, r.code, r.stdout, r.stderr)
			}
		})
	}
	all.Wait()
	close(stop)
	builder.Wait()
	if n := rounds.Load(); n < 2 {
		t.Errorf("the template was replaced %d times", n)
	}
	husk(t, "template", "verify").ok()
	if list := templates(t); len(list) != 1 || inStore(t) != list[0].Key {
		t.Errorf("templates: %+v; in the store: %q", list, inStore(t))
	}
}
