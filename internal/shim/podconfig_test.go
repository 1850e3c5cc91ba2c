package shim

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	criv1 "husk.dev/husk/api/cri/v1"
	"husk.dev/husk/internal/ocispec"
)

func TestPodSpec(t *testing.T) {
	config := &criv1.PodSandboxConfig{
		Hostname: "web-0", Annotations: map[string]string{"dev.husk.vcpus": "2", "io.kubernetes.cri.sandbox-memory": "1"},
		Linux: &criv1.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/pod1", Sysctls: map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "80"},
			Resources: &criv1.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 300000, MemoryLimitInBytes: 64 << 20},
		},
	}
	spec, err := podSpec("id", "/run/netns/a", config)
	if err != nil {
		t.Fatal(err)
	}
	limits := ocispec.SandboxResources(spec)
	if *limits.Memory.Limit != 64<<20 || *limits.CPU.Quota != 300000 || !ocispec.IsSandbox(spec) {
		t.Errorf("the limits are %+v", limits)
	}
	if spec.Hostname != "web-0" || spec.Linux.CgroupsPath != "/kubepods/pod1/id" || spec.Annotations["dev.husk.vcpus"] != "2" {
		t.Errorf("host name %q, control group %q, annotations %v", spec.Hostname, spec.Linux.CgroupsPath, spec.Annotations)
	}
	if got := spec.Linux.Sysctl; got["net.ipv4.ip_unprivileged_port_start"] != "80" || got["net.ipv4.ping_group_range"] == "" || got["kernel.shm_rmid_forced"] != "1" {
		t.Errorf("settings %v", got)
	}
	if path, own := network(spec); !own || path != "/run/netns/a" {
		t.Errorf("network %q, %v", path, own)
	}

	config.Linux.CgroupParent = "/kubepods.slice/kubepods-pod1.slice"
	config.Linux.SecurityContext = &criv1.LinuxSandboxSecurityContext{NamespaceOptions: &criv1.NamespaceOption{
		Network: criv1.NamespaceMode_NODE,
		UsernsOptions: &criv1.UserNamespace{
			Uids: []*criv1.IDMapping{{HostId: 7, Length: 9}}, Gids: []*criv1.IDMapping{{HostId: 8, Length: 9}},
		},
	}}
	if spec, err = podSpec("id", "", config); err != nil {
		t.Fatal(err)
	}
	if _, own := network(spec); own || spec.Linux.CgroupsPath != "kubepods-pod1.slice:cri-containerd:id" {
		t.Errorf("with the host's network: its own %v, control group %q", own, spec.Linux.CgroupsPath)
	}
	if ocispec.Namespace(spec, specs.UserNamespace) == nil || hostRoot(spec.Linux.UIDMappings) != 7 || hostRoot(spec.Linux.GIDMappings) != 8 {
		t.Errorf("user namespace: %+v", spec.Linux)
	}
	if _, found := spec.Linux.Sysctl["net.ipv4.ping_group_range"]; found {
		t.Error("the host's network was given settings")
	}
	if _, err := readPodConfig(&anypb.Any{TypeUrl: "some.Thing"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("options of an unknown type: %v", err)
	}
	if _, err := readPodConfig(&anypb.Any{TypeUrl: podConfigURL, Value: []byte("\xff")}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("options that are none: %v", err)
	}
}

// TestPodUserNamespace: a pod has a user namespace of its own or the host's, and no other mode is taken for one of these.
func TestPodUserNamespace(t *testing.T) {
	for mode, want := range map[criv1.NamespaceMode]codes.Code{
		criv1.NamespaceMode_POD: codes.OK, criv1.NamespaceMode_NODE: codes.OK,
		criv1.NamespaceMode_CONTAINER: codes.InvalidArgument, criv1.NamespaceMode_TARGET: codes.InvalidArgument,
	} {
		config := &criv1.PodSandboxConfig{Linux: &criv1.LinuxPodSandboxConfig{SecurityContext: &criv1.LinuxSandboxSecurityContext{
			NamespaceOptions: &criv1.NamespaceOption{UsernsOptions: &criv1.UserNamespace{Mode: mode}},
		}}}
		if _, err := podSpec("id", "", config); status.Code(err) != want {
			t.Errorf("%v: %v, want code %v", mode, err, want)
		}
	}
}

func TestResolvConf(t *testing.T) {
	got := resolvConf(&criv1.DNSConfig{Servers: []string{"10.0.0.10", "10.0.0.11"}, Searches: []string{"a.b", "b"}, Options: []string{"ndots:5"}})
	if want := "search a.b b\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5\n"; got != want {
		t.Errorf("resolv.conf is %q, want %q", got, want)
	}
}

// TestCompleteSpec gives a container what its pod has, and leaves alone what it has itself.
func TestCompleteSpec(t *testing.T) {
	source := func(spec *specs.Spec, at string) string {
		var found []string
		for _, m := range spec.Mounts {
			if m.Destination == at {
				found = append(found, m.Source)
			}
		}
		return strings.Join(found, " ")
	}
	plain := &specs.Spec{Root: &specs.Root{Readonly: true}, Mounts: []specs.Mount{
		{Destination: "/dev", Type: "tmpfs"}, {Destination: "/dev/shm", Type: "tmpfs", Source: "shm"},
	}}
	completeSpec(plain, "/b")
	for at, want := range map[string]string{"/etc/hosts": "/b/hosts", "/etc/hostname": "/b/hostname", "/etc/resolv.conf": "/b/resolv.conf", "/dev/shm": "/b/shm"} {
		if got := source(plain, at); got != want {
			t.Errorf("%s is %q, want %q", at, got, want)
		}
	}
	if !slices.Contains(plain.Mounts[2].Options, "ro") {
		t.Errorf("a file of a container with a read-only root is mounted %v", plain.Mounts[2].Options)
	}
	own := &specs.Spec{Mounts: []specs.Mount{
		{Destination: "/etc/hosts", Type: "bind", Source: "/kubelet/hosts"}, {Destination: "/dev/shm", Type: "bind", Source: "/volume"},
	}}
	completeSpec(own, "/b")
	if source(own, "/etc/hosts") != "/kubelet/hosts" || source(own, "/dev/shm") != "/volume" {
		t.Errorf("what the container had was replaced: %+v", own.Mounts)
	}
}

// TestOptions keeps the runtime's options from the start to the creation of a sandbox.
func TestOptions(t *testing.T) {
	dir := t.TempDir()
	if got, err := savedOptions(dir); err != nil || got.GetTypeUrl() != "" {
		t.Errorf("where none were kept the options are %v, %v", got, err)
	}
	data, err := proto.Marshal(&anypb.Any{TypeUrl: "some.Options", Value: []byte("v")})
	if err != nil {
		t.Fatal(err)
	}
	if err := saveOptions(dir, data, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := savedOptions(dir); err != nil || got.TypeUrl != "some.Options" || string(got.Value) != "v" {
		t.Errorf("the options became %v, %v", got, err)
	}
}
