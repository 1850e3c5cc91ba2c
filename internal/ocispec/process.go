package ocispec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// LoadProcess reads and checks a file that holds the OCI "process" object.
func LoadProcess(file string) (specs.Process, error) {
	data, err := readFile(file)
	if err != nil {
		return specs.Process{}, fmt.Errorf("read process file: %w", err)
	}
	p, err := ParseProcess(data)
	if err != nil {
		return specs.Process{}, fmt.Errorf("%s: %w", file, err)
	}
	return p, nil
}

// ParseProcess decodes and checks an OCI "process" object.
func ParseProcess(data []byte) (specs.Process, error) {
	var p specs.Process
	if err := decode(data, &p); err != nil {
		return specs.Process{}, err
	}
	if err := CheckProcess(&p); err != nil {
		return specs.Process{}, err
	}
	cleanProcess(&p)
	return p, nil
}

// ExecFlags is what the flags of exec change on the container's own process. The zero value of a field
// changes nothing, but Terminal is always taken.
type ExecFlags struct {
	Args               []string
	Terminal           bool
	Cwd                string
	Env                []string // NAME=value, each replaces the container's of that name
	User               string   // uid[:gid]
	AdditionalGIDs     []uint32 // added
	Capabilities       []string // added, with or without "CAP_"
	NoNewPrivileges    bool
	AllowNewPrivileges bool // overrides the container's no_new_privs
	Rows, Columns      uint
}

// ExecProcess is the process that exec runs: the container's own, changed by flags, checked. base is
// not changed.
func ExecProcess(base specs.Process, flags ExecFlags) (specs.Process, error) {
	p := base
	p.Terminal = flags.Terminal
	p.ConsoleSize = nil
	if flags.Rows > 0 && flags.Columns > 0 {
		p.ConsoleSize = &specs.Box{Height: flags.Rows, Width: flags.Columns}
	}
	if len(flags.Args) > 0 {
		p.Args = flags.Args
	}
	if flags.Cwd != "" {
		p.Cwd = flags.Cwd
	}
	if flags.User != "" {
		uid, gid, err := ParseUser(flags.User)
		if err != nil {
			return specs.Process{}, err
		}
		p.User.UID = uid
		if gid != nil {
			p.User.GID = *gid
		}
	}
	p.User.AdditionalGids = append(slices.Clone(p.User.AdditionalGids), flags.AdditionalGIDs...)
	env, err := mergeEnv(p.Env, flags.Env)
	if err != nil {
		return specs.Process{}, err
	}
	p.Env = env
	if p.Capabilities, err = addCapabilities(p.Capabilities, flags.Capabilities); err != nil {
		return specs.Process{}, err
	}
	switch {
	case flags.NoNewPrivileges:
		p.NoNewPrivileges = true
	case flags.AllowNewPrivileges:
		p.NoNewPrivileges = false
	}
	if err := CheckProcess(&p); err != nil {
		return specs.Process{}, err
	}
	cleanProcess(&p)
	return p, nil
}

// ParseUser takes uid[:gid] apart; gid is nil where there is none.
func ParseUser(s string) (uid uint32, gid *uint32, err error) {
	u, g, two := strings.Cut(s, ":")
	n, err := strconv.ParseUint(u, 10, 32)
	if err != nil {
		return 0, nil, fmt.Errorf("user %q: want uid or uid:gid in numbers", s)
	}
	if !two {
		return uint32(n), nil, nil
	}
	m, err := strconv.ParseUint(g, 10, 32)
	if err != nil {
		return 0, nil, fmt.Errorf("user %q: want uid or uid:gid in numbers", s)
	}
	id := uint32(m)
	return uint32(n), &id, nil
}

func mergeEnv(base, more []string) ([]string, error) {
	env := slices.Clone(base)
	for _, e := range more {
		name, _, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("environment %q: want NAME=value", e)
		}
		env = slices.DeleteFunc(env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		env = append(env, e)
	}
	return env, nil
}

func addCapabilities(base *specs.LinuxCapabilities, names []string) (*specs.LinuxCapabilities, error) {
	if len(names) == 0 {
		return base, nil
	}
	var caps specs.LinuxCapabilities
	if base != nil {
		caps = *base
	}
	for _, name := range names {
		full := strings.ToUpper(name)
		if !strings.HasPrefix(full, "CAP_") {
			full = "CAP_" + full
		}
		if !has(capabilities, full) {
			return nil, fmt.Errorf("unknown capability %q", name)
		}
		for _, list := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted} {
			if !has(*list, full) {
				*list = append(slices.Clone(*list), full)
			}
		}
	}
	return &caps, nil
}

// cleanProcess removes what the guest has no part for.
func cleanProcess(p *specs.Process) {
	if p == nil { // a pod's
		return
	}
	p.ApparmorProfile, p.SelinuxLabel = "", ""
	if p.Capabilities == nil {
		return
	}
	caps := *p.Capabilities
	for _, list := range capabilityLists(&caps) {
		*list = slices.DeleteFunc(slices.Clone(*list), func(name string) bool { return !has(capabilities, name) })
	}
	p.Capabilities = &caps
}

func unknownCapabilities(caps *specs.LinuxCapabilities) []string {
	if caps == nil {
		return nil
	}
	var unknown []string
	for _, list := range capabilityLists(caps) {
		for _, name := range *list {
			if !has(capabilities, name) && !has(unknown, name) {
				unknown = append(unknown, name)
			}
		}
	}
	return unknown
}

func capabilityLists(c *specs.LinuxCapabilities) []*[]string {
	return []*[]string{&c.Bounding, &c.Effective, &c.Inheritable, &c.Permitted, &c.Ambient}
}

// capabilities are those that the guest's kernel and its runner know, by number.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
	"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
	"CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
	"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}
