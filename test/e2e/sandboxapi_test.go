package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandbox "github.com/containerd/containerd/api/runtime/sandbox/v1"
	task "github.com/containerd/containerd/api/runtime/task/v3"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// apiNamespace is containerd's namespace of the pods that the test makes.
const apiNamespace = "e2e"

// apiPod is a pod of the Sandbox API, made by calling the shim as containerd 2 does.
type apiPod struct {
	t       *testing.T
	id      string
	bundle  string
	pid     uint32 // of the sandbox
	sandbox sandbox.TTRPCSandboxService
	tasks   task.TTRPCTaskService
}

// callShim runs the shim for one action.
func callShim(t *testing.T, bundle, id, action string, in []byte) []byte {
	t.Helper()
	cmd := exec.Command(filepath.Join(filepath.Dir(env.binary), "containerd-shim-husk-v2"), "-namespace", apiNamespace, "-id", id, "-bundle", bundle, action)
	cmd.Dir, cmd.Stdin = bundle, bytes.NewReader(in)
	cmd.Env = append(os.Environ(), "MAX_SHIM_VERSION=3")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("shim %s: %v: %s", action, err, stderr.String())
	}
	return out
}

func newAPIPod(t *testing.T, config *cri.PodSandboxConfig) *apiPod {
	t.Helper()
	p := &apiPod{t: t, id: name(t), bundle: t.TempDir()}
	sockets, err := os.MkdirTemp("", "s") // its path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	options, err := proto.Marshal(&runtimeoptions.Options{ConfigPath: env.config})
	if err != nil {
		t.Fatal(err)
	}
	in, err := proto.Marshal(&bootstrap.BootstrapParams{
		InstanceID: p.id, Namespace: apiNamespace, SocketDir: &sockets,
		Extensions: []*bootstrap.Extension{{Value: &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: options}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var result bootstrap.BootstrapResult
	if err := proto.Unmarshal(callShim(t, p.bundle, p.id, "start", in), &result); err != nil || result.Version != 3 {
		t.Fatalf("start answered %v, %v", &result, err)
	}
	conn, err := net.Dial("unix", strings.TrimPrefix(result.Address, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close() })
	p.sandbox, p.tasks = sandbox.NewTTRPCSandboxClient(client), task.NewTTRPCTaskClient(client)
	data, err := proto.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx := p.context()
	if _, err := p.sandbox.CreateSandbox(ctx, &sandbox.CreateSandboxRequest{
		SandboxID: p.id, BundlePath: p.bundle, Options: &anypb.Any{TypeUrl: "runtime.v1.PodSandboxConfig", Value: data},
	}); err != nil {
		t.Fatal(err)
	}
	started, err := p.sandbox.StartSandbox(ctx, &sandbox.StartSandboxRequest{SandboxID: p.id})
	if err != nil {
		t.Fatal(err)
	}
	p.pid = started.Pid
	return p
}

func (p *apiPod) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	p.t.Cleanup(cancel)
	return ctx
}

// shim is the pod's process on the host.
func (p *apiPod) shim() int { return processOf("containerd-shim-husk-v2", "-id "+p.id+" ", "serve") }

// container starts a container that runs script, in the pod's namespaces, and returns the file that has its output.
func (p *apiPod) container(id, script string, change func(*specs.Spec)) (output string) {
	p.t.Helper()
	b := newBundle(p.t, script).ownRoot()
	b.spec.Hostname = ""
	b.spec.Annotations = map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": p.id}
	for i, ns := range b.spec.Linux.Namespaces {
		switch ns.Type {
		case specs.NetworkNamespace:
			b.spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/net", p.pid)
		case specs.IPCNamespace, specs.UTSNamespace, specs.PIDNamespace:
			b.spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", p.pid, ns.Type)
		}
	}
	if change != nil {
		change(&b.spec)
	}
	output = filepath.Join(b.dir, "out")
	ctx := p.context()
	if _, err := p.tasks.Create(ctx, &task.CreateTaskRequest{ID: p.id + id, Bundle: b.write(), Stdout: "file://" + output}); err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.tasks.Start(ctx, &task.StartRequest{ID: p.id + id}); err != nil {
		p.t.Fatal(err)
	}
	return output
}

// says waits until a file has a text, and returns all that it has.
func says(t *testing.T, file, text string) string {
	t.Helper()
	var data []byte
	until(t, "the output has "+text, patience, func() bool {
		data, _ = os.ReadFile(file)
		return strings.Contains(string(data), text)
	})
	return string(data)
}

func (p *apiPod) state() string {
	p.t.Helper()
	got, err := p.sandbox.SandboxStatus(p.context(), &sandbox.SandboxStatusRequest{SandboxID: p.id})
	if err != nil {
		p.t.Fatal(err)
	}
	return got.State
}

// remove removes the pod and waits until its shim has ended.
func (p *apiPod) remove() {
	p.t.Helper()
	if _, err := p.sandbox.StopSandbox(p.context(), &sandbox.StopSandboxRequest{SandboxID: p.id}); err != nil {
		p.t.Error(err)
	}
	if _, err := p.sandbox.ShutdownSandbox(p.context(), &sandbox.ShutdownSandboxRequest{SandboxID: p.id}); err != nil {
		p.t.Error(err)
	}
	until(p.t, "the shim has ended", patience, func() bool { return p.shim() == 0 })
}

// TestSandboxAPI makes pods by containerd's Sandbox API.
func TestSandboxAPI(t *testing.T) {
	for _, part := range []struct {
		name string
		test func(*testing.T)
	}{
		{"life", apiLife}, {"users", apiUsers}, {"vm killed", apiLost}, {"shim killed", apiShimless},
	} {
		t.Run(part.name, func(t *testing.T) {
			begin(t)
			part.test(t)
		})
	}
}

// apiLife looks at what a pod has and its containers share.
func apiLife(t *testing.T) {
	p := newAPIPod(t, &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "web-0"}, Hostname: "web-0",
		DnsConfig: &cri.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"svc.test"}},
		Linux: &cri.LinuxPodSandboxConfig{
			Sysctls:   map[string]string{"kernel.shmmni": "1234", "net.core.somaxconn": "777"},
			Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 640 << 20},
		},
	})
	guest := "e2e." + p.id
	if out := husk(t, "shell", guest, "ps", "-o", "pid,args").ok(); strings.Contains(out, "hold-namespaces") || strings.Contains(out, "crun") {
		t.Errorf("without a container the guest runs %s", out)
	}
	script := `hostname; cat /etc/hostname /etc/resolv.conf /proc/sys/kernel/shmmni /proc/sys/net/core/somaxconn; df -k /dev/shm | tail -n 1
		awk '/MemTotal/ { if ($2 > 600000) print "large" }' /proc/meminfo; echo shared >/dev/shm/file; echo end; exec sleep 1234`
	out := says(t, p.container("a", script, nil), "end")
	for _, want := range []string{"web-0\nweb-0\n", "search svc.test\nnameserver 10.0.0.10\n", "1234\n777\n", " 65536 ", "large\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("a container of the pod printed %q, want %q in it", out, want)
		}
	}
	out = says(t, p.container("b", "cat /dev/shm/file; ps -o pid,args; kill -9 1; kill 1; echo end; exec sleep 1000", nil), "end")
	if !strings.Contains(out, "shared\n") || !strings.Contains(out, "sleep 1234") || !regexp.MustCompile(`(?m)^ *1 .*husk-agent hold-namespaces$`).MatchString(out) {
		t.Errorf("a second container of the pod sees %q", out)
	}
	alone := says(t, p.container("c", "ps -o pid,args; echo end; exec sleep 1000", func(spec *specs.Spec) {
		for i, ns := range spec.Linux.Namespaces {
			if ns.Type == specs.PIDNamespace {
				spec.Linux.Namespaces[i].Path = ""
			}
		}
	}), "end")
	if strings.Contains(alone, "sleep 1234") {
		t.Errorf("a container with a PID namespace of its own sees %q", alone)
	}
	got, err := p.sandbox.SandboxMetrics(p.context(), &sandbox.SandboxMetricsRequest{SandboxID: p.id})
	if err != nil || got.Metrics.GetData() == nil {
		t.Errorf("metrics: %v, %v", got, err)
	}
	for _, id := range []string{"a", "b", "c"} {
		p.end(id, 137, true)
	}
	if got := p.state(); got != "SANDBOX_READY" {
		t.Errorf("without containers the pod is %s", got)
	}
	says(t, p.container("d", "echo again; exec sleep 1000", nil), "again")
	p.remove()
}

// end waits for the end of a container, which is killed first where that is asked for, and deletes it.
func (p *apiPod) end(id string, status uint32, kill bool) {
	p.t.Helper()
	ctx := p.context()
	if kill {
		if _, err := p.tasks.Kill(ctx, &task.KillRequest{ID: p.id + id, Signal: 9}); err != nil {
			p.t.Error(err)
		}
	}
	if exit, err := p.tasks.Wait(ctx, &task.WaitRequest{ID: p.id + id}); err != nil || exit.ExitStatus != status {
		p.t.Errorf("container %s exited with %v, %v, want %d", id, exit, err, status)
	}
	if _, err := p.tasks.Delete(ctx, &task.DeleteRequest{ID: p.id + id}); err != nil {
		p.t.Error(err)
	}
}

// apiUsers makes a pod with a user namespace.
func apiUsers(t *testing.T) {
	ids := []*cri.IDMapping{{HostId: 300000, Length: 65536}}
	p := newAPIPod(t, &cri.PodSandboxConfig{
		Hostname: "mapped", Linux: &cri.LinuxPodSandboxConfig{
			Sysctls: map[string]string{"kernel.shmmni": "1234"},
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{
				UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids},
			}},
		},
	})
	out := p.container("a", "cat /proc/self/uid_map /proc/sys/kernel/shmmni; hostname; stat -c '%u %g' /etc/hosts; echo end; exec sleep 1000", func(spec *specs.Spec) {
		mapping := []specs.LinuxIDMapping{{HostID: 300000, Size: 65536}}
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = mapping, mapping
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{
			Type: specs.UserNamespace, Path: fmt.Sprintf("/proc/%d/ns/user", p.pid),
		})
	})
	got := strings.Join(strings.Fields(says(t, out, "end")), " ")
	if want := "0 300000 65536 1234 mapped 0 0 end"; got != want {
		t.Errorf("a container with a user namespace printed %q, want %q", got, want)
	}
	p.remove()
}

// apiLost kills the pod's monitor.
func apiLost(t *testing.T) {
	p := newAPIPod(t, &cri.PodSandboxConfig{Hostname: "lost", Linux: &cri.LinuxPodSandboxConfig{}})
	says(t, p.container("a", "echo up; exec sleep 1000", nil), "up")
	kill(t, "qemu-system", "e2e."+p.id)
	exit, err := p.sandbox.WaitSandbox(p.context(), &sandbox.WaitSandboxRequest{SandboxID: p.id})
	if err != nil || exit.ExitStatus != 137 {
		t.Errorf("the pod exited with %v, %v", exit, err)
	}
	if got := p.state(); got != "SANDBOX_NOTREADY" {
		t.Errorf("without its machine the pod is %s", got)
	}
	p.end("a", 137, false)
	p.remove()
}

// apiShimless kills the shim, and cleans up as containerd does.
func apiShimless(t *testing.T) {
	p := newAPIPod(t, &cri.PodSandboxConfig{Hostname: "shimless", Linux: &cri.LinuxPodSandboxConfig{}})
	out := p.container("a", "echo up; exec sleep 1000", nil)
	says(t, out, "up")
	pid := p.shim()
	if pid == 0 {
		t.Fatal("there is no shim")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "no machine is without its shim", patience, func() bool { return processOf("qemu-system", "e2e."+p.id) == 0 })
	var deleted task.DeleteResponse
	if err := proto.Unmarshal(callShim(t, filepath.Dir(out), p.id+"a", "delete", nil), &deleted); err != nil || deleted.ExitStatus != 137 {
		t.Errorf("delete of the container answered %v, %v", &deleted, err)
	}
	if err := proto.Unmarshal(callShim(t, p.bundle, p.id, "delete", nil), &deleted); err != nil || deleted.ExitStatus != 137 {
		t.Errorf("delete of the sandbox answered %v, %v", &deleted, err)
	}
}
