package hostcgroup

import (
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

func TestHierarchies(t *testing.T) {
	mounts := strings.Join([]string{
		`30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw`,
		`31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct`,
		`32 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset`,
		`33 30 0:28 / /somewhere/else rw - cgroup cgroup rw,cpuset`,
		`34 30 0:29 /docker/x /part rw - cgroup cgroup rw,memory`,
		`35 30 0:30 / /systemd rw - cgroup cgroup rw,xattr,name=systemd`,
		`36 30 0:31 / /with\040space rw - cgroup cgroup rw,blkio`,
		`37 30 0:32 / /unified rw - cgroup2 cgroup2 rw`,
	}, "\n")
	own := "12:cpu,cpuacct:/a/b\n5:cpuset:/\n4:memory:/m\n3:blkio:/b\n1:name=systemd:/user.slice\n0::/x:y\n"
	want := []hierarchy{
		{dir: "/sys/fs/cgroup/cpu,cpuacct", own: "/a/b"},
		{dir: "/sys/fs/cgroup/cpuset", cpuset: true, own: "/"},
		{dir: "/with space", own: "/b"},
	}
	if got := counting(hierarchies(mounts, own)); !slices.Equal(got, want) {
		t.Errorf("found %+v\nwant %+v", got, want)
	}
	// systemd's own are those that it finds processes by.
	want = append(slices.Insert(want, 2, hierarchy{dir: "/systemd", bare: true, own: "/user.slice"}),
		hierarchy{dir: "/unified", unified: true, bare: true, own: "/x:y"})
	if got := hierarchies(mounts, own); !slices.Equal(got, want) {
		t.Errorf("found %+v\nwant %+v", got, want)
	}
	alone := `36 30 0:31 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw`
	if got, want := hierarchies(alone, own), []hierarchy{{dir: "/sys/fs/cgroup", unified: true, own: "/x:y"}}; !slices.Equal(got, want) {
		t.Errorf("found %+v, want %+v", got, want)
	}
	if got := hierarchies("", own); got != nil {
		t.Errorf("found %+v where nothing is mounted", got)
	}
}

func TestUsable(t *testing.T) {
	for name, want := range map[string]bool{
		"": false, "/": false, "/..": false, "..": false, "relative/path": true, "/a:b:c": true, "machine.slice:libpod:id": false,
		"/libpod_parent/libpod-x": true, "/a\nb": false,
	} {
		if got := Usable(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

// version2 is a shell script that shows a program the control groups of a host that has version 2 alone.
const version2 = `mount --make-rprivate / && umount -R -l /sys/fs/cgroup && mount -t tmpfs tmpfs /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"`

// TestJoin moves a copy of the test and a process of its own into a group and back, with the control groups
// of this host, and as a host with version 2 alone has them.
func TestJoin(t *testing.T) {
	testenv.NeedRoot(t)
	const name = "/husk-test-join/inner"
	if os.Getenv("HUSK_TEST_JOIN") == "" {
		again := []string{os.Args[0], "-test.run=^TestJoin$", "-test.v"}
		for _, args := range [][]string{again, append([]string{"unshare", "--mount", "sh", "-c", version2, "sh"}, again...)} {
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Env = append(os.Environ(), "HUSK_TEST_JOIN="+args[0])
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		return
	}
	child := exec.Command("sleep", "100")
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	g, err := Join(name, child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if alone := os.Getenv("HUSK_TEST_JOIN") == "unshare"; alone && (len(g.hierarchies) != 1 || !g.hierarchies[0].unified) {
		t.Errorf("hierarchies with version 2 alone: %+v", g.hierarchies)
	}
	checkLimits(t, g)
	for _, h := range g.hierarchies {
		procs, err := os.ReadFile(filepath.Join(h.dir, name, "cgroup.procs"))
		for _, pid := range []int{os.Getpid(), child.Process.Pid} {
			if err != nil || !slices.Contains(strings.Fields(string(procs)), strconv.Itoa(pid)) {
				t.Errorf("%s has %q: %v", h.dir, procs, err)
			}
		}
	}
	if err := g.Leave(); err != nil {
		t.Error(err)
	}
	if after, _ := os.ReadFile("/proc/self/cgroup"); string(after) != string(before) {
		t.Errorf("after leaving in %s\nbefore in %s", after, before)
	}
	if err := Remove(name); err == nil {
		t.Error("a group that is in use was removed")
	}
	_, _ = child.Process.Kill(), child.Wait()
	for _, group := range []string{name, filepath.Dir(name), name} {
		if err := Remove(group); err != nil {
			t.Error(err)
		}
	}
	for _, h := range g.hierarchies {
		if _, err := os.Stat(filepath.Join(h.dir, filepath.Dir(name))); !os.IsNotExist(err) {
			t.Errorf("%s is left in %s: %v", name, h.dir, err)
		}
	}
}

// checkLimits sets limits of a group and looks for them in every hierarchy that has such.
func checkLimits(t *testing.T, g *Group) {
	t.Helper()
	if err := g.Limit(Limits{Shares: 512, Quota: 50_000, Period: 100_000, PIDs: 700}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"cpu.shares": "512", "cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000", "pids.max": "700",
		"cpu.weight": "20", "cpu.max": "50000 100000",
	}
	has := func() map[string]string {
		found := map[string]string{}
		for _, h := range g.hierarchies {
			for name := range want {
				if data, err := os.ReadFile(filepath.Join(h.dir, g.path, name)); err == nil {
					found[name] = strings.TrimSpace(string(data))
				}
			}
		}
		return found
	}
	for name, value := range has() {
		if value != want[name] {
			t.Errorf("%s is %q, want %q", name, value, want[name])
		}
	}
	if err := g.Limit(Limits{Quota: -1, PIDs: -1}); err != nil {
		t.Fatal(err)
	}
	for name, value := range has() {
		if any := map[string]string{"cpu.cfs_quota_us": "-1", "pids.max": "max", "cpu.max": "max 100000"}[name]; any != "" && value != any {
			t.Errorf("%s is %q, want %q", name, value, any)
		}
	}
	if err := g.Limit(Limits{CPUs: "4095"}); err == nil {
		t.Error("a processor that the host does not have was set")
	}
	if err := (*Group)(nil).Limit(Limits{CPUs: "0"}); err != nil {
		t.Error(err)
	}
}
