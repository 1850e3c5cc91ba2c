package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestBadSpec: a configuration that cannot be run is refused before anything is started, with one line that
// names what is wrong.
func TestBadSpec(t *testing.T) {
	begin(t)
	gib := int64(1 << 30)
	for name, bad := range map[string]struct {
		change func(*specs.Spec)
		says   []string
	}{
		"version too new":     {func(s *specs.Spec) { s.Version = "2.0.0" }, []string{"ociVersion", "2.0.0"}},
		"version missing":     {func(s *specs.Spec) { s.Version = "" }, []string{"ociVersion"}},
		"version nonsense":    {func(s *specs.Spec) { s.Version = "one" }, []string{"ociVersion", "one"}},
		"no process":          {func(s *specs.Spec) { s.Process = nil }, []string{"process"}},
		"no args":             {func(s *specs.Spec) { s.Process.Args = nil }, []string{"process.args"}},
		"cwd relative":        {func(s *specs.Spec) { s.Process.Cwd = "etc" }, []string{"process.cwd", "etc"}},
		"cwd missing":         {func(s *specs.Spec) { s.Process.Cwd = "" }, []string{"process.cwd"}},
		"null byte":           {func(s *specs.Spec) { s.Process.Args = []string{"a\x00b"} }, []string{"null byte"}},
		"no root":             {func(s *specs.Spec) { s.Root = nil }, []string{"root.path"}},
		"root does not exist": {func(s *specs.Spec) { s.Root.Path = "no-such-root" }, []string{"no-such-root", "does not exist"}},
		"root is a file":      {func(s *specs.Spec) { s.Root.Path = "config.json" }, []string{"config.json", "directory"}},
		"limit unknown": {func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_FUN"}} },
			[]string{"RLIMIT_FUN"}},
		"mount source": {func(s *specs.Spec) { s.Mounts = append(s.Mounts, bindMount("/no/such/source", "/mnt")) },
			[]string{"/mnt", "/no/such/source", "does not exist"}},
		"mount type": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Type: "nfs", Source: "server:/x", Destination: "/mnt"})
		}, []string{"/mnt", "nfs"}},
		"host cgroup": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, bindMount("/sys/fs/cgroup/.", "/mnt"), bindMount(cgroupDir(t), "/mnt2"))
		}, []string{"/mnt2", "cgroup"}},
		"namespace unknown": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "dream"})
		}, []string{"dream"}},
		"namespace of the host":    {func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/1/ns/pid" }, []string{"pid", "/proc/1/ns/pid"}},
		"namespace does not exist": {func(s *specs.Spec) { network(s).Path = "/no/such/netns" }, []string{"/no/such/netns"}},
		"host network by path":     {func(s *specs.Spec) { network(s).Path = "/proc/self/ns/net" }, []string{"cannot have the host's network"}},
		"namespace that is none":   {func(s *specs.Spec) { network(s).Path = "/dev/null" }, []string{"/dev/null", "namespace"}},
		"interface on another": {func(s *specs.Spec) {
			network(s).Path = newSpace(t, "ip link add a0 type veth peer name b0", "ip link add l0 link a0 type macvlan").path
		}, []string{"interface l0 is on top of a0"}},
		"port of a bridge": {func(s *specs.Spec) {
			network(s).Path = newSpace(t, "ip link add br0 type bridge", "ip link add a0 type veth peer name b0", "ip link set a0 master br0").path
		}, []string{"interface a0 is a port of br0"}},
		"block device": {func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/disk", Type: "b", Major: 7, Minor: freeLoop(t)}}
		}, []string{"block device", "/dev/disk", "no medium"}},
		"host device": {func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/odd", Type: "c", Major: 1, Minor: 11}} // kmsg, which every host has
		}, []string{"device", "/dev/odd"}},
		"bound block device": {func(s *specs.Spec) { s.Mounts = append(s.Mounts, bindMount(blockDevice(t), "/dev/disk")) },
			[]string{"/dev/disk", "device"}},
		"hook relative": {func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "hook"}}} }, []string{"poststop", "hook"}},
		"user namespace": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}, []string{"user namespace", "uidMappings"}},
		"seccomp action": {func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_HOPE"} }, []string{"SCMP_ACT_HOPE"}},
		"more memory than there is": {func(s *specs.Spec) {
			much := 1 << 14 * gib
			s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &much}
		}, []string{"memory", "host"}},
		"larger than a message": {func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "A="+strings.Repeat("x", 5<<20)) },
			[]string{"bytes", "at most"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBundle(t, "true")
			bad.change(&b.spec)
			husk(t, "create", "--bundle", b.write(), testName(t)).fails(1, bad.says...)
			expect(t, "status", status(t, testName(t)), "none")
		})
	}
}

func testName(t *testing.T) string { return name(t) }

func bindMount(source, destination string) specs.Mount {
	return specs.Mount{Type: "bind", Source: source, Destination: destination, Options: []string{"rbind"}}
}

func network(s *specs.Spec) *specs.LinuxNamespace {
	for i := range s.Linux.Namespaces {
		if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			return &s.Linux.Namespaces[i]
		}
	}
	panic("husk spec wrote no network namespace")
}

// cgroupDir is a directory of the host's cgroups.
func cgroupDir(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			return filepath.Join("/sys/fs/cgroup", e.Name())
		}
	}
	t.Skip("this machine has no cgroups")
	return ""
}

// blockDevice makes a node of a block device; nothing opens it.
func blockDevice(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node")
	if err := syscall.Mknod(path, syscall.S_IFBLK|0o600, 7<<8); err != nil {
		t.Fatal(err)
	}
	return path
}

// freeLoop is the minor number of a loop device with nothing behind it.
func freeLoop(t *testing.T) (minor int64) {
	t.Helper()
	all, _ := filepath.Glob("/sys/block/loop*")
	for _, dir := range all {
		size, err := os.ReadFile(filepath.Join(dir, "size"))
		if err != nil || strings.TrimSpace(string(size)) != "0" {
			continue
		}
		if _, err := fmt.Sscanf(filepath.Base(dir), "loop%d", &minor); err == nil {
			return minor
		}
	}
	t.Skip("this machine has no free loop device")
	return 0
}

// TestBadConfigJSON: files that are no configuration.
func TestBadConfigJSON(t *testing.T) {
	begin(t)
	for name, bad := range map[string]struct {
		make func(path string) error
		says []string
	}{
		"missing":     {func(string) error { return nil }, []string{"config.json"}},
		"empty":       {write(""), []string{"config.json", "line 1"}},
		"cut short":   {write(`{"ociVersion":"1.0.2",`), []string{"config.json", "line 1, column 22"}},
		"no object":   {write(`[]`), []string{"config.json", "array"}},
		"wrong type":  {write("{\"ociVersion\":\"1.0.2\",\n\"process\":{\"args\":\"sh\"}}"), []string{"config.json", "line 2", "args"}},
		"binary":      {write("\x7fELF\x00\x00"), []string{"config.json", "line 1"}},
		"deep":        {write(strings.Repeat(`{"a":`, 1<<17)), []string{"config.json"}},
		"a directory": {func(p string) error { return os.Mkdir(p, 0o755) }, []string{"config.json", "regular file"}},
		"a pipe":      {func(p string) error { return syscall.Mkfifo(p, 0o644) }, []string{"config.json", "regular file"}},
		"a loop":      {func(p string) error { return os.Symlink("config.json", p) }, []string{"config.json", "too many levels"}},
		"endless":     {func(p string) error { return os.Symlink("/dev/zero", p) }, []string{"config.json", "regular file"}},
		"100 MiB": {func(p string) error {
			if err := os.WriteFile(p, []byte("{"), 0o644); err != nil {
				return err
			}
			return os.Truncate(p, 100<<20)
		}, []string{"config.json", "10 MiB"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := bad.make(filepath.Join(dir, "config.json")); err != nil {
				t.Fatal(err)
			}
			for _, verb := range []string{"create", "run"} {
				husk(t, verb, "--bundle", dir, testName(t)).fails(1, bad.says...)
			}
			expect(t, "status", status(t, testName(t)), "none")
		})
	}
	husk(t, "create", "--bundle", "/no/such/bundle", name(t)).fails(1, "/no/such/bundle")
	husk(t, "create", "--bundle", file(t, "{}"), name(t)).fails(1, "config.json")
	c := husk(t, "create", name(t)) // the bundle is the working directory
	c.dir = t.TempDir()
	c.fails(1, c.dir, "config.json")
}

func write(text string) func(string) error {
	return func(path string) error { return os.WriteFile(path, []byte(text), 0o644) }
}

// TestRelativePaths: a bundle and a root that are named by relative paths and links are found.
func TestRelativePaths(t *testing.T) {
	begin(t)
	b := newBundle(t, "echo found").ownRoot()
	b.spec.Root.Path = "./x/../link"
	if err := os.Symlink("rootfs", filepath.Join(b.dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(b.dir, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	b.write()
	c := husk(t, "run", "--bundle", filepath.Base(b.dir), name(t))
	c.dir = filepath.Dir(b.dir)
	expect(t, "output", c.ok(), "found\n")
}

func TestBadIDs(t *testing.T) {
	begin(t)
	dir := newBundle(t, "true").write()
	for _, id := range []string{"", ".", "..", "a/b", "../escape", "/etc", "a b", "ünïcode", "a\nb", strings.Repeat("x", 129), "a:b", "a*"} {
		what := id
		if len(id) > 16 {
			what = id[:16]
		}
		quoted, err := json.Marshal(what)
		if err != nil {
			t.Fatal(err)
		}
		says := strings.Trim(string(quoted), `"`)
		husk(t, "create", "--bundle", dir, id).fails(1, "id", says)
		husk(t, "run", "--bundle", dir, id).fails(1, "id", says)
		husk(t, "state", id).fails(1, "id", says)
		husk(t, "delete", "--force", id).fails(1, "id", says)
		husk(t, "kill", id).fails(1, "id", says)
		husk(t, "run", "--name", id+" ", demo, "true").fails(125, "id")
	}
	husk(t, "create", "--bundle", dir).fails(1, "arg")
}

// TestBadPidFile: a container whose pid cannot be told to who asked is taken back.
func TestBadPidFile(t *testing.T) {
	begin(t)
	dir := newBundle(t, "true").write()
	husk(t, "create", "--bundle", dir, "--pid-file", "/no/such/dir/pid", name(t)).fails(1, "pid file", "/no/such/dir")
	expect(t, "status", status(t, name(t)), "none")
	husk(t, "run", "--bundle", dir, "--pid-file", "/no/such/dir/pid", name(t)).fails(1, "pid file", "/no/such/dir")
	expect(t, "status", status(t, name(t)), "none")
}

// TestBadPrograms: programs that cannot be run leave nothing behind, whoever asks for them.
func TestBadPrograms(t *testing.T) {
	begin(t)
	for _, bad := range []struct {
		name   string
		change func(*specs.Process)
		says   []string
	}{
		{"not found", func(p *specs.Process) { p.Args = []string{"no-such-program"} }, []string{"no-such-program", "not found in $PATH"}},
		{"not executable", func(p *specs.Process) { p.Args = []string{"/etc/passwd"} }, []string{"/etc/passwd", "permission denied"}},
		{"cwd", func(p *specs.Process) { p.Cwd = "/no/such/dir" }, []string{"/no/such/dir", "no such file or directory"}},
	} {
		t.Run(bad.name, func(t *testing.T) {
			b := newBundle(t, "true")
			bad.change(b.spec.Process)
			husk(t, "create", "--bundle", b.write(), name(t)).fails(1, bad.says...)
			expect(t, "status", status(t, name(t)), "none")
		})
	}
	t.Run("run", func(t *testing.T) {
		b := newBundle(t, "true")
		b.spec.Process.Args = []string{"/no/such/program"}
		husk(t, "run", "--bundle", b.write(), name(t)).fails(1, "/no/such/program")
		expect(t, "status", status(t, name(t)), "none")
	})
}
