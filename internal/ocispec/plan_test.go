package ocispec

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/testenv"
)

// plan loads a bundle with the example after change and plans it.
func plan(t *testing.T, change func(*specs.Spec)) (*Plan, string, error) {
	t.Helper()
	dir := bundle(t, change)
	b, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	before, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	p, err := MakePlan(b, PlanOptions{ShareDir: "/guest/share", Name: "c", MemoryDir: "/guest/memory", FilesDir: "/guest/files"})
	if after, _ := json.Marshal(b); string(after) != string(before) {
		t.Error("MakePlan changed the bundle")
	}
	return p, dir, err
}

func mustPlan(t *testing.T, change func(*specs.Spec)) (*Plan, string) {
	t.Helper()
	p, dir, err := plan(t, change)
	if err != nil {
		t.Fatal(err)
	}
	return p, dir
}

func TestPlanRoot(t *testing.T) {
	p, dir := mustPlan(t, nil)
	real, _ := filepath.EvalSymlinks(filepath.Join(dir, "rootfs"))
	want := SharedPath{HostPath: real, GuestName: "c.rootfs", ReadOnly: true, Recursive: true}
	if p.Root == nil || !reflect.DeepEqual(*p.Root, want) || len(p.Shares) != 1 || !reflect.DeepEqual(p.Shares[0], want) {
		t.Errorf("root = %+v, shares %+v, want %+v", p.Root, p.Shares, want)
	}
	if p.Spec.Root.Path != "/guest/share/c.rootfs" {
		t.Errorf("the guest's root is %q", p.Spec.Root.Path)
	}
	b, err := FromSpec(dir, []byte(`{"ociVersion":"1.0.2","process":{"args":["a"],"cwd":"/"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if p, err = MakePlan(b, PlanOptions{}); err != nil || p.Root != nil || len(p.Shares) != 0 {
		t.Errorf("without a root directory: %+v, %v", p, err)
	}
}

func TestPlanSpeaksTheRunnersVersion(t *testing.T) {
	if p, _ := mustPlan(t, func(s *specs.Spec) { s.Version = "1.3.0" }); p.Spec.Version != "1.0.2" {
		t.Errorf("version %s", p.Spec.Version)
	}
}

func TestPlanNetwork(t *testing.T) {
	for _, c := range []struct {
		name    string
		list    []specs.LinuxNamespace
		network Network
		netns   string
		guest   string
	}{
		{"new", []specs.LinuxNamespace{{Type: "network"}}, NetworkNew, "", guestNetNS},
		{"path", []specs.LinuxNamespace{{Type: "network", Path: "/run/netns/a"}}, NetworkPath, "/run/netns/a", guestNetNS},
		{"host", nil, NetworkHost, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, _ := mustPlan(t, func(s *specs.Spec) { s.Linux.Namespaces = c.list })
			if p.Network != c.network || p.NetNS != c.netns {
				t.Errorf("network %d %q", p.Network, p.NetNS)
			}
			guest := ""
			if ns := Namespace(p.Spec, specs.NetworkNamespace); ns != nil {
				guest = ns.Path
			}
			if guest != c.guest {
				t.Errorf("the guest joins %q, want %q", guest, c.guest)
			}
			if Namespace(p.Spec, specs.MountNamespace) == nil {
				t.Error("no mount namespace")
			}
		})
	}
}

func TestPlanHooks(t *testing.T) {
	one := func(path string) []specs.Hook { return []specs.Hook{{Path: path}} }
	p, _ := mustPlan(t, func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{
			Prestart: one("/1"), CreateRuntime: one("/2"), CreateContainer: one("/3"),
			StartContainer: one("/4"), Poststart: one("/5"), Poststop: one("/6"),
		}
	})
	if guest := (&specs.Hooks{StartContainer: one("/4")}); !reflect.DeepEqual(p.Spec.Hooks, guest) {
		t.Errorf("in the guest: %+v", p.Spec.Hooks)
	}
}

func TestPlanLeavesHostThingsOut(t *testing.T) {
	weight, n, limit := uint16(10), int64(1), int64(1<<30)
	p, _ := mustPlan(t, func(s *specs.Spec) {
		s.Process.ApparmorProfile, s.Process.SelinuxLabel, s.Linux.MountLabel = "a", "b", "c"
		s.Linux.CgroupsPath = "machine.slice:libpod:id"
		s.Linux.Resources = &specs.LinuxResources{
			CPU:     &specs.LinuxCPU{Cpus: "2-3", Mems: "1", Quota: &n, RealtimeRuntime: &n},
			BlockIO: &specs.LinuxBlockIO{Weight: &weight, ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{{Rate: 1}}},
			Memory:  &specs.LinuxMemory{Limit: &limit, Kernel: &limit},
			Rdma:    map[string]specs.LinuxRdma{"mlx": {}},
		}
	})
	r := p.Spec.Linux.Resources
	if r.CPU.Cpus != "" || r.CPU.Mems != "" || r.CPU.RealtimeRuntime != nil || r.BlockIO != nil || r.Rdma != nil || r.Memory.Kernel != nil {
		t.Errorf("resources = %+v", r)
	}
	if *r.CPU.Quota != 1 || *r.Memory.Limit != limit {
		t.Errorf("limits were lost: %+v %+v", r.CPU, r.Memory)
	}
	if p.CgroupsPath != "machine.slice:libpod:id" || p.Spec.Linux.CgroupsPath != "" {
		t.Errorf("cgroup %q, in the guest %q", p.CgroupsPath, p.Spec.Linux.CgroupsPath)
	}
	if p.Spec.Process.ApparmorProfile+p.Spec.Process.SelinuxLabel+p.Spec.Linux.MountLabel != "" {
		t.Error("labels stayed")
	}
	if all := strings.Join(p.Warnings, "\n"); !strings.Contains(all, "block I/O") || !strings.Contains(all, "RDMA") || !strings.Contains(all, "realtime") || !strings.Contains(all, "AppArmor") {
		t.Errorf("warnings:\n%s", all)
	}
}

func TestPlanDevices(t *testing.T) {
	disks, err := filepath.Glob("/sys/dev/block/*")
	if err != nil || len(disks) == 0 {
		t.Skip("this machine has no block device")
	}
	var major, minor int64
	if _, err := fmt.Sscanf(filepath.Base(disks[0]), "%d:%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		device specs.LinuxDevice
		want   string
	}{
		{specs.LinuxDevice{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, ""},
		{specs.LinuxDevice{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200}, ""},
		{specs.LinuxDevice{Path: "/dev/pipe", Type: "p"}, ""},
		{specs.LinuxDevice{Path: "/dev/disk", Type: "b", Major: major, Minor: minor}, ""},
		{specs.LinuxDevice{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11}, "device /dev/kmsg (1:11) is not supported yet"},
		{specs.LinuxDevice{Path: "/dev/a", Type: "b", Major: 511, Minor: 1 << 19}, ""}, // numbers without devices
		{specs.LinuxDevice{Path: "/dev/b", Type: "c", Major: 511, Minor: 1 << 19}, ""},
		{specs.LinuxDevice{Path: "/dev/x", Type: "d"}, "unknown type"},
		{specs.LinuxDevice{Path: "null", Type: "c", Major: 1, Minor: 3}, "is not absolute"},
	} {
		_, _, err := plan(t, func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{c.device} })
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.device, err, c.want)
		}
	}
}

// TestPlanBlocks: a block device that the host has is one that the guest is given, to read alone where the rules say so.
func TestPlanBlocks(t *testing.T) {
	disks, err := filepath.Glob("/sys/dev/block/*")
	if err != nil || len(disks) == 0 {
		t.Skip("this machine has no block device")
	}
	var major, minor int64
	if _, err := fmt.Sscanf(filepath.Base(disks[0]), "%d:%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	other := major + 1
	all := specs.LinuxDeviceCgroup{Access: "rwm"}
	rule := func(allow bool, kind string, major *int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Access: access}
	}
	for name, c := range map[string]struct {
		rules []specs.LinuxDeviceCgroup
		want  bool
	}{
		"no rules":                {nil, false},
		"all denied":              {[]specs.LinuxDeviceCgroup{all}, true},
		"read and written":        {[]specs.LinuxDeviceCgroup{all, rule(true, "b", &major, "rwm")}, false},
		"read alone":              {[]specs.LinuxDeviceCgroup{all, rule(true, "b", &major, "rm")}, true},
		"another may be":          {[]specs.LinuxDeviceCgroup{all, rule(true, "b", &other, "rwm")}, true},
		"characters may be":       {[]specs.LinuxDeviceCgroup{all, rule(true, "c", &major, "rwm")}, true},
		"every one, and then not": {[]specs.LinuxDeviceCgroup{all, rule(true, "b", nil, "rwm"), rule(false, "b", &major, "w")}, true},
	} {
		p, _, err := plan(t, func(s *specs.Spec) {
			device := specs.LinuxDevice{Path: "/dev/disk", Type: "b", Major: major, Minor: minor}
			s.Linux.Devices = []specs.LinuxDevice{device, device}
			s.Linux.Resources = &specs.LinuxResources{Devices: c.rules}
		})
		if err != nil {
			t.Fatal(err)
		}
		want := BlockDevice{Path: "/dev/disk", Major: major, Minor: minor, ReadOnly: c.want}
		if len(p.Blocks) != 1 || p.Blocks[0] != want {
			t.Errorf("%s: %+v, want %+v", name, p.Blocks, want)
		}
	}
}

// planMount plans the example with m added and returns what became of it.
func planMount(t *testing.T, m specs.Mount) (specs.Mount, *Plan, error) {
	t.Helper()
	p, _, err := plan(t, func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) })
	if err != nil {
		return specs.Mount{}, nil, err
	}
	return p.Spec.Mounts[len(p.Spec.Mounts)-1], p, nil
}

func TestPlanSharesFiles(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Symlink(dir, link)); err != nil {
		t.Fatal(err)
	}
	const name, guest = "c.m7", "/guest/share/c.m7" // after the example's seven
	for _, c := range []struct {
		name    string
		mount   specs.Mount
		share   SharedPath
		options []string
	}{
		{"directory", specs.Mount{Type: "bind", Source: dir}, SharedPath{HostPath: dir, GuestName: name}, []string{"bind"}},
		{"recursive", specs.Mount{Source: dir, Options: []string{"rbind", "rprivate"}}, SharedPath{HostPath: dir, GuestName: name, Recursive: true}, []string{"rbind", "rprivate"}},
		{"read-only", specs.Mount{Type: "bind", Source: dir, Options: []string{"bind", "ro"}}, SharedPath{HostPath: dir, GuestName: name, ReadOnly: true}, []string{"bind", "ro"}},
		{"the last option counts", specs.Mount{Type: "bind", Source: dir, Options: []string{"bind", "ro", "rw"}}, SharedPath{HostPath: dir, GuestName: name}, []string{"bind", "ro", "rw"}},
		{"file", specs.Mount{Type: "bind", Source: file}, SharedPath{HostPath: file, GuestName: name, IsFile: true}, []string{"bind"}},
		{"symlink", specs.Mount{Type: "bind", Source: link + "/file"}, SharedPath{HostPath: file, GuestName: name, IsFile: true}, []string{"bind"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.mount.Destination = "/d"
			got, p, err := planMount(t, c.mount)
			if err != nil {
				t.Fatal(err)
			}
			if want := (specs.Mount{Destination: "/d", Type: "bind", Source: guest, Options: c.options}); !reflect.DeepEqual(got, want) {
				t.Errorf("mount = %+v\nwant    %+v", got, want)
			}
			if len(p.Shares) != 2 || !reflect.DeepEqual(p.Shares[1], c.share) {
				t.Errorf("shares = %+v\nwant the root and %+v", p.Shares, c.share)
			}
		})
	}
}

func TestPlanResolvesSourcesInTheBundle(t *testing.T) {
	p, dir := mustPlan(t, func(s *specs.Spec) {
		s.Mounts = []specs.Mount{{Destination: "d", Type: "bind", Source: "rootfs"}}
	})
	real, _ := filepath.EvalSymlinks(filepath.Join(dir, "rootfs"))
	if p.Shares[1].HostPath != real || p.Spec.Mounts[0].Destination != "/d" {
		t.Errorf("share %+v, mount %+v", p.Shares[1], p.Spec.Mounts[0])
	}
}

// TestPlanKeepsTheHostsKernelAway binds what shows the host's kernel, devices or processes.
func TestPlanKeepsTheHostsKernelAway(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/proc", link); err != nil {
		t.Fatal(err)
	}
	flags := []string{"nosuid", "noexec", "nodev"}
	for _, c := range []struct {
		source  string
		options []string
		kind    string
		guest   string
		want    []string
	}{
		{"/proc", []string{"rbind"}, "proc", "proc", flags},
		{link, []string{"rbind"}, "proc", "proc", flags},
		{"/sys", []string{"rbind", "ro"}, "sysfs", "sysfs", append(slices.Clone(flags), "ro")},
		{"/sys/fs/cgroup", []string{"bind", "ro"}, "cgroup", "cgroup", append(slices.Clone(flags), "relatime", "ro")},
		{"/dev/shm", []string{"bind"}, "tmpfs", "tmpfs", append(slices.Clone(flags), "mode=1777")},
		{"/proc/sys", []string{"bind", "ro"}, "bind", "/proc/sys", []string{"bind", "ro"}},
		{"/sys/kernel", []string{"rbind"}, "bind", "/sys/kernel", []string{"rbind"}},
		{"/dev", []string{"rbind"}, "bind", "/dev", []string{"rbind"}},
		{"/dev/null", nil, "bind", "/dev/null", []string{"bind"}},
	} {
		if _, err := os.Stat(c.source); err != nil {
			t.Logf("not here: %v", err)
			continue
		}
		got, p, err := planMount(t, specs.Mount{Destination: "/d", Type: "bind", Source: c.source, Options: c.options})
		if err != nil {
			t.Errorf("%s: %v", c.source, err)
			continue
		}
		if want := (specs.Mount{Destination: "/d", Type: c.kind, Source: c.guest, Options: c.want}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s became %+v\nwant %+v", c.source, got, want)
		}
		if len(p.Shares) != 1 { // the root
			t.Errorf("%s is shared: %+v", c.source, p.Shares)
		}
	}
}

func TestPlanMakesShmInTheGuest(t *testing.T) {
	if kind, _, err := fileSystem("/dev/shm"); err != nil || kind != "tmpfs" {
		t.Skipf("/dev/shm is %q, %v", kind, err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "husk-test")
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	got, p, err := planMount(t, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: dir, Options: []string{"rbind"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Memory) != 1 || got.Type != "bind" || got.Source != "/guest/memory/"+p.Memory[0].GuestName || p.Memory[0].Bytes == 0 || len(p.Shares) != 1 {
		t.Errorf("became %+v, memory %+v, shares %+v", got, p.Memory, p.Shares)
	}
	got, p, err = planMount(t, specs.Mount{Destination: "/data", Type: "bind", Source: dir})
	if err != nil || got.Type != "bind" || len(p.Shares) != 2 {
		t.Errorf("elsewhere it became %+v, shares %+v, %v", got, p, err)
	}
}

func TestPlanRefusesMounts(t *testing.T) {
	for source, want := range map[string]string{
		"/none/such":              `mount "/d": source /none/such does not exist`,
		"/sys/fs/cgroup/anything": "",
		"/proc/self/ns/net":       "",
	} {
		_, p, err := planMount(t, specs.Mount{Destination: "/d", Type: "bind", Source: source})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want %q", source, p, err, want)
		}
	}
	for _, device := range []string{"/dev/kvm", "/dev/vda", "/dev/sda", "/dev/loop0", "/dev/mem"} {
		if _, err := os.Stat(device); err != nil {
			continue
		}
		if _, _, err := planMount(t, specs.Mount{Destination: "/d", Type: "bind", Source: device}); err == nil || !strings.Contains(err.Error(), "is a device of the host") {
			t.Errorf("%s: %v", device, err)
		}
	}
}

func TestPlanRefusesKernelFileSystemsElsewhere(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	for kind, file := range map[string]string{"proc": "version", "sysfs": "kernel"} {
		dir := t.TempDir()
		if err := syscall.Mount(kind, dir, kind, 0, ""); err != nil {
			t.Fatal(err)
		}
		for _, source := range []string{dir, filepath.Join(dir, file)} {
			_, p, err := planMount(t, specs.Mount{Destination: "/d", Type: "bind", Source: source})
			if err == nil || !strings.Contains(err.Error(), "lies on the host's "+kind) {
				t.Errorf("%s of %s: %+v, %v", source, kind, p, err)
			}
		}
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}
}

func TestPlanWarnsOfSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, p, err := planMount(t, specs.Mount{Destination: "/d", Type: "bind", Source: path})
	if err != nil || len(p.Shares) != 2 || !strings.Contains(strings.Join(p.Warnings, "\n"), "cannot talk through") {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestDeviceNumbers(t *testing.T) {
	for rdev, want := range map[uint64][2]int64{
		0x103: {1, 3}, 0xac8: {10, 200}, 0x0000_0000_0010_8812: {136, 0x112}, 0x0000_1000_0000_0001: {0x1000, 1},
	} {
		if major, minor := deviceNumbers(rdev); major != want[0] || minor != want[1] {
			t.Errorf("deviceNumbers(%#x) = %d, %d, want %v", rdev, major, minor, want)
		}
	}
}

func TestFeatures(t *testing.T) {
	f := Features()
	if f.OCIVersionMax != specs.Version || f.OCIVersionMin != "1.0.0" {
		t.Errorf("versions %s to %s", f.OCIVersionMin, f.OCIVersionMax)
	}
	for _, name := range f.Linux.Namespaces {
		if !knownNamespaces[name] {
			t.Errorf("promises the namespace %s, which checks refuse", name)
		}
	}
	if len(f.Linux.Namespaces) != len(knownNamespaces)-1 { // all but time
		t.Error("a namespace is missing")
	}
	for _, list := range [][]string{f.Hooks, f.MountOptions, f.Linux.Capabilities, f.Linux.Seccomp.Actions, f.Linux.Seccomp.Archs} {
		sorted := slices.Clone(list)
		slices.Sort(sorted)
		if len(list) == 0 || len(slices.Compact(sorted)) != len(list) {
			t.Errorf("empty or with duplicates: %q", list)
		}
	}
}
