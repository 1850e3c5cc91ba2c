package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Images of the test's containerd.
const (
	criImage   = "example.test/busybox:1"
	pauseImage = "example.test/pause:1"
)

// engine is a containerd with namespaces of its own: network, mounts with a /run of their own, IPC and host name. All
// that it keeps is in a directory of the test.
type engine struct {
	t   *testing.T
	dir string
	pid int // in whose namespaces containerd and clients run
	// programs has containerd and ctr; empty: PATH.
	programs string
}

// newEngine starts containerd with husk as a runtime of its CRI plugin.
func newEngine(t *testing.T) *engine {
	t.Helper()
	for _, program := range []string{"containerd", "ctr"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v (make setup installs it)", err)
		}
	}
	e := &engine{t: t, dir: t.TempDir()}
	e.configure(e.config())
	cmd := exec.Command("unshare", "--net", "--mount", "--ipc", "--uts", "--propagation", "private", "sh", "-ec",
		"mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock /run/netns; mount --make-rshared /; ip link set lo up; "+
			"echo 1 > /proc/sys/net/ipv4/ip_forward; exec containerd --config config.toml >log 2>&1")
	cmd.Dir = e.dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(env.binary)+":"+os.Getenv("PATH"))
	process := begun(t, cmd)
	e.pid = cmd.Process.Pid
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(e.dir, "log"))
			t.Logf("containerd's log ends with: %s", log[max(0, len(log)-4000):])
		}
		process.signal(syscall.SIGTERM)
		process.wait()
	})
	until(t, "containerd answers", patience, func() bool { return e.ctr("version").code == 0 })
	e.loadImages()
	return e
}

// configure writes containerd's configuration and that of its networks.
func (e *engine) configure(text string) {
	e.t.Helper()
	for name, text := range map[string]string{"config.toml": text, "cni/10-bridge.conflist": bridgeNetwork} {
		file := e.file(name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			e.t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			e.t.Fatal(err)
		}
	}
}

// loadImages gives containerd the images of the tests.
func (e *engine) loadImages() {
	e.t.Helper()
	for name, command := range map[string]string{criImage: "sh", pauseImage: "sleep\x00100000"} {
		image := imageOf(e.t, v1.Config{Cmd: strings.Split(command, "\x00"), Env: []string{"PATH=/bin"}}, busyboxLayer(e.t))
		for _, namespace := range []string{"default", "k8s.io"} {
			e.ok("-n", namespace, "images", "import", dockerArchive(e.t, name, image))
		}
	}
}

func (e *engine) config() string {
	return fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = %q
[ttrpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "husk"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.husk]
    runtime_type = "io.containerd.husk.v2"
    pod_annotations = ["test.*"]
    container_annotations = ["test.*"]
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.husk.options]
      TypeUrl = "runtimeoptions.v1.Options"
      ConfigPath = %q
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.small]
    runtime_type = "io.containerd.husk.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.small.options]
      TypeUrl = "runtimeoptions.v1.Options"
      ConfigPath = %q
`, e.file("root"), e.file("state"), e.file("sock"), e.file("sock.ttrpc"), pauseImage, e.file("cni"), env.config, e.file("small.toml"))
}

const bridgeNetwork = `{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,
	"ipam":{"type":"host-local","ranges":[[{"subnet":"10.93.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`

func (e *engine) file(name string) string { return filepath.Join(e.dir, name) }

// inside is a command in containerd's namespaces.
func (e *engine) inside(args ...string) *exec.Cmd {
	enter := []string{"--net", "--mount", "--ipc", "--uts", "--target", fmt.Sprint(e.pid), "--"}
	return exec.Command("nsenter", append(enter, args...)...)
}

// ctr runs containerd's client to its end.
func (e *engine) ctr(args ...string) result {
	e.t.Helper()
	return begun(e.t, e.inside(append([]string{filepath.Join(e.programs, "ctr"), "-a", e.file("sock")}, args...)...)).wait()
}

// ok is ctr, which must exit with 0; it returns what it printed.
func (e *engine) ok(args ...string) string {
	e.t.Helper()
	r := e.ctr(args...)
	if r.code != 0 {
		e.t.Fatalf("ctr %q: exit code %d, want 0\nstdout: %s\nstderr: %s", args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// runs are the arguments that run a container of husk's.
func runs(args ...string) []string {
	return append([]string{"run", "--runtime", "io.containerd.husk.v2", "--runtime-config-path", env.config}, args...)
}

// status is what containerd says of a container, "" where it has none.
func (e *engine) status(id string) string {
	e.t.Helper()
	for _, line := range strings.Split(e.ok("task", "ls"), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == id {
			return f[2]
		}
	}
	return ""
}

// processOf finds the process whose command line holds each of the words; 0 where there is none.
func processOf(words ...string) int {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range all {
		line, err := os.ReadFile(name)
		text := strings.ReplaceAll(string(line), "\x00", " ")
		matches := err == nil
		for _, w := range words {
			matches = matches && strings.Contains(text, w)
		}
		pid := 0
		if _, err := fmt.Sscanf(name, "/proc/%d/", &pid); matches && err == nil && pid != os.Getpid() {
			return pid
		}
	}
	return 0
}

// kill kills the process that processOf finds, which must be there.
func kill(t *testing.T, words ...string) {
	t.Helper()
	pid := processOf(words...)
	if pid == 0 {
		t.Fatalf("no process of %q", words)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %q: %v", words, err)
	}
}

// nothingLeft checks that neither shims nor their sockets and mounts are left.
func (e *engine) nothingLeft() {
	e.t.Helper()
	gone := func() bool { return processOf("containerd-shim-husk-v2", e.dir) == 0 }
	until(e.t, "every shim has ended", patience, gone)
	r := begun(e.t, e.inside("sh", "-c", "ls /run/containerd/s; grep -c -e husk -e "+e.file("state")+"/.*rootfs /proc/mounts; ls /run/netns")).wait()
	if strings.TrimSpace(r.stdout) != "0" {
		e.t.Errorf("left behind (sockets, number of mounts, network namespaces): %q", r.stdout)
	}
}

// dialCRI connects to containerd's CRI plugin.
func (e *engine) dialCRI() (context.Context, cri.RuntimeServiceClient) {
	e.t.Helper()
	conn, err := grpc.NewClient("unix://"+e.file("sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		e.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	e.t.Cleanup(func() { cancel(); conn.Close() })
	return ctx, cri.NewRuntimeServiceClient(conn)
}
