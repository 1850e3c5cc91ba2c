package ocispec

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// checks is what the configuration of a container must pass, in the order in which its errors help most. None looks at
// the host.
var checks = append([]func(*specs.Spec) error{version, processPresent, processValid}, podChecks...)

// podChecks is what that of a pod without a container must pass.
var podChecks = []func(*specs.Spec) error{
	hostname,
	mounts,
	namespaces,
	idMappings,
	sysctls,
	propagation,
	hooks,
	seccomp,
	beyondHusk,
}

func check(spec *specs.Spec, checks []func(*specs.Spec) error) error {
	for _, c := range checks {
		if err := c(spec); err != nil {
			return err
		}
	}
	return nil
}

func version(spec *specs.Spec) error {
	v := spec.Version
	if v == "" {
		return errors.New("ociVersion is missing")
	}
	core, _, _ := strings.Cut(v, "+")
	core, _, _ = strings.Cut(core, "-")
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return fmt.Errorf("ociVersion %q is not a version", v)
	}
	for _, p := range parts {
		if _, err := strconv.ParseUint(p, 10, 16); err != nil {
			return fmt.Errorf("ociVersion %q is not a version", v)
		}
	}
	if parts[0] != "1" {
		return fmt.Errorf("ociVersion %q is not supported, only 1.x", v)
	}
	return nil
}

func processPresent(spec *specs.Spec) error {
	if spec.Process == nil {
		return errors.New("process is missing")
	}
	return nil
}

func processValid(spec *specs.Spec) error { return CheckProcess(spec.Process) }

// CheckProcess tells what is wrong with a process, of a container or of an exec.
func CheckProcess(p *specs.Process) error {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return errors.New("process.args is empty")
	}
	if p.Cwd == "" {
		return errors.New("process.cwd is missing")
	}
	if !path.IsAbs(p.Cwd) {
		return fmt.Errorf("process.cwd %q is not absolute", p.Cwd)
	}
	for name, list := range map[string][]string{"args": p.Args, "env": p.Env, "cwd": {p.Cwd}} {
		for _, s := range list {
			if strings.ContainsRune(s, 0) {
				return fmt.Errorf("process.%s: %q holds a null byte", name, s)
			}
		}
	}
	if err := rlimits(p.Rlimits); err != nil {
		return err
	}
	switch {
	case p.Scheduler != nil:
		return errors.New("process.scheduler is not supported")
	case p.IOPriority != nil:
		return errors.New("process.ioPriority is not supported")
	case p.ExecCPUAffinity != nil:
		return errors.New("process.execCPUAffinity is not supported")
	}
	return nil
}

func rlimits(limits []specs.POSIXRlimit) error {
	seen := map[string]bool{}
	for _, l := range limits {
		if !knownRlimits[l.Type] {
			return fmt.Errorf("process.rlimits: unknown limit %q", l.Type)
		}
		if seen[l.Type] {
			return fmt.Errorf("process.rlimits: %s is given twice", l.Type)
		}
		seen[l.Type] = true
		if l.Soft > l.Hard {
			return fmt.Errorf("process.rlimits: the soft %s %d is above the hard %d", l.Type, l.Soft, l.Hard)
		}
	}
	return nil
}

var knownRlimits = set(
	"RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_LOCKS", "RLIMIT_MEMLOCK",
	"RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_RSS", "RLIMIT_RTPRIO",
	"RLIMIT_RTTIME", "RLIMIT_SIGPENDING", "RLIMIT_STACK",
)

// hostname bounds names as the kernel does (__NEW_UTS_LEN in linux/utsname.h).
func hostname(spec *specs.Spec) error {
	for what, name := range map[string]string{"hostname": spec.Hostname, "domainname": spec.Domainname} {
		if len(name) > 64 {
			return fmt.Errorf("%s %.16q… is %d bytes long, at most 64", what, name, len(name))
		}
	}
	return nil
}

func mounts(spec *specs.Spec) error {
	for _, m := range spec.Mounts {
		if m.Destination == "" {
			return errors.New("mounts: a destination is missing")
		}
		for _, s := range append([]string{m.Destination, m.Source, m.Type}, m.Options...) {
			if strings.ContainsRune(s, 0) {
				return fmt.Errorf("mount %q: %q holds a null byte", m.Destination, s)
			}
		}
		mapped := len(m.UIDMappings) > 0 && len(m.GIDMappings) > 0
		if has(m.Options, "ridmap") || has(m.Options, "idmap") && !mapped || mapped && !isBind(m) || !mapped && len(m.UIDMappings)+len(m.GIDMappings) > 0 {
			return fmt.Errorf("mount %q: only bind mounts can be id-mapped, with mappings of their own for users and groups, and not what is mounted below them", m.Destination)
		}
		if isBind(m) {
			if m.Source == "" {
				return fmt.Errorf("mount %q: a bind mount needs a source", m.Destination)
			}
			continue
		}
		if m.Type == "" || m.Type == "none" {
			return fmt.Errorf("mount %q: type is missing", m.Destination)
		}
		if !guestTypes[m.Type] {
			return fmt.Errorf("mount %q: file system type %q is not supported: mount it on the host and bind it", m.Destination, m.Type)
		}
	}
	return nil
}

// guestTypes are the file systems that the guest makes by itself, from nothing of the host.
var guestTypes = set(
	"proc", "sysfs", "tmpfs", "ramfs", "devpts", "mqueue", "cgroup", "cgroup2", "devtmpfs", "hugetlbfs",
	"bpf", "binfmt_misc", "securityfs",
)

func namespaces(spec *specs.Spec) error {
	if spec.Linux == nil {
		return nil
	}
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range spec.Linux.Namespaces {
		if !knownNamespaces[string(ns.Type)] {
			return fmt.Errorf("linux.namespaces: unknown namespace %q", ns.Type)
		}
		if seen[ns.Type] {
			return fmt.Errorf("linux.namespaces: %s is given twice", ns.Type)
		}
		seen[ns.Type] = true
		if ns.Type == specs.TimeNamespace {
			return errors.New("linux.namespaces: time namespaces are not supported: the guest's runner fails to make one")
		}
		if ns.Path == "" {
			continue
		}
		if !path.IsAbs(ns.Path) {
			return fmt.Errorf("linux.namespaces: the %s path %q is not absolute", ns.Type, ns.Path)
		}
		if !joinable[ns.Type] {
			return fmt.Errorf("linux.namespaces: the container cannot join the %s namespace %s: it runs on a kernel of its own", ns.Type, ns.Path)
		}
	}
	return nil
}

// joinable are the namespaces that a container may have of another one, in the same virtual machine.
var joinable = map[specs.LinuxNamespaceType]bool{
	specs.NetworkNamespace: true, specs.PIDNamespace: true, specs.IPCNamespace: true, specs.UTSNamespace: true,
	specs.UserNamespace: true,
}

var knownNamespaces = set("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")

func idMappings(spec *specs.Spec) error {
	if spec.Linux == nil {
		return nil
	}
	mapped := len(spec.Linux.UIDMappings)+len(spec.Linux.GIDMappings) > 0
	own := Namespace(spec, specs.UserNamespace) != nil
	if mapped && !own {
		return errors.New("linux.uidMappings and gidMappings need a user namespace")
	}
	if own && (len(spec.Linux.UIDMappings) == 0 || len(spec.Linux.GIDMappings) == 0) {
		return errors.New("a new user namespace needs linux.uidMappings and gidMappings")
	}
	for _, list := range [][]specs.LinuxIDMapping{spec.Linux.UIDMappings, spec.Linux.GIDMappings} {
		for _, m := range list {
			if m.Size == 0 || uint64(m.ContainerID)+uint64(m.Size) > 1<<32 || uint64(m.HostID)+uint64(m.Size) > 1<<32 {
				return fmt.Errorf("linux id mapping %d:%d:%d is no range of ids", m.ContainerID, m.HostID, m.Size)
			}
		}
	}
	if len(spec.Linux.TimeOffsets) > 0 {
		return errors.New("linux.timeOffsets needs a time namespace, which is not supported")
	}
	return nil
}

func sysctls(spec *specs.Spec) error {
	if spec.Linux == nil {
		return nil
	}
	for key := range spec.Linux.Sysctl {
		if key == "" || strings.ContainsRune(key, 0) || has(strings.Split(strings.ReplaceAll(key, ".", "/"), "/"), "") {
			return fmt.Errorf("linux.sysctl: %q is no name of a setting", key)
		}
	}
	return nil
}

func propagation(spec *specs.Spec) error {
	if spec.Linux == nil || knownPropagation[spec.Linux.RootfsPropagation] {
		return nil
	}
	return fmt.Errorf("linux.rootfsPropagation %q is unknown", spec.Linux.RootfsPropagation)
}

var knownPropagation = set("", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable")

func hooks(spec *specs.Spec) error {
	for name, list := range hookLists(spec.Hooks) {
		for i, h := range list {
			if !path.IsAbs(h.Path) {
				return fmt.Errorf("hooks.%s[%d]: path %q is not absolute", name, i, h.Path)
			}
			if h.Timeout != nil && *h.Timeout <= 0 {
				return fmt.Errorf("hooks.%s[%d]: timeout %d is not above zero", name, i, *h.Timeout)
			}
		}
	}
	return nil
}

func hookLists(h *specs.Hooks) map[string][]specs.Hook {
	if h == nil {
		return nil
	}
	return map[string][]specs.Hook{
		"prestart": h.Prestart, "createRuntime": h.CreateRuntime, "createContainer": h.CreateContainer,
		"startContainer": h.StartContainer, "poststart": h.Poststart, "poststop": h.Poststop,
	}
}

func seccomp(spec *specs.Spec) error {
	if spec.Linux == nil || spec.Linux.Seccomp == nil {
		return nil
	}
	s := spec.Linux.Seccomp
	if s.ListenerPath != "" || s.DefaultAction == specs.ActNotify {
		return errors.New("linux.seccomp: a notification listener on the host is not supported")
	}
	if !has(seccompActions, string(s.DefaultAction)) {
		return fmt.Errorf("linux.seccomp: unknown action %q", s.DefaultAction)
	}
	for _, call := range s.Syscalls {
		if !has(seccompActions, string(call.Action)) {
			return fmt.Errorf("linux.seccomp: unknown or unsupported action %q", call.Action)
		}
		for _, arg := range call.Args {
			if arg.Index > 5 || !has(seccompOperators, string(arg.Op)) {
				return fmt.Errorf("linux.seccomp: argument %d with operator %q of %v", arg.Index, arg.Op, call.Names)
			}
		}
	}
	return nil
}

// beyondHusk refuses what the guest's runner would leave out in silence.
func beyondHusk(spec *specs.Spec) error {
	if spec.VM != nil {
		return errors.New("vm is not supported: husk's own settings say what machine a container gets")
	}
	l := spec.Linux
	switch {
	case l == nil:
		return nil
	case len(l.NetDevices) > 0:
		return errors.New("linux.netDevices is not supported")
	case l.MemoryPolicy != nil:
		return errors.New("linux.memoryPolicy is not supported")
	case l.IntelRdt != nil:
		return errors.New("linux.intelRdt is not supported")
	}
	return nil
}

// warnings lists what is accepted but not as it was written.
func warnings(spec *specs.Spec) []string {
	var list []string
	for _, m := range spec.Mounts {
		if !path.IsAbs(m.Destination) {
			list = append(list, fmt.Sprintf("mount %q: the destination should be absolute", m.Destination))
		}
	}
	if p := spec.Process; p != nil {
		if p.ApparmorProfile != "" {
			list = append(list, fmt.Sprintf("the AppArmor profile %q is left out: the guest has no AppArmor", p.ApparmorProfile))
		}
		if p.SelinuxLabel != "" {
			list = append(list, fmt.Sprintf("the SELinux label %q is left out: the guest has no SELinux", p.SelinuxLabel))
		}
		for _, name := range unknownCapabilities(p.Capabilities) {
			list = append(list, fmt.Sprintf("the unknown capability %q is left out", name))
		}
	}
	return list
}

// Namespace returns the namespace of a kind that the configuration names, to read or change; nil where there is none.
func Namespace(spec *specs.Spec, kind specs.LinuxNamespaceType) *specs.LinuxNamespace {
	if spec.Linux == nil {
		return nil
	}
	for i := range spec.Linux.Namespaces {
		if spec.Linux.Namespaces[i].Type == kind {
			return &spec.Linux.Namespaces[i]
		}
	}
	return nil
}

func set(names ...string) map[string]bool {
	s := make(map[string]bool, len(names))
	for _, n := range names {
		s[n] = true
	}
	return s
}

func has(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}
