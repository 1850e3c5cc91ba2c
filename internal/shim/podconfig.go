package shim

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	criv1 "husk.dev/husk/api/cri/v1"
	"husk.dev/husk/internal/ocispec"
)

// podConfigURL is the type of what containerd's CRI plugin says of a pod.
const podConfigURL = "runtime.v1.PodSandboxConfig"

// readPodConfig reads the options of a sandbox: a pod of the CRI's, or nothing.
func readPodConfig(options *anypb.Any) (*criv1.PodSandboxConfig, error) {
	config := &criv1.PodSandboxConfig{}
	switch url := options.GetTypeUrl(); url[strings.LastIndexByte(url, '/')+1:] {
	case "":
	case podConfigURL:
		if err := proto.Unmarshal(options.Value, config); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "read the pod's configuration: %v", err)
		}
	default:
		return nil, status.Errorf(codes.InvalidArgument, "options of type %q are not known: must be %s", url, podConfigURL)
	}
	return config, nil
}

// podSpec puts what is asked for a pod into the form in which a container's configuration would have it. network is the
// path of its network namespace.
func podSpec(id, network string, config *criv1.PodSandboxConfig) (*specs.Spec, error) {
	l := config.GetLinux()
	spec := &specs.Spec{
		Version: specs.Version, Hostname: config.GetHostname(), Annotations: podAnnotations(config),
		Linux: &specs.Linux{CgroupsPath: podCgroup(l.GetCgroupParent(), id), Sysctl: maps.Clone(l.GetSysctls())},
	}
	if spec.Hostname == "" {
		var err error
		if spec.Hostname, err = os.Hostname(); err != nil {
			return nil, fmt.Errorf("find host name: %w", err)
		}
	}
	options := l.GetSecurityContext().GetNamespaceOptions()
	host := options.GetNetwork() == criv1.NamespaceMode_NODE
	if !host {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: network})
	}
	users := options.GetUsernsOptions()
	mapped := users != nil && users.Mode == criv1.NamespaceMode_POD
	switch {
	case users != nil && !mapped && users.Mode != criv1.NamespaceMode_NODE:
		return nil, status.Errorf(codes.InvalidArgument, "user namespace of mode %v: must be POD or NODE", users.Mode)
	case mapped:
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = idMappings(users.Uids), idMappings(users.Gids)
	}
	if l != nil && !host {
		podSysctls(spec.Linux, mapped)
	}
	return spec, nil
}

// podSysctls are what containerd has pods do without rights of their own, where the pod does not ask for something else:
// listen on every port, and send echo requests (its enable_unprivileged_ports and enable_unprivileged_icmp).
func podSysctls(l *specs.Linux, mapped bool) {
	all := map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	if !mapped {
		all["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	maps.Copy(all, l.Sysctl)
	l.Sysctl = all
}

// podAnnotations are the pod's, and those by which containerd notes its limits for runtimes that get a container.
func podAnnotations(config *criv1.PodSandboxConfig) map[string]string {
	all := maps.Clone(config.GetAnnotations())
	if all == nil {
		all = map[string]string{}
	}
	limits := config.GetLinux().GetResources()
	ocispec.NoteSandbox(all, limits.GetCpuQuota(), limits.GetCpuPeriod(), limits.GetMemoryLimitInBytes())
	return all
}

// podCgroup is the control group of a pod's sandbox in that of the pod, as containerd names those of containers.
func podCgroup(parent, id string) string {
	switch {
	case parent == "":
		return ""
	case strings.HasSuffix(path.Base(parent), ".slice"):
		return path.Base(parent) + ":cri-containerd:" + id
	}
	return path.Join(parent, id)
}

func idMappings(all []*criv1.IDMapping) (mappings []specs.LinuxIDMapping) {
	for _, m := range all {
		mappings = append(mappings, specs.LinuxIDMapping{ContainerID: m.ContainerId, HostID: m.HostId, Size: m.Length})
	}
	return mappings
}

// Files of a pod that its containers see, in the bundle: those of /etc, and what stands for its shared memory.
const (
	hostnameFile = "hostname"
	hostsFile    = "hosts"
	resolvFile   = "resolv.conf"
	shmDir       = "shm"
	// shmSize is what engines give a pod.
	shmSize = "64m"
)

// writePodFiles makes the files of a pod. The root of its user namespace owns them.
func writePodFiles(bundle string, spec *specs.Spec, dns *criv1.DNSConfig) error {
	hosts, err := readFile("/etc/hosts")
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("read hosts: %w", err)
	}
	resolv := []byte(resolvConf(dns))
	if dns == nil {
		if resolv, err = readFile("/etc/resolv.conf"); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("read resolv.conf: %w", err)
		}
	}
	for name, data := range map[string][]byte{hostnameFile: []byte(spec.Hostname + "\n"), hostsFile: hosts, resolvFile: resolv} {
		file := filepath.Join(bundle, name)
		if err := os.WriteFile(file, data, 0o644); err != nil {
			return fmt.Errorf("write the pod's files: %w", err)
		}
		if err := os.Chown(file, hostRoot(spec.Linux.UIDMappings), hostRoot(spec.Linux.GIDMappings)); err != nil {
			return fmt.Errorf("write the pod's files: %w", err)
		}
	}
	return nil
}

// hostRoot is the id that 0 of a user namespace is outside of it.
func hostRoot(mappings []specs.LinuxIDMapping) int {
	for _, m := range mappings {
		if m.ContainerID == 0 {
			return int(m.HostID)
		}
	}
	return 0
}

// resolvConf is a pod's resolv.conf (resolv.conf(5)).
func resolvConf(dns *criv1.DNSConfig) string {
	var text strings.Builder
	if list := dns.GetSearches(); len(list) > 0 {
		fmt.Fprintf(&text, "search %s\n", strings.Join(list, " "))
	}
	for _, server := range dns.GetServers() {
		fmt.Fprintf(&text, "nameserver %s\n", server)
	}
	if list := dns.GetOptions(); len(list) > 0 {
		fmt.Fprintf(&text, "options %s\n", strings.Join(list, " "))
	}
	return text.String()
}

// mountShm mounts the file system that stands for the pod's shared memory: containers that are given it share one of the
// guest's (ocispec.SharedMemory). It is in the shim's own mount namespace.
func mountShm(bundle string) error {
	dir := filepath.Join(bundle, shmDir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make mount point of shared memory: %w", err)
	}
	m := mount.Mount{Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "noexec", "mode=1777", "size=" + shmSize}}
	if err := m.Mount(dir); err != nil {
		return fmt.Errorf("mount shared memory: %w", err)
	}
	return nil
}

// completeSpec gives a container the files and the memory that a pod's containers share, where its configuration has not
// something else in their places.
func completeSpec(spec *specs.Spec, bundle string) {
	access := "rw"
	if spec.Root != nil && spec.Root.Readonly {
		access = "ro"
	}
	for _, name := range []string{hostnameFile, hostsFile, resolvFile} {
		at := "/etc/" + name
		if slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return path.Clean(m.Destination) == at }) {
			continue
		}
		spec.Mounts = append(spec.Mounts, specs.Mount{
			Destination: at, Type: "bind", Source: filepath.Join(bundle, name), Options: []string{"rbind", "rprivate", access},
		})
	}
	shm := specs.Mount{
		Destination: "/dev/shm", Type: "bind", Source: filepath.Join(bundle, shmDir),
		Options: []string{"rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"},
	}
	for i, m := range spec.Mounts {
		if path.Clean(m.Destination) != shm.Destination {
			continue
		}
		if m.Type == "tmpfs" || m.Type == "shm" { // what a container has that has none of a pod's
			spec.Mounts[i] = shm
		}
		return
	}
	spec.Mounts = append(spec.Mounts, shm)
}

// podInfo is what containerd's CRI plugin shows of a sandbox (crictl inspectp), by its names.
func podInfo(pid int, state string, spec *specs.Spec) map[string]any {
	return map[string]any{"pid": pid, "processStatus": state, "runtimeType": Runtime, "runtimeSpec": spec}
}
