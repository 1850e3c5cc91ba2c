package ocispec

import (
	"encoding/json"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// edited is the example after change, through JSON as a bundle's would be.
func edited(t *testing.T, change func(*specs.Spec)) (*specs.Spec, error) {
	t.Helper()
	spec := Example(false, 0, 0)
	change(&spec)
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	return Parse(data)
}

// checkCase changes the example; want is a part of the error, empty for none.
type checkCase struct {
	name   string
	want   string
	change func(*specs.Spec)
}

func runChecks(t *testing.T, cases []checkCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := edited(t, c.change)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			case err != nil && strings.Contains(err.Error(), "\n"):
				t.Errorf("message of several lines: %q", err)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	for v, want := range map[string]string{
		"1.0.0": "", "1.0.0-rc5": "", "1.0.2-dev": "", "1.3.0": "", "1.99.0+build": "", "1.0.2-rc1-dev+x": "",
		"": "ociVersion is missing", "2.0.0": "only 1.x", "0.9.0": "only 1.x", "10.0.0": "only 1.x",
		"1": "is not a version", "1.0": "is not a version", "v1.0.0": "is not a version", "1.x.0": "is not a version",
		"1.0.0.0": "is not a version", "garbage": "is not a version", "1.-1.0": "is not a version", "-1.0.0": "is not a version",
	} {
		runChecks(t, []checkCase{{v, want, func(s *specs.Spec) { s.Version = v }}})
	}
}

func TestProcess(t *testing.T) {
	runChecks(t, []checkCase{
		{"none", "process is missing", func(s *specs.Spec) { s.Process = nil }},
		{"no args", "process.args is empty", func(s *specs.Spec) { s.Process.Args = nil }},
		{"empty program", "process.args is empty", func(s *specs.Spec) { s.Process.Args = []string{""} }},
		{"empty argument", "", func(s *specs.Spec) { s.Process.Args = []string{"sh", ""} }},
		{"no cwd", "process.cwd is missing", func(s *specs.Spec) { s.Process.Cwd = "" }},
		{"relative cwd", `process.cwd "home" is not absolute`, func(s *specs.Spec) { s.Process.Cwd = "home" }},
		{"null in args", "null byte", func(s *specs.Spec) { s.Process.Args = []string{"a\x00b"} }},
		{"null in env", "null byte", func(s *specs.Spec) { s.Process.Env = []string{"A=\x00"} }},
		{"null in cwd", "null byte", func(s *specs.Spec) { s.Process.Cwd = "/\x00" }},
		{"scheduler", "process.scheduler", func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedFIFO} }},
		{"io priority", "process.ioPriority", func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE} }},
		{"affinity", "process.execCPUAffinity", func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0"} }},
		{"labels", "", func(s *specs.Spec) { s.Process.ApparmorProfile, s.Process.SelinuxLabel = "p", "l" }},
	})
}

func TestRlimits(t *testing.T) {
	limits := func(l ...specs.POSIXRlimit) func(*specs.Spec) { return func(s *specs.Spec) { s.Process.Rlimits = l } }
	runChecks(t, []checkCase{
		{"fine", "", limits(specs.POSIXRlimit{Type: "RLIMIT_CORE", Soft: 1, Hard: 1 << 63}, specs.POSIXRlimit{Type: "RLIMIT_CPU"})},
		{"unknown", `unknown limit "RLIMIT_FUN"`, limits(specs.POSIXRlimit{Type: "RLIMIT_FUN"})},
		{"twice", "RLIMIT_AS is given twice", limits(specs.POSIXRlimit{Type: "RLIMIT_AS"}, specs.POSIXRlimit{Type: "RLIMIT_AS"})},
		{"soft above hard", "the soft RLIMIT_AS 2 is above the hard 1", limits(specs.POSIXRlimit{Type: "RLIMIT_AS", Soft: 2, Hard: 1})},
	})
}

func TestMounts(t *testing.T) {
	mount := func(m specs.Mount) func(*specs.Spec) { return func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) } }
	runChecks(t, []checkCase{
		{"bind", "", mount(specs.Mount{Destination: "/d", Type: "bind", Source: "/s"})},
		{"bind by option", "", mount(specs.Mount{Destination: "/d", Source: "/s", Options: []string{"rbind"}})},
		{"bind with type none", "", mount(specs.Mount{Destination: "/d", Type: "none", Source: "/s", Options: []string{"bind"}})},
		{"relative destination", "", mount(specs.Mount{Destination: "d", Type: "tmpfs"})},
		{"no destination", "a destination is missing", mount(specs.Mount{Type: "tmpfs"})},
		{"no source", "needs a source", mount(specs.Mount{Destination: "/d", Type: "bind"})},
		{"no type", "type is missing", mount(specs.Mount{Destination: "/d", Source: "/s"})},
		{"disk", `file system type "ext4" is not supported`, mount(specs.Mount{Destination: "/d", Type: "ext4", Source: "/dev/sda"})},
		{"overlay", `file system type "overlay"`, mount(specs.Mount{Destination: "/d", Type: "overlay", Options: []string{"lowerdir=/etc"}})},
		{"id mappings", "id-mapped", mount(specs.Mount{Destination: "/d", Type: "bind", Source: "/s", UIDMappings: []specs.LinuxIDMapping{{Size: 1}}})},
		{"idmap option", "id-mapped", mount(specs.Mount{Destination: "/d", Type: "bind", Source: "/s", Options: []string{"bind", "idmap"}})},
		{"null in destination", "null byte", mount(specs.Mount{Destination: "/d\x00", Type: "tmpfs"})},
		{"null in option", "null byte", mount(specs.Mount{Destination: "/d", Type: "tmpfs", Options: []string{"ro\x00"}})},
	})
}

func TestNamespaces(t *testing.T) {
	ns := func(list ...specs.LinuxNamespace) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, list...) }
	}
	only := func(list ...specs.LinuxNamespace) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Namespaces = list }
	}
	runChecks(t, []checkCase{
		{"unknown", `unknown namespace "fun"`, ns(specs.LinuxNamespace{Type: "fun"})},
		{"twice", "pid is given twice", ns(specs.LinuxNamespace{Type: "pid"})},
		{"none", "", only()},
		{"network path", "", only(specs.LinuxNamespace{Type: "network", Path: "/run/netns/a"})},
		{"relative path", "is not absolute", only(specs.LinuxNamespace{Type: "network", Path: "netns"})},
		{"pid path", "", only(specs.LinuxNamespace{Type: "pid", Path: "/proc/1/ns/pid"})},
		{"ipc path", "", only(specs.LinuxNamespace{Type: "ipc", Path: "/proc/1/ns/ipc"})},
		{"uts path", "", only(specs.LinuxNamespace{Type: "uts", Path: "/proc/1/ns/uts"})},
		{"user path", "needs linux.uidMappings", only(specs.LinuxNamespace{Type: "user", Path: "/proc/1/ns/user"})},
		{"time", "time namespaces are not supported", only(specs.LinuxNamespace{Type: "time"})},
		{"no linux", "", func(s *specs.Spec) { s.Linux = nil }},
	})
}

func TestIDMappings(t *testing.T) {
	user := specs.LinuxNamespace{Type: specs.UserNamespace}
	maps := func(own bool, m specs.LinuxIDMapping) func(*specs.Spec) {
		return func(s *specs.Spec) {
			if own {
				s.Linux.Namespaces = append(s.Linux.Namespaces, user)
			}
			s.Linux.UIDMappings, s.Linux.GIDMappings = []specs.LinuxIDMapping{m}, []specs.LinuxIDMapping{m}
		}
	}
	runChecks(t, []checkCase{
		{"fine", "", maps(true, specs.LinuxIDMapping{HostID: 1000, Size: 65536})},
		{"all ids", "", maps(true, specs.LinuxIDMapping{Size: 1<<32 - 1})},
		{"without namespace", "need a user namespace", maps(false, specs.LinuxIDMapping{Size: 1})},
		{"empty range", "is no range of ids", maps(true, specs.LinuxIDMapping{})},
		{"overflow", "is no range of ids", maps(true, specs.LinuxIDMapping{HostID: 1<<32 - 1, Size: 2})},
		{"without mappings", "needs linux.uidMappings", func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, user) }},
		{"time offsets", "needs a time namespace", func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}} }},
	})
}

func TestHooks(t *testing.T) {
	zero, one := 0, 1
	hook := func(h specs.Hook) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/fine"}, h}} }
	}
	runChecks(t, []checkCase{
		{"fine", "", hook(specs.Hook{Path: "/h", Timeout: &one})},
		{"relative", `hooks.createRuntime[1]: path "h" is not absolute`, hook(specs.Hook{Path: "h"})},
		{"no time", "hooks.createRuntime[1]: timeout 0", hook(specs.Hook{Path: "/h", Timeout: &zero})},
		{"poststop", "hooks.poststop[0]", func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{}}} }},
	})
}

func TestSeccomp(t *testing.T) {
	filter := func(f specs.LinuxSeccomp) func(*specs.Spec) { return func(s *specs.Spec) { s.Linux.Seccomp = &f } }
	call := func(action specs.LinuxSeccompAction, args ...specs.LinuxSeccompArg) specs.LinuxSeccomp {
		return specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: action, Args: args}}}
	}
	runChecks(t, []checkCase{
		{"fine", "", filter(call(specs.ActAllow, specs.LinuxSeccompArg{Index: 5, Op: specs.OpMaskedEqual}))},
		{"no action", "unknown action", filter(specs.LinuxSeccomp{})},
		{"unknown action", "SCMP_ACT_FUN", filter(call("SCMP_ACT_FUN"))},
		{"notify", "unsupported action", filter(call(specs.ActNotify))},
		{"listener", "notification listener", filter(specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/s"})},
		{"argument", "argument 6", filter(call(specs.ActAllow, specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo}))},
		{"operator", `operator "SCMP_CMP_FUN"`, filter(call(specs.ActAllow, specs.LinuxSeccompArg{Op: "SCMP_CMP_FUN"}))},
	})
}

func TestOtherChecks(t *testing.T) {
	runChecks(t, []checkCase{
		{"sysctl", "", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel/msgmax": "1"}
		}},
		{"empty sysctl", "no name of a setting", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"": "1"} }},
		{"sysctl with dots", "no name of a setting", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net..x": "1"} }},
		{"sysctl out of place", "no name of a setting", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"../x": "1"} }},
		{"propagation", "", func(s *specs.Spec) { s.Linux.RootfsPropagation = "rslave" }},
		{"unknown propagation", `"fun" is unknown`, func(s *specs.Spec) { s.Linux.RootfsPropagation = "fun" }},
		{"vm", "vm is not supported", func(s *specs.Spec) { s.VM = &specs.VM{} }},
		{"net devices", "netDevices", func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {}} }},
		{"rdt", "intelRdt", func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "a"} }},
		{"memory policy", "memoryPolicy", func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "MPOL_BIND"} }},
	})
}

func TestWarnings(t *testing.T) {
	spec, err := edited(t, func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "relative", Type: "tmpfs"})
		s.Process.ApparmorProfile, s.Process.SelinuxLabel = "profile", "label"
		s.Process.Capabilities.Ambient = []string{"CAP_FUN"}
	})
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(warnings(spec), "\n")
	for _, want := range []string{`"relative"`, `"profile"`, `"label"`, `"CAP_FUN"`} {
		if !strings.Contains(all, want) {
			t.Errorf("no warning of %s in:\n%s", want, all)
		}
	}
}
