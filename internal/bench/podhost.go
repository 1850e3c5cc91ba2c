package bench

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"husk.dev/husk/internal/cleanup"
)

// everyRuntime is named where a group cannot be measured at all.
const everyRuntime = "every runtime"

const (
	containerdReady = 30 * time.Second
	containerdEnd   = 10 * time.Second
	podEnd          = time.Minute // for the removal of a pod, after an interrupt too
	podImage        = "bench.test/busybox:1"
	huskShim        = "containerd-shim-husk-v2"
	runscShim       = "containerd-shim-runsc-v1" // gVisor's; started by runc's, runsc waits for ever in a pod's second container
	cniCache        = "/var/lib/cni"             // of containerd, which cannot be told another place
)

// podHost is a containerd of the session's own, with network, mounts, IPC and host name of its own: /run is empty there, and
// everything else that it keeps is below the session's directory.
type podHost struct {
	s       *session
	pid     int
	cri     *criClient
	cgroups string // parent of all pods' control groups

	mu   sync.Mutex
	pods map[string]bool // those that were not removed; guarded by mu
}

// podPrograms are what the group needs, and the Debian package that has it.
var podPrograms = []struct{ name, from string }{
	{"containerd", "containerd"}, {"ctr", "containerd"}, {"containerd-shim-runc-v2", "containerd"},
	{"unshare", "util-linux"}, {"nsenter", "util-linux"}, {"ip", "iproute2"},
}

// pluginDir is where the plugins are that give pods their network.
func pluginDir() (string, error) {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		if !slices.ContainsFunc([]string{"bridge", "host-local", "loopback"}, func(name string) bool {
			_, err := os.Stat(filepath.Join(dir, name))
			return err != nil
		}) {
			return dir, nil
		}
	}
	return "", errors.New("the CNI's plugins are not installed: apt-get install containernetworking-plugins")
}

// beginPods starts containerd with all runtimes of the session. end ends it, and what is left of its pods.
func beginPods(ctx context.Context, s *session) (end func() error, err error) {
	for _, p := range podPrograms {
		if _, err := exec.LookPath(p.name); err != nil {
			return nil, fmt.Errorf("%s is not installed: apt-get install %s", p.name, p.from)
		}
	}
	plugins, err := pluginDir()
	if err != nil {
		return nil, err
	}
	var undo cleanup.Stack
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.Clean())
		}
	}()
	h := &podHost{s: s, cgroups: fmt.Sprintf("husk-bench-%d", os.Getpid()), pods: map[string]bool{}}
	if err := h.files(plugins); err != nil {
		return nil, fmt.Errorf("prepare containerd: %w", err)
	}
	if err := h.start(&undo); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	if err := h.ready(ctx); err != nil {
		return nil, err
	}
	s.pods = h
	undo.Add(h.removeAll)
	return undo.Clean, nil
}

// files writes what containerd reads.
func (h *podHost) files(plugins string) error {
	s := h.s
	for _, dir := range []string{"pods/cni", "pods/bin"} {
		if err := os.MkdirAll(s.path(dir), 0o755); err != nil {
			return err
		}
	}
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
[grpc]
  address = %q
[ttrpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
`, s.path("pods/root"), s.path("pods/state"), h.socket(), h.socket()+".ttrpc", s.path("pods/opt"), podImage, plugins, s.path("pods/cni"))
	for _, rt := range s.setting.Runtimes {
		text, err := h.runtime(rt)
		if err != nil {
			return err
		}
		config += text
	}
	network := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"bench","plugins":[{"type":"bridge","bridge":"bench0","isGateway":true,
	"ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":"10.92.0.0/16"}]]}}]}`, s.path("pods/addresses"))
	for name, text := range map[string]string{"config.toml": config, "cni/10-bench.conflist": network} {
		if err := os.WriteFile(s.path("pods", name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return writePodImage(s.path("pods/image.tar"), s.setting.Busybox)
}

// runtime is what containerd's configuration says of a runtime.
func (h *podHost) runtime(rt Runtime) (string, error) {
	table := fmt.Sprintf(`[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.%q`, rt.Name)
	if rt.Config != "" { // husk, by a shim of its own
		err := os.Symlink(rt.Command[0], h.s.path("pods/bin", huskShim))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		return fmt.Sprintf("%s]\n  runtime_type = \"io.containerd.husk.v2\"\n%s.options]\n  TypeUrl = \"runtimeoptions.v1.Options\"\n  ConfigPath = %q\n",
			table, table, rt.Config), nil
	}
	if isRunsc(rt) {
		file := h.s.path("pods", rt.Name+".toml")
		return fmt.Sprintf("%s]\n  runtime_type = \"io.containerd.runsc.v1\"\n%s.options]\n  TypeUrl = \"io.containerd.runsc.v1.options\"\n  ConfigPath = %q\n",
			table, table, file), os.WriteFile(file, []byte(runscConfig(rt, h.s.path("pods/runtime", rt.Name))), 0o600)
	}
	binary := rt.Command[0]
	if len(rt.Command) > 1 {
		binary = h.s.path("pods/bin", rt.Name)
		script := "#!/bin/sh\nexec " + strings.Join(rt.Command, " ") + " \"$@\"\n"
		if err := os.WriteFile(binary, []byte(script), 0o755); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%s]\n  runtime_type = \"io.containerd.runc.v2\"\n%s.options]\n  BinaryName = %q\n  Root = %q\n",
		table, table, binary, h.s.path("pods/runtime", rt.Name)), nil
}

// isRunsc tells whether a runtime is gVisor's, whatever it is called here.
func isRunsc(rt Runtime) bool { return filepath.Base(rt.Command[0]) == "runsc" }

// runscConfig is the configuration of gVisor's shim that has it call runsc with the flags of rt (gvisor.dev, "Configuring
// the containerd shim").
func runscConfig(rt Runtime, root string) string {
	text := fmt.Sprintf("binary_name = %q\nroot = %q\n[runsc_config]\n", rt.Command[0], root)
	for _, flag := range rt.Command[1:] {
		name, value, valued := strings.Cut(strings.TrimLeft(flag, "-"), "=")
		if !valued {
			value = "true"
		}
		text += fmt.Sprintf("  %q = %q\n", name, value)
	}
	return text
}

func (h *podHost) socket() string { return h.s.path("pods.sock") }

// start starts containerd. What it keeps where it likes on the host is hidden by empty file systems.
func (h *podHost) start(undo *cleanup.Stack) error {
	if _, err := os.Stat(cniCache); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(cniCache, 0o755); err != nil {
			return err
		}
		undo.Add(func() error { return os.Remove(cniCache) })
	}
	cmd := exec.Command("unshare", "--net", "--mount", "--ipc", "--uts", "--propagation", "private", "sh", "-ec",
		"mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock /run/netns; mount -t tmpfs tmpfs "+cniCache+
			"; mount --make-rshared /; ip link set lo up; exec containerd --config config.toml >log 2>&1")
	cmd.Dir = h.s.path("pods")
	cmd.Env = append(os.Environ(), "PATH="+h.s.path("pods/bin")+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	undo.Add(func() error { return removeCgroups(h.cgroups) })
	forget, err := h.s.start(cmd)
	if err != nil {
		return err
	}
	h.pid = cmd.Process.Pid
	h.s.before[h.pid] = true // no pod's
	undo.Add(func() error {
		ended := time.AfterFunc(containerdEnd, func() { _ = cmd.Process.Kill() })
		defer ended.Stop()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it was told to end
		forget()
		return nil
	})
	h.cri = newCRIClient(h.socket())
	undo.Add(func() error { h.cri.close(); return nil })
	return nil
}

// ready waits until containerd answers, and gives it the image of pods and their containers.
func (h *podHost) ready(ctx context.Context) error {
	ctr := func(args ...string) error {
		enter := []string{"nsenter", "--net", "--mount", "--ipc", "--uts", "--target", fmt.Sprint(h.pid), "--", "ctr", "-a", h.socket(), "-n", "k8s.io"}
		return h.s.command(ctx, nil, append(enter, args...))
	}
	for end := time.Now().Add(containerdReady); ; time.Sleep(50 * time.Millisecond) {
		err := ctr("version")
		if err == nil {
			break
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("containerd does not answer: %w", err)
		}
	}
	return ctr("images", "import", h.s.path("pods/image.tar"))
}

// podConfig is the configuration of a new pod.
func (h *podHost) podConfig() (config message, name string) {
	name = fmt.Sprintf("bench-%d", h.s.serial.Add(1))
	return sandboxConfig(name, "/"+h.cgroups), name
}

// run makes a pod with a container that sleeps.
func (h *podHost) run(ctx context.Context, rt Runtime) (id string, took time.Duration, err error) {
	ctx, cancel := patient(ctx)
	defer cancel()
	config, name := h.podConfig()
	began := time.Now()
	if id, err = h.cri.call(ctx, "RunPodSandbox", runPodRequest(config, rt.Name)); err != nil {
		return "", 0, err
	}
	h.note(id, true)
	container, err := h.cri.call(ctx, "CreateContainer", createRequest(id, config, name, podImage, "sleep", "1000000"))
	if err == nil {
		_, err = h.cri.call(ctx, "StartContainer", idRequest(container))
	}
	took = time.Since(began)
	if err != nil {
		_, failed := h.remove(ctx, id)
		return "", 0, errors.Join(err, failed)
	}
	return id, took, nil
}

// remove ends and removes a pod.
func (h *podHost) remove(ctx context.Context, id string) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), podEnd)
	defer cancel()
	h.note(id, false) // what cannot be removed is not tried again
	began := time.Now()
	for _, method := range []string{"StopPodSandbox", "RemovePodSandbox"} {
		if _, err = h.cri.call(ctx, method, idRequest(id)); err != nil {
			return 0, err
		}
	}
	return time.Since(began), nil
}

// note keeps books of the pods that are there.
func (h *podHost) note(id string, there bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if there {
		h.pods[id] = true
	} else {
		delete(h.pods, id)
	}
}

// removeAll removes the pods that are still there.
func (h *podHost) removeAll() error {
	h.mu.Lock()
	var left []string
	for id := range h.pods {
		left = append(left, id)
	}
	h.mu.Unlock()
	var errs []error
	for _, id := range left {
		_, err := h.remove(context.Background(), id)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeCgroups removes the control groups below name in every hierarchy: some runtimes leave theirs.
func removeCgroups(name string) error {
	var dirs []string
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		tops, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, top := range tops {
			_ = filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					dirs = append(dirs, path)
				}
				return nil // what vanishes meanwhile needs no removal
			})
		}
	}
	var errs []error
	for _, dir := range slices.Backward(dirs) {
		if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove control group %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}
