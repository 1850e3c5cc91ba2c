package ocispec

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"regexp"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Annotations by which engines say what a container is to a pod: those of containerd's CRI plugin, and those of
// CRI-O, which podman writes too.
const (
	criType        = "io.kubernetes.cri.container-type"
	criSandbox     = "io.kubernetes.cri.sandbox-id"
	crioType       = "io.kubernetes.cri-o.ContainerType"
	crioSandbox    = "io.kubernetes.cri-o.SandboxID"
	crioPorts      = "io.kubernetes.cri-o.PortMappings" // not podman's
	criCPUQuota    = "io.kubernetes.cri.sandbox-cpu-quota"
	criCPUPeriod   = "io.kubernetes.cri.sandbox-cpu-period"
	criMemory      = "io.kubernetes.cri.sandbox-memory"
	memberOfAPod   = "container"
	sandboxOfAPod  = "sandbox"
	guestContainer = "husk:" // and an id: a namespace of that container of the guest
)

// SandboxID returns the id of the container in whose virtual machine the configuration's own belongs by what its
// engine has noted; empty for one that no note makes part of a pod.
func SandboxID(spec *specs.Spec) string {
	a := spec.Annotations
	switch {
	case a[criType] == memberOfAPod:
		return a[criSandbox]
	case a[crioType] == memberOfAPod:
		return a[crioSandbox]
	}
	return ""
}

// IsSandbox tells whether an engine has noted that the container holds the namespaces of a pod.
func IsSandbox(spec *specs.Spec) bool {
	return spec.Annotations[criType] == sandboxOfAPod || spec.Annotations[crioType] == sandboxOfAPod
}

// ForwardsPorts tells whether the container holds the namespaces of a pod whose engine forwards ports in them: containerd and
// CRI-O do.
func ForwardsPorts(spec *specs.Spec) bool {
	_, crio := spec.Annotations[crioPorts]
	return spec.Annotations[criType] == sandboxOfAPod || crio && IsSandbox(spec)
}

// SandboxResources are the limits that the virtual machine of a pod is to hold: those of the pod where its engine has
// noted them in the sandbox's configuration, else the container's own, which may be nil.
func SandboxResources(spec *specs.Spec) *specs.LinuxResources {
	var own specs.LinuxResources
	if spec.Linux != nil && spec.Linux.Resources != nil {
		own = *spec.Linux.Resources
	}
	if !IsSandbox(spec) {
		return &own
	}
	if memory, err := strconv.ParseInt(spec.Annotations[criMemory], 10, 64); err == nil && memory > 0 {
		own.Memory = &specs.LinuxMemory{Limit: &memory}
	}
	quota, err := strconv.ParseInt(spec.Annotations[criCPUQuota], 10, 64)
	period, err2 := strconv.ParseUint(spec.Annotations[criCPUPeriod], 10, 64)
	if err == nil && err2 == nil && quota > 0 && period > 0 {
		own.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	return &own
}

// NoteSandbox notes in annotations, as engines do, that they are of a container that holds the namespaces of a pod, and the
// pod's limits: microseconds of processors in a period, and bytes of memory, each 0 for none.
func NoteSandbox(annotations map[string]string, quota, period, memory int64) {
	annotations[criType] = sandboxOfAPod
	annotations[criCPUQuota] = strconv.FormatInt(quota, 10)
	annotations[criCPUPeriod] = strconv.FormatInt(period, 10)
	annotations[criMemory] = strconv.FormatInt(memory, 10)
}

// hostNamespace is the path of a namespace of a process on the host, with its pid (proc_pid_ns(5)).
var hostNamespace = regexp.MustCompile(`^/proc/([1-9][0-9]{0,9})/ns/[a-z]+$`)

// NamespacePID returns the pid of the process whose namespace path names; 0 for another path.
func NamespacePID(path string) int {
	m := hostNamespace.FindStringSubmatch(path)
	if m == nil {
		return 0
	}
	pid, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	return pid
}

// JoinedPIDs returns the processes of the host whose namespaces the configuration joins.
func JoinedPIDs(spec *specs.Spec) (pids []int) {
	if spec.Linux == nil {
		return nil
	}
	for _, ns := range spec.Linux.Namespaces {
		if pid := NamespacePID(ns.Path); pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// planJoins says, for each namespace that is joined by a path of the host's, whose namespace in the guest is meant.
func (p *Plan) planJoins(o PlanOptions) error {
	for i := range p.Spec.Linux.Namespaces {
		ns := &p.Spec.Linux.Namespaces[i]
		if ns.Path == "" || ns.Type == specs.NetworkNamespace {
			continue
		}
		id := ""
		if o.Container != nil {
			id = o.Container(NamespacePID(ns.Path))
		}
		switch {
		case id != "":
			ns.Path = guestContainer + id
		case NamespacePID(ns.Path) != 0 || ns.Type == specs.PIDNamespace:
			return fmt.Errorf("linux.namespaces: the %s namespace %s is that of no container in this virtual machine", ns.Type, ns.Path)
		case SandboxID(p.Spec) != "": // a name that the engine gave the pod's
			ns.Path = guestContainer
		case IsSandbox(p.Spec):
			ns.Path = "" // what it holds in the guest is the pod's
		default:
			return fmt.Errorf("linux.namespaces: the container cannot join the %s namespace %s: it runs on a kernel of its own", ns.Type, ns.Path)
		}
	}
	return nil
}

// SharedMemory is a file system in the guest's memory, which takes the place of one of the host's.
type SharedMemory struct {
	GuestName string // its name in PlanOptions.MemoryDir, the same for every container that has the same one of the host's
	Bytes     uint64 // its size, 0 for the kernel's default
}

// planMemory replaces the memory file system that an engine made on the host for /dev/shm, which containers of a
// pod share, by one of the guest: memory that is mapped shared must be of one kernel.
func (p *Plan) planMemory(m *specs.Mount, source string, bytes uint64, o PlanOptions) {
	name := guestName(source)
	p.Memory = append(p.Memory, SharedMemory{GuestName: name, Bytes: bytes})
	asGuestPath(m, path.Join(o.MemoryDir, name))
}

// guestName is a name in the guest for a path of the host, the same for every container.
func guestName(source string) string {
	sum := sha256.Sum256([]byte(source))
	return hex.EncodeToString(sum[:8])
}

// Place says that the tree of shares has Shares[i] under another name than the plan chose.
func (p *Plan) Place(i int, name string, o PlanOptions) {
	share := &p.Shares[i]
	from, to := path.Join(o.ShareDir, share.GuestName), path.Join(o.ShareDir, name)
	if p.Root != nil && p.Root.GuestName == share.GuestName {
		p.Root.GuestName, p.Spec.Root.Path = name, to
	}
	for j := range p.Spec.Mounts {
		if p.Spec.Mounts[j].Source == from {
			p.Spec.Mounts[j].Source = to
		}
	}
	share.GuestName = name
}
