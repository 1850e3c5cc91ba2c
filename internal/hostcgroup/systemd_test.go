package hostcgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"husk.dev/husk/internal/testenv"
)

// TestScope has a real systemd make a scope of a copy of the test and a process of its own, over its bus and without one.
func TestScope(t *testing.T) {
	if os.Getenv("HUSK_TEST_SCOPE") == "" {
		pid := testenv.Systemd(t)
		inside := func(script string) {
			t.Helper()
			// Where systemd sees it, and not outside of all that it knows.
			cmd := exec.Command("nsenter", "--all", "--target", fmt.Sprint(pid), "sh", "-ec",
				"mkdir -p /sys/fs/cgroup/scripts; echo $$ >/sys/fs/cgroup/scripts/cgroup.procs; "+script, os.Args[0])
			cmd.Env = append(os.Environ(), "HUSK_TEST_SCOPE=1")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", script, err, out)
			}
		}
		inside("$0 -test.run='^TestScope$' -test.v")
		inside("systemctl stop dbus.socket dbus.service; rm -f /run/dbus/system_bus_socket; $0 -test.run='^TestScope$' -test.v")
		return
	}
	const name, unit = "husk-test.slice:vm:one", "vm-one.scope"
	child := exec.Command("sleep", "100")
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	if !Usable(name) {
		t.Fatalf("%s cannot be used where systemd runs", name)
	}
	g, err := Join(name, child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	shows(t, unit, "ActiveState=active", "Slice=husk-test.slice", "ControlGroup="+g.path, "Delegate=yes", "MemoryAccounting=yes")
	procs := func() []string {
		data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/husk.slice/husk-test.slice", unit, "cgroup.procs"))
		if err != nil {
			t.Error(err)
		}
		return strings.Fields(string(data))
	}
	me, other := strconv.Itoa(os.Getpid()), strconv.Itoa(child.Process.Pid)
	if in := procs(); !slices.Contains(in, me) || !slices.Contains(in, other) {
		t.Errorf("%s and %s are not in %s", me, other, in)
	}
	if err := g.Limit(Limits{Shares: 512, Quota: 50_000, Period: 100_000, PIDs: 700}); err != nil {
		t.Error(err)
	}
	shows(t, unit, "CPUWeight=20", "CPUQuotaPerSecUSec=500ms", "TasksMax=700")
	if err := g.Limit(Limits{Quota: -1, PIDs: -1}); err != nil {
		t.Error(err)
	}
	shows(t, unit, "CPUQuotaPerSecUSec=infinity", "TasksMax=infinity")
	if err := g.Outside(func() error {
		if in := procs(); slices.Contains(in, me) || !slices.Contains(in, other) {
			t.Errorf("outside %s is, and %s is not, in %s", me, other, in)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := g.Leave(); err != nil {
		t.Error(err)
	}
	if err := Remove(name); err == nil {
		t.Error("a scope that is in use was removed")
	}
	shows(t, unit, "ActiveState=active")
	_, _ = child.Process.Kill(), child.Wait()
	for range 2 {
		if err := Remove(name); err != nil {
			t.Error(err)
		}
	}
	shows(t, unit, "ActiveState=inactive", "LoadState=not-found")
	again, err := Join(name)
	if err != nil {
		t.Fatalf("once more: %v", err)
	}
	if err := again.Leave(); err != nil {
		t.Error(err)
	}
	if err := again.Remove(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", again.path)); err == nil {
		t.Errorf("%s is left", again.path)
	}
	if err := Place("no-slice:a:b", os.Getpid()); err == nil {
		t.Error("a scope in what is no slice was made")
	}
	scopeUndone(t, name, unit)
}

// scopeUndone has a hierarchy of version 1 take no process, once systemd has made the scope: nothing is left of it.
func scopeUndone(t *testing.T, name, unit string) {
	t.Helper()
	own := func() string {
		data, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	before := own()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	all := append(hierarchies(string(mounts), before), hierarchy{dir: t.TempDir(), own: "/"})
	if _, err := joinScope(name, all, []int{os.Getpid()}); err == nil {
		t.Error("a directory that is no hierarchy took a process")
	}
	shows(t, unit, "ActiveState=inactive", "LoadState=not-found")
	if after := own(); after != before {
		t.Errorf("after the failure in %s, before in %s", after, before)
	}
}

// shows checks properties of a unit as systemctl prints them.
func shows(t *testing.T, unit string, want ...string) {
	t.Helper()
	out, err := exec.Command("systemctl", "show", unit).Output()
	if err != nil {
		t.Fatalf("systemctl show: %v", err)
	}
	lines := strings.Split(string(out), "\n")
	for _, w := range want {
		if !slices.Contains(lines, w) {
			name, _, _ := strings.Cut(w, "=")
			i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+"=") })
			t.Errorf("%s: want %s, got %s", unit, w, lines[max(i, 0)])
		}
	}
}
