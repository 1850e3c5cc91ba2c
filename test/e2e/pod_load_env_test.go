package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// loadPatience bounds one request to containerd: of a hundred at once the last one waits for all others.
const loadPatience = 10 * time.Minute

// podCaller asks containerd for pods, as a kubelet does. It may be used by several goroutines.
type podCaller struct {
	*engine
	runtime cri.RuntimeServiceClient
	handler string // of the runtime that pods get
	serial  atomic.Int64
	before  []string // what others have left, see traces
}

// calledPod is a pod of a podCaller.
type calledPod struct {
	c      *podCaller
	config *cri.PodSandboxConfig
	id     string
}

func newPodCaller(e *engine) *podCaller {
	e.t.Helper()
	conn, err := grpc.NewClient("unix://"+e.file("sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(func() { conn.Close() })
	return &podCaller{engine: e, runtime: cri.NewRuntimeServiceClient(conn), handler: "husk", before: e.traces()}
}

// traces are control groups of pods, addresses of pods on the networks of this machine, and interfaces of the engine's.
func (e *engine) traces() (found []string) {
	e.t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/*/k8s.io/*/cgroup.procs", "/sys/fs/cgroup/k8s.io/*/cgroup.procs", "/var/lib/cni/networks/pods/10.93.*"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			e.t.Fatal(err)
		}
		found = append(found, names...)
	}
	r := begun(e.t, e.inside("sh", "-c", "ip -o link | sed 's/^[0-9]*: //; s/[:@].*//'")).wait()
	return append(found, strings.Fields(r.stdout)...)
}

// call makes one request.
func call[Q, A any](f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, error) {
	ctx, cancel := context.WithTimeout(context.Background(), loadPatience)
	defer cancel()
	return f(ctx, request)
}

// pod makes a pod.
func (c *podCaller) pod(edit ...func(*cri.PodSandboxConfig)) (*calledPod, error) {
	name := fmt.Sprintf("pod-%d", c.serial.Add(1))
	p := &calledPod{c: c, config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: "test", Uid: name}, Hostname: name, Linux: &cri.LinuxPodSandboxConfig{},
	}}
	for _, f := range edit {
		f(p.config)
	}
	r, err := call(c.runtime.RunPodSandbox, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: c.handler})
	if err != nil {
		return p, fmt.Errorf("run %s: %w", name, err)
	}
	p.id = r.PodSandboxId
	return p, nil
}

// create makes a container that sleeps, unless edit has it do something else.
func (p *calledPod) create(name string, edit ...func(*cri.ContainerConfig)) (id string, err error) {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: criImage},
		Command: []string{"sleep", "100000"}, Linux: &cri.LinuxContainerConfig{},
	}
	for _, f := range edit {
		f(config)
	}
	r, err := call(p.c.runtime.CreateContainer, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		return "", fmt.Errorf("create %s: %w", name, err)
	}
	return r.ContainerId, nil
}

// run creates and starts a container.
func (p *calledPod) run(name string, edit ...func(*cri.ContainerConfig)) (id string, err error) {
	if id, err = p.create(name, edit...); err != nil {
		return "", err
	}
	_, err = call(p.c.runtime.StartContainer, &cri.StartContainerRequest{ContainerId: id})
	return id, err
}

// exec runs a script in a container and returns what it prints.
func (c *podCaller) exec(id, script string) (string, error) {
	r, err := call(c.runtime.ExecSync, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("%q exited with %d: %s", script, r.ExitCode, r.Stderr)
	}
	return string(r.GetStdout()), err
}

// drop ends and removes a container.
func (c *podCaller) drop(id string) error {
	if _, err := call(c.runtime.StopContainer, &cri.StopContainerRequest{ContainerId: id}); err != nil {
		return fmt.Errorf("stop container: %w", err)
	}
	_, err := call(c.runtime.RemoveContainer, &cri.RemoveContainerRequest{ContainerId: id})
	return err
}

// remove ends and removes the pod with its containers.
func (p *calledPod) remove() error {
	if _, err := call(p.c.runtime.StopPodSandbox, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("stop %s: %w", p.config.Metadata.Name, err)
	}
	if _, err := call(p.c.runtime.RemovePodSandbox, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("remove %s: %w", p.config.Metadata.Name, err)
	}
	return nil
}

// shim is the process that serves the pod.
func (p *calledPod) shim() int {
	return processOf("containerd-shim-husk-v2", p.c.dir, "-id "+p.id)
}

// monitor is the pod's QEMU.
func (p *calledPod) monitor() int {
	for pid, name := range p.processes() {
		if strings.HasPrefix(name, "qemu-system") {
			return pid
		}
	}
	return 0
}

// processes are those that the pod has on the host, with their programs: the shim and all below it.
func (p *calledPod) processes() map[int]string {
	found := map[int]string{}
	shim := p.shim()
	if shim == 0 {
		return found
	}
	for next := []int{shim}; len(next) > 0; next = next[1:] {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", next[0]))
		if err != nil {
			continue
		}
		program, _, _ := strings.Cut(string(line), "\x00")
		found[next[0]] = filepath.Base(program)
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", next[0]))
		for _, name := range tasks {
			data, _ := os.ReadFile(name)
			for _, word := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(word); err == nil {
					next = append(next, pid)
				}
			}
		}
	}
	return found
}

// pssOf is the memory of a process in KiB, its part of what it shares with others counted.
func pssOf(pid int) int { return procNumber(pid, "smaps_rollup", "Pss") }

// ownOf is the part of it that is neither a file's nor the guest's memory.
func ownOf(pid int) int { return procNumber(pid, "smaps_rollup", "Pss_Anon") }

// procNumber reads a number from a file of lines "key: number" in /proc; 0 where there is none.
func procNumber(pid int, file, key string) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	for line := range strings.SplitSeq(string(data), "\n") {
		if name, value, found := strings.Cut(line, ":"); found && name == key {
			n, _ := strconv.Atoi(strings.Fields(value)[0])
			return n
		}
	}
	return 0
}

func openFiles(pid int) int {
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(list)
}

// cleared checks that nothing of any pod is left: in addition to what nothingLeft looks at traces and husk's
// states.
func (c *podCaller) cleared(t *testing.T) {
	t.Helper()
	inside := *c.engine
	inside.t = t
	inside.nothingLeft()
	for _, name := range inside.traces() {
		if name != "cni0" && !slices.Contains(c.before, name) {
			t.Errorf("left behind: %s", name)
		}
	}
	for _, e := range entries(t, env.run) {
		t.Errorf("left behind: state of %s", e.Name())
	}
}

// ratio is how much longer the last tenth of all takes than the first: the medians compared.
func ratio(all []time.Duration) float64 {
	n := max(len(all)/10, 1)
	return float64(median(all[len(all)-n:])) / float64(max(median(all[:n]), 1))
}

func median(some []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(some))
	return sorted[len(sorted)/2]
}
