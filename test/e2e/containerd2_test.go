package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"husk.dev/husk/internal/testenv"
)

// newEngine2 starts a containerd 2 that makes pods by its Sandbox API, in namespaces that outlive it.
func newEngine2(t *testing.T) *engine {
	t.Helper()
	programs := os.Getenv("HUSK_TEST_CONTAINERD2")
	if programs == "" {
		t.Skip("needs containerd 2: HUSK_TEST_CONTAINERD2 names the directory of its programs")
	}
	e := &engine{t: t, dir: t.TempDir(), programs: programs}
	e.configure(fmt.Sprintf(`version = 3
root = %q
state = %q
[grpc]
  address = %q
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = %q
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.husk]
  runtime_type = "io.containerd.husk.v2"
  sandboxer = "shim"
  disable_pause_image_pull = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.husk.options]
  TypeUrl = "runtimeoptions.v1.Options"
  ConfigPath = %q
`, e.file("root"), e.file("state"), e.file("sock"), e.file("cni"), env.config))
	cmd := exec.Command("unshare", "--net", "--mount", "--ipc", "--uts", "--propagation", "private", "sh", "-ec",
		"mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock /run/netns; mount --make-rshared /; ip link set lo up; "+
			"echo 1 > /proc/sys/net/ipv4/ip_forward; echo ready; exec sleep 100000")
	holder := begun(t, cmd)
	holder.prints("ready")
	e.pid = cmd.Process.Pid
	return e
}

// serve starts containerd; stop ends it.
func (e *engine) serve() (stop func()) {
	e.t.Helper()
	cmd := e.inside("sh", "-c", "cd "+e.dir+" && exec "+filepath.Join(e.programs, "containerd")+" --config config.toml >>log 2>&1")
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(env.binary)+":"+os.Getenv("PATH"))
	process := begun(e.t, cmd)
	until(e.t, "containerd answers", patience, func() bool { return e.ctr("version").code == 0 })
	return func() {
		process.signal(syscall.SIGTERM)
		process.wait()
	}
}

// TestContainerd2 makes pods by containerd's Sandbox API, with containerd started anew while they run.
func TestContainerd2(t *testing.T) {
	begin(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
	e := newEngine2(t)
	var collector testenv.Collector
	serveIn(t, fmt.Sprintf("/proc/%d/ns/net", e.pid), "127.0.0.1:4318", &collector)
	stop := e.serve()
	t.Cleanup(func() {
		if log, err := os.ReadFile(e.file("log")); err == nil && t.Failed() {
			t.Logf("containerd's log ends with: %s", log[max(0, len(log)-4000):])
		}
	})
	e.loadImages()
	criPod(e)
	e.nothingLeft()
	until(t, "the shim's work is a part of containerd's traces", patience, func() bool { return tracedTogether(&collector) })

	ctx, runtime := e.dialCRI()
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "again", Namespace: "test", Uid: "2"}, Hostname: "again", Linux: &cri.LinuxPodSandboxConfig{},
	}
	pod, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: "husk"})
	if err != nil {
		t.Fatal(err)
	}
	id := startInPod(ctx, e, runtime, pod.PodSandboxId, config, "one")
	stop()
	stop = e.serve()
	until(t, "the pod is known again", patience, func() bool { return podState(ctx, runtime, pod.PodSandboxId) == cri.PodSandboxState_SANDBOX_READY })
	r, err := runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"hostname"}})
	if err != nil || string(r.Stdout) != "again\n" {
		t.Errorf("in the container of a containerd that came back hostname printed %q, %v", r.GetStdout(), err)
	}
	startInPod(ctx, e, runtime, pod.PodSandboxId, config, "two")

	kill(t, "containerd-shim-husk-v2", "-id "+pod.PodSandboxId+" ")
	until(t, "the pod is not ready", patience, func() bool {
		return podState(ctx, runtime, pod.PodSandboxId) == cri.PodSandboxState_SANDBOX_NOTREADY
	})
	until(t, "its container has exited", patience, func() bool {
		r, err := runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
		// 255 where containerd hears of the lost connection before it has asked what became of the container.
		return err == nil && r.Status.State == cri.ContainerState_CONTAINER_EXITED && slices.Contains([]int32{137, 255}, r.Status.ExitCode)
	})
	if _, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
		t.Error(err)
	}
	if _, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
		t.Error(err)
	}
	e.nothingLeft()
	for _, name := range strings.Fields(husk(t, "list", "-q").ok()) {
		t.Errorf("husk still lists %s", name)
	}
	stop()
}

// tracedTogether tells whether a shim has made a container for a request that containerd has in a trace of its own.
func tracedTogether(c *testenv.Collector) bool {
	all := c.Spans()
	return slices.ContainsFunc(all, func(of testenv.Span) bool {
		return strings.HasSuffix(of.Name, "Task/Create") && of.Service == "containerd-shim-husk-v2" && slices.ContainsFunc(all, func(s testenv.Span) bool {
			return s.Service == "containerd" && s.ID == of.Parent && s.Trace == of.Trace
		})
	})
}

func podState(ctx context.Context, runtime cri.RuntimeServiceClient, id string) cri.PodSandboxState {
	r, err := runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		return -1
	}
	return r.Status.State
}
