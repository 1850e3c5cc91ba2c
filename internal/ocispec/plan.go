package ocispec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// PlanOptions is what a plan depends on beside the bundle.
type PlanOptions struct {
	// ShareDir is the directory of the guest in which every SharedPath appears under its GuestName.
	ShareDir string
	// FilesDir is the one in which every CopiedFiles appears.
	FilesDir string
	// MemoryDir is the one in which every SharedMemory appears.
	MemoryDir string
	// Name begins every GuestName: an id of the container.
	Name string
	// Container returns the id of the container of the same VM that the process pid of the host stands for,
	// nothing where there is none. Nil: the VM has no other container.
	Container func(pid int) string
}

// Plan says what the guest is told, what the host lends it and what the host does itself.
type Plan struct {
	// Spec is the guest's configuration: sources of bind mounts are paths of the guest.
	Spec *specs.Spec
	// Shares are the host's files that the guest needs to see.
	Shares []SharedPath
	// Memory are file systems that the guest has in its memory.
	Memory []SharedMemory
	// Files are directories that the guest keeps copies of in its memory.
	Files []CopiedFiles
	// Blocks are the host's block devices that the guest gets as disks, one for each number.
	Blocks []BlockDevice
	// Root is the share that holds the root directory; nil where the bundle's root was not resolved.
	Root *SharedPath
	// Network says where the guest's network comes from.
	Network Network
	// NetNS is the network namespace on the host for NetworkPath.
	NetNS string
	// Nameserver is that of the container where it is on a loopback address, in NetNS. Its zero value: none.
	Nameserver netip.Addr
	// CgroupsPath is the host cgroup that was asked for; the guest chooses its own.
	CgroupsPath string
	// Resources are the limits as they were asked for; Spec has those that hold in the guest.
	Resources *specs.LinuxResources
	// Warnings are what is done otherwise than it was asked for, the bundle's included.
	Warnings []string
}

// SharedPath is a file or directory of the host that the guest sees.
type SharedPath struct {
	HostPath  string // absolute, without symlinks
	GuestName string // its name in PlanOptions.ShareDir
	ReadOnly  bool   // with everything below it: the guest has one mount for all of it
	Recursive bool   // with what is mounted below it
	IsFile    bool   // anything but a directory
	TopOnly   bool   // ReadOnly is not for what is mounted below it
	Follow    bool   // what is mounted below it later shows, too
	Return    bool   // what the guest mounts below it shows on the host
	// UIDs and GIDs are mappings of the owners of files, outer ids being those of the guest; none: as they are.
	UIDs, GIDs []specs.LinuxIDMapping
}

// Network is where a container's network comes from.
type Network int

// Networks.
const (
	NetworkNew  Network = iota // a new one, with loopback only
	NetworkPath                // Plan.NetNS
	NetworkHost                // the container asks for the host's; a VM cannot have that
)

// guestNetNS is the guest's own network, in which its interfaces are: joining it, and not leaving the
// namespace out, lets the runner set the container's network sysctls.
const guestNetNS = "/proc/1/ns/net"

// guestVersion is what the guest's configuration says it follows: the runner refuses versions later than
// itself, and what is newer in a configuration was refused or left out before it gets there.
const guestVersion = "1.0.2"

// MakePlan plans a checked bundle. It looks at the host's files (do sources exist, what are they) and
// changes nothing, neither there nor in b.
func MakePlan(b *Bundle, o PlanOptions) (*Plan, error) {
	spec, err := clone(b.Spec)
	if err != nil {
		return nil, err
	}
	spec.Version = guestVersion
	p := &Plan{Spec: spec, Warnings: slices.Clone(b.Warnings)}
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	if b.Spec.Linux != nil {
		p.Resources = b.Spec.Linux.Resources
	}
	p.Nameserver = localNameserver(spec)
	cleanProcess(spec.Process)
	p.planHooks()
	p.planNamespaces()
	if err := p.planJoins(o); err != nil {
		return nil, err
	}
	p.planLinux()
	if err := p.planDevices(); err != nil {
		return nil, err
	}
	p.planRoot(b, o)
	if err := p.planMounts(b.Dir, o); err != nil {
		return nil, err
	}
	return p, nil
}

func clone(spec *specs.Spec) (*specs.Spec, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("copy configuration: %w", err)
	}
	var c specs.Spec
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("copy configuration: %w", err)
	}
	return &c, nil
}

// planHooks leaves the guest the hooks that run in the container; whoever makes it runs the others on the host.
func (p *Plan) planHooks() {
	hooks := p.Spec.Hooks
	p.Spec.Hooks = nil
	if hooks != nil && len(hooks.StartContainer) > 0 {
		p.Spec.Hooks = &specs.Hooks{StartContainer: hooks.StartContainer}
	}
}

// planNamespaces leaves network interfaces to the guest and sees to a mount namespace, without which
// the runner would give the container the guest's own mounts.
func (p *Plan) planNamespaces() {
	p.Network = NetworkHost
	if ns := Namespace(p.Spec, specs.NetworkNamespace); ns != nil {
		p.Network = NetworkNew
		if ns.Path != "" {
			p.Network, p.NetNS = NetworkPath, ns.Path
		}
		ns.Path = guestNetNS
	}
	if Namespace(p.Spec, specs.MountNamespace) == nil {
		p.Spec.Linux.Namespaces = append(p.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.MountNamespace})
	}
}

// planLinux takes out what names things of the host. Processors were counted for the size of the VM.
func (p *Plan) planLinux() {
	l := p.Spec.Linux
	p.CgroupsPath, l.CgroupsPath = l.CgroupsPath, ""
	l.MountLabel = ""
	r := l.Resources
	if r == nil {
		return
	}
	if r.CPU != nil && (r.CPU.RealtimePeriod != nil || r.CPU.RealtimeRuntime != nil) {
		p.warn("realtime CPU limits are left out: the guest has none")
	}
	if b := r.BlockIO; b != nil {
		if len(b.WeightDevice)+len(b.ThrottleReadBpsDevice)+len(b.ThrottleWriteBpsDevice)+len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0 {
			p.warn("block I/O limits of host devices are left out: the guest has other devices")
		}
	}
	if len(r.Rdma) > 0 {
		p.warn("RDMA limits are left out: the guest has no RDMA")
	}
	guest := GuestResources(*r)
	l.Resources = &guest
}

// GuestResources are the limits of r that hold in the guest: the host's processors, memory nodes and disks have no
// counterpart there, and of control groups it has version 2 only. What r points to is not changed.
func GuestResources(r specs.LinuxResources) specs.LinuxResources {
	if r.CPU != nil {
		cpu := *r.CPU
		cpu.Cpus, cpu.Mems, cpu.RealtimePeriod, cpu.RealtimeRuntime = "", "", nil, nil
		r.CPU = &cpu
	}
	r.BlockIO = nil // nor does the guest have an I/O scheduler that knows weights
	r.Rdma = nil
	r.Network = nil // net_cls and net_prio exist in cgroup v1 only
	if r.Memory != nil {
		memory := *r.Memory
		memory.Kernel, memory.KernelTCP, memory.Swappiness = nil, nil, nil
		memory.DisableOOMKiller, memory.UseHierarchy, memory.CheckBeforeUpdate = nil, nil, nil
		r.Memory = &memory
	}
	return r
}

func (p *Plan) warn(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

// planDevices lets through the devices that the guest has too. A container that may use every device is given
// all of the host's by its engine (--privileged), whether it needs them or not: there the others are left out.
func (p *Plan) planDevices() error {
	if l := p.Spec.Linux; everyDevice(l.Resources) {
		all := len(l.Devices)
		l.Devices = slices.DeleteFunc(l.Devices, func(d specs.LinuxDevice) bool {
			return d.Type == "b" || d.Type != "p" && guestDevice(d.Major, d.Minor) == ""
		})
		if left := all - len(l.Devices); left > 0 {
			p.warn("%d devices of the host are left out of a container that may use all: the guest has devices of its own", left)
		}
	}
	for _, d := range p.Spec.Linux.Devices {
		switch {
		case d.Type == "p":
		case noDevice(d): // a node that opens nothing, which the guest sees to
		case d.Type == "b":
			p.planBlock(d)
		case d.Type != "c" && d.Type != "u":
			return fmt.Errorf("linux.devices: %s has the unknown type %q", d.Path, d.Type)
		case guestDevice(d.Major, d.Minor) == "":
			return fmt.Errorf("linux.devices: the host's device %s (%d:%d) is not supported yet", d.Path, d.Major, d.Minor)
		}
		if !path.IsAbs(d.Path) {
			return fmt.Errorf("linux.devices: path %q is not absolute", d.Path)
		}
	}
	return nil
}

// BlockDevice is a block device of the host, as a configuration names it.
type BlockDevice struct {
	Path         string // in the container
	Major, Minor int64
	ReadOnly     bool // the container may not write to it
}

func (p *Plan) planBlock(d specs.LinuxDevice) {
	if slices.ContainsFunc(p.Blocks, func(b BlockDevice) bool { return b.Major == d.Major && b.Minor == d.Minor }) {
		return
	}
	b := BlockDevice{Path: d.Path, Major: d.Major, Minor: d.Minor, ReadOnly: true}
	if r := p.Spec.Linux.Resources; r == nil || mayWrite(r.Devices, d.Major, d.Minor) {
		b.ReadOnly = false
	}
	p.Blocks = append(p.Blocks, b)
}

// mayWrite tells whether rules let a container write to a block device: the last one that is about it decides.
func mayWrite(rules []specs.LinuxDeviceCgroup, major, minor int64) bool {
	may := len(rules) == 0
	is := func(want *int64, number int64) bool { return want == nil || *want == -1 || *want == number }
	for _, r := range rules {
		about := r.Type == "" || r.Type == "a" || r.Type == "b"
		if about && is(r.Major, major) && is(r.Minor, minor) && (r.Access == "" || strings.Contains(r.Access, "w")) {
			may = r.Allow
		}
	}
	return may
}

// noDevice tells whether the host has no device of this number, so that there is none to give to the guest.
func noDevice(d specs.LinuxDevice) bool {
	kind := map[string]string{"b": "block", "c": "char", "u": "char"}[d.Type]
	if kind == "" {
		return false
	}
	_, err := os.Stat(fmt.Sprintf("/sys/dev/%s/%d:%d", kind, d.Major, d.Minor))
	return errors.Is(err, fs.ErrNotExist)
}

// everyDevice tells whether the last rule that holds for all devices allows everything.
func everyDevice(r *specs.LinuxResources) bool {
	every := false
	if r != nil {
		for _, d := range r.Devices {
			if (d.Type == "" || d.Type == "a") && d.Major == nil && d.Minor == nil {
				every = d.Allow && d.Access == "rwm"
			}
		}
	}
	return every
}

// guestDevice is the path in the guest of a character device that is the same on every Linux, by the
// numbers of the kernel's admin-guide/devices.txt, or nothing.
func guestDevice(major, minor int64) string {
	switch {
	case major == 136: // pseudo terminals, made in the container's own devpts
		return fmt.Sprintf("/dev/pts/%d", minor)
	default:
		return guestDevices[[2]int64{major, minor}]
	}
}

var guestDevices = map[[2]int64]string{
	{1, 3}: "/dev/null", {1, 5}: "/dev/zero", {1, 7}: "/dev/full", {1, 8}: "/dev/random", {1, 9}: "/dev/urandom",
	{5, 0}: "/dev/tty", {5, 1}: "/dev/console", {5, 2}: "/dev/ptmx",
	{10, 200}: "/dev/net/tun", {10, 229}: "/dev/fuse",
}

func (p *Plan) planRoot(b *Bundle, o PlanOptions) {
	if b.Rootfs == "" {
		return
	}
	root := SharedPath{HostPath: b.Rootfs, GuestName: o.Name + ".rootfs", Recursive: true}
	if b.Spec.Root != nil {
		root.ReadOnly = b.Spec.Root.Readonly
	}
	p.Root = &root
	p.Shares = append(p.Shares, root)
	p.Spec.Root.Path = path.Join(o.ShareDir, root.GuestName)
}
