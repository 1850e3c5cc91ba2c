package e2e

import (
	"context"
	"regexp"
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestContainerd runs containers and a pod with containerd.
func TestContainerd(t *testing.T) {
	begin(t)
	e := newEngine(t)
	for _, part := range []struct {
		name string
		test func(*engine)
	}{
		{"run", ctrRuns}, {"life", ctrLife}, {"killed", ctrKilled}, {"pod", criPod}, {"native", ctrNative}, {"devices", ctrDevices},
	} {
		t.Run(part.name, func(t *testing.T) {
			inside := *e
			inside.t = t
			part.test(&inside)
			inside.nothingLeft()
		})
	}
}

// ctrRuns runs containers in the foreground.
func ctrRuns(e *engine) {
	r := e.ctr(runs("--rm", criImage, "code", "sh", "-c", "echo out; echo err >&2; exit 7")...)
	if r.stdout != "out\n" || !strings.HasPrefix(r.stderr, "err\n") || r.code != 7 {
		e.t.Errorf("run printed %q and %q and exited with %d", r.stdout, r.stderr, r.code)
	}
	cmd := e.inside(append([]string{"ctr", "-a", e.file("sock")}, runs("--rm", criImage, "input", "sh", "-c", "cat; echo end")...)...)
	cmd.Stdin = strings.NewReader("one\ntwo\n")
	if r := begun(e.t, cmd).wait(); r.stdout != "one\ntwo\nend\n" || r.code != 0 {
		e.t.Errorf("with input run printed %q and exited with %d: %s", r.stdout, r.code, r.stderr)
	}
	r = e.ctr(runs("--rm", criImage, "absent", "/absent")...)
	if r.code == 0 || !strings.Contains(r.stderr, `"/absent": no such file`) {
		e.t.Errorf("without a program run exited with %d and said %q", r.code, r.stderr)
	}
}

// ctrLife leads a container through its life and reads what containerd was told of it.
func ctrLife(e *engine) {
	events := e.inside("ctr", "-a", e.file("sock"), "events")
	seen := begun(e.t, events)
	e.ok(runs("-d", criImage, "life", "sh", "-c", `trap "exit 9" TERM; while :; do sleep 0.1; done`)...)
	if got := e.status("life"); got != "RUNNING" {
		e.t.Errorf("the container is %q, want RUNNING", got)
	}
	r := e.ctr("task", "exec", "--exec-id", "one", "life", "sh", "-c", "echo in exec; exit 3")
	if r.stdout != "in exec\n" || r.code != 3 {
		e.t.Errorf("exec printed %q and exited with %d: %s", r.stdout, r.code, r.stderr)
	}
	if out := e.ok("task", "metrics", "life"); !regexp.MustCompile(`(memory.usage_in_bytes|memory.usage) +[1-9][0-9]{5}`).MatchString(out) {
		e.t.Errorf("metrics name no memory: %s", out)
	}
	if out := e.ok("task", "ps", "life"); len(strings.Split(strings.TrimSpace(out), "\n")) < 2 {
		e.t.Errorf("ps lists no process: %s", out)
	}
	e.ok("task", "pause", "life")
	if got := e.status("life"); got != "PAUSED" {
		e.t.Errorf("the container is %q, want PAUSED", got)
	}
	e.ok("task", "resume", "life")
	if r := e.ctr("task", "checkpoint", "life"); r.code == 0 || !strings.Contains(r.stderr, "not implemented") {
		e.t.Errorf("a checkpoint exited with %d and said %q", r.code, r.stderr)
	}
	e.ok("task", "kill", "life")
	until(e.t, "the container has stopped", patience, func() bool { return e.status("life") == "STOPPED" })
	if r := e.ctr("task", "rm", "life"); !strings.Contains(r.stderr, "code 9") {
		e.t.Errorf("the removal said %q, want exit code 9", r.stderr)
	}
	e.ok("containers", "rm", "life")
	seen.prints("/containers/delete")
	seen.cmd.Process.Kill()
	var topics []string
	for _, topic := range regexp.MustCompile(`/tasks/[a-z-]+`).FindAllString(seen.stdout.String(), -1) {
		topics = append(topics, strings.TrimPrefix(topic, "/tasks/"))
	}
	const want = "create start exec-added exec-started exit paused resumed exit delete"
	got := strings.Join(topics, " ")
	got = strings.Replace(got, "paused resumed paused resumed", "paused resumed", 1) // ctr pauses for a checkpoint too
	if got != want {
		e.t.Errorf("containerd was told %q, want %q", got, want)
	}
}

// ctrKilled kills the processes that a container depends on.
func ctrKilled(e *engine) {
	e.ok(runs("-d", criImage, "shimless", "sleep", "1000")...)
	kill(e.t, "containerd-shim-husk-v2", "-id shimless ", e.dir)
	until(e.t, "containerd has no container without a shim", patience, func() bool { return e.status("shimless") == "" })
	until(e.t, "no VM is without its shim", patience, func() bool { return processOf("qemu-system", "default.shimless") == 0 })
	e.ok("containers", "rm", "shimless")

	e.ok(runs("-d", criImage, "vmless", "sleep", "1000")...)
	kill(e.t, "qemu-system", "default.vmless")
	until(e.t, "the container has stopped", patience, func() bool { return e.status("vmless") == "STOPPED" })
	if r := e.ctr("task", "rm", "vmless"); !strings.Contains(r.stderr, "code 137") {
		e.t.Errorf("the removal said %q, want exit code 137", r.stderr)
	}
	e.ok("containers", "rm", "vmless")
}

// criPod runs two containers in a pod, and kills the pod's VM.
func criPod(e *engine) {
	ctx, runtime := e.dialCRI()
	pod := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "pod", Namespace: "test", Uid: "1"}, Hostname: "pod", Linux: &cri.LinuxPodSandboxConfig{}}
	made, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod, RuntimeHandler: "husk"})
	if err != nil {
		e.t.Fatal(err)
	}
	var ids []string
	for _, name := range []string{"one", "two"} {
		ids = append(ids, startInPod(ctx, e, runtime, made.PodSandboxId, pod, name))
	}
	say := func(id, script string) string {
		r, err := runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}})
		if err != nil {
			e.t.Fatal(err)
		}
		return string(r.Stdout)
	}
	if got := say(ids[0], "hostname"); got != "pod\n" {
		e.t.Errorf("the host name is %q, want the pod's", got)
	}
	namespaces := "readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts"
	if one, two := say(ids[0], namespaces), say(ids[1], namespaces); one != two {
		e.t.Errorf("containers of a pod have the namespaces %q and %q, want the same", one, two)
	}
	if got := say(ids[1], "ip addr show eth0"); !strings.Contains(got, "inet 10.93.") {
		e.t.Errorf("the pod has no address of its network: %s", got)
	}
	reachedByHusk(e, ids[1])
	status := func() cri.PodSandboxState {
		r, err := runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: made.PodSandboxId})
		if err != nil {
			e.t.Fatal(err)
		}
		return r.Status.State
	}
	if got := status(); got != cri.PodSandboxState_SANDBOX_READY {
		e.t.Errorf("the pod is %v, want ready", got)
	}
	kill(e.t, "qemu-system", "k8s.io."+made.PodSandboxId[:24])
	until(e.t, "the pod is not ready", patience, func() bool { return status() == cri.PodSandboxState_SANDBOX_NOTREADY })
	until(e.t, "its container has exited with 137", patience, func() bool {
		r, err := runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: ids[0]})
		return err == nil && r.Status.State == cri.ContainerState_CONTAINER_EXITED && r.Status.ExitCode == 137
	})
	if _, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: made.PodSandboxId}); err != nil {
		e.t.Error(err)
	}
	if _, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: made.PodSandboxId}); err != nil {
		e.t.Error(err)
	}
}

// reachedByHusk runs a command in a container of a pod with husk's own verb.
func reachedByHusk(e *engine, id string) {
	e.t.Helper()
	for _, name := range strings.Fields(husk(e.t, "list", "-q").ok()) {
		if strings.HasPrefix(name, "k8s.io."+id[:24]) {
			if got := husk(e.t, "exec", name, "hostname").ok(); got != "pod\n" {
				e.t.Errorf("husk exec printed %q, want the pod's name", got)
			}
			return
		}
	}
	e.t.Error("husk list does not know the pod's container")
}

func startInPod(ctx context.Context, e *engine, runtime cri.RuntimeServiceClient, id string, pod *cri.PodSandboxConfig, name string) string {
	e.t.Helper()
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: criImage},
		Command: []string{"sleep", "1000"}, Linux: &cri.LinuxContainerConfig{},
	}
	made, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: config, SandboxConfig: pod})
	if err != nil {
		e.t.Fatal(err)
	}
	if _, err := runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		e.t.Fatal(err)
	}
	return made.ContainerId
}
