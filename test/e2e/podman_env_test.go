package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// node is a machine as podman sees it: network and mount namespaces with a /run of their own, and podman's storage
// in a directory of the test. Nothing of it is left, and the real machine's podman never sees it.
type node struct {
	t   *testing.T
	pid int
	dir string

	enter  []string // further flags of nsenter
	as     []string // what runs the scripts; nothing: root
	before string   // what each script begins with
}

// newNode starts a node with the image localhost/demo. In its scripts p is podman, $N the flag for no network, $D a
// directory of the test, and $A a container's name that differs between runtimes.
func newNode(t *testing.T) *node { return newPodman(t, false) }

// newPodman is newNode, with a PID namespace where processes are to lose their parents.
func newPodman(t *testing.T, withProcesses bool) *node {
	t.Helper()
	for _, program := range []string{"podman", "conmon", "script"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v (make setup installs it)", err)
		}
	}
	n := &node{t: t, dir: t.TempDir()}
	n.programs("cgroupfs")
	if withProcesses {
		n.withProcesses()
	} else {
		n.withoutProcesses()
	}
	if r := n.run("runc", fmt.Sprintf("tar -C %s -cf $D/demo.tar . && p import -q -c 'CMD [\"sh\"]' $D/demo.tar localhost/demo", env.rootfs)); r.code != 0 {
		t.Fatalf("import an image: %s", r.stderr)
	}
	return n
}

// withoutProcesses makes the namespaces of a node that sees the machine's processes.
func (n *node) withoutProcesses() {
	n.t.Helper()
	cmd := exec.Command("unshare", "--net", "--mount", "--ipc", "--uts", "--propagation", "private", "sh", "-ec",
		"mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock /run/netns; mount --make-rshared /; ip link set lo up; "+
			"echo 1 > /proc/sys/net/ipv4/ip_forward; echo ready; exec sleep 1000")
	begun(n.t, cmd).prints("ready")
	n.pid = cmd.Process.Pid
}

// withProcesses makes those of a node with processes of its own, the first of which reaps what is orphaned.
func (n *node) withProcesses() {
	n.t.Helper()
	cmd := exec.Command("unshare", "--net", "--mount", "--ipc", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "sh", "-ec",
		"mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock /run/netns; mount --make-rshared /; ip link set lo up; "+
			"echo 1 > /proc/sys/net/ipv4/ip_forward; echo ready; exec catatonit -P")
	begun(n.t, cmd).prints("ready")
	children, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", cmd.Process.Pid))
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(children), &n.pid); err != nil {
		n.t.Fatalf("find the node's first process in %q: %v", children, err)
	}
	n.enter = []string{"--pid"}
}

// programs writes what scripts call, and podman's configuration, with a cgroup manager of podman's.
func (n *node) programs(manager string) {
	n.t.Helper()
	files := map[string]string{
		"husk": fmt.Sprintf("#!/bin/sh\nexec %s --config %s \"$@\"\n", env.binary, env.config),
		"p": "#!/bin/sh\nexec podman --root $D/root --runroot /run/podman-root --tmpdir /run/podman-tmp --cgroup-manager " + manager + " " +
			"--events-backend none --storage-driver overlay --runtime $RUNTIME \"$@\"\n",
		// What the machine may not raise is no difference between runtimes.
		"containers.conf": "[containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [\"nofile=512:512\", \"nproc=512:512\"]\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
}

// run runs a shell script in the node, with podman on a runtime.
func (n *node) run(runtime, script string) result {
	n.t.Helper()
	return n.start(runtime, script).wait()
}

// start is run without waiting for the end.
func (n *node) start(runtime, script string) *running {
	n.t.Helper()
	name := "a-" + runtime
	if runtime == "husk" {
		runtime = filepath.Join(n.dir, "husk")
	}
	args := append([]string{"--net", "--mount", "--ipc", "--uts", "--target", fmt.Sprint(n.pid), "--wd=" + n.dir}, n.enter...)
	args = append(append(args, "--"), n.as...)
	cmd := exec.Command("nsenter", append(args, "sh", "-c", n.before+script)...)
	cmd.Env = append(os.Environ(), "RUNTIME="+runtime, "D="+n.dir, "A="+name, "N=--network=none", "PATH="+n.dir+":"+os.Getenv("PATH"),
		"CONTAINERS_CONF="+n.dir+"/containers.conf", "TMPDIR="+n.dir)
	return begun(n.t, cmd)
}

// like runs a script with runc, which must print what the pattern want matches as a whole, and then with husk, which
// must print the same in that sense and exit with the same code.
func (n *node) like(name, want, script string) {
	n.t.Helper()
	pattern := regexp.MustCompile(`^(?s:` + want + `)\n?$`)
	reference := n.run("runc", script)
	if !pattern.MatchString(reference.stdout) {
		n.t.Fatalf("%s: the test is wrong: runc printed %q, want %q\nstderr: %s", name, reference.stdout, want, reference.stderr)
	}
	got := n.run("husk", script)
	if !pattern.MatchString(got.stdout) || got.code != reference.code {
		n.t.Errorf("%s: husk printed %q with exit code %d, want %q and %d as with runc\nstderr: %s", name, got.stdout, got.code, want, reference.code, got.stderr)
	}
}

// refuses runs a script with husk that must fail and say each of the words.
func (n *node) refuses(script string, words ...string) {
	n.t.Helper()
	got := n.run("husk", script)
	if got.code == 0 {
		n.t.Errorf("%q did not fail", script)
	}
	for _, w := range words {
		if !strings.Contains(got.stderr, w) {
			n.t.Errorf("%q said %q, want %q in it", script, got.stderr, w)
		}
	}
}

// noCgroups notes the control groups of containers on this machine; what it returns checks that no other is left, and
// removes those of the test's engine.
func noCgroups(t *testing.T) func() {
	t.Helper()
	before := groupsOfContainers()
	return func() {
		t.Helper()
		for _, l := range groupsOfContainers() {
			if !slices.Contains(before, l) {
				t.Errorf("left behind: control group %s", l)
			}
		}
		removeGroups(t)
	}
}

// groupsOfContainers are the control groups of podman's containers, less those of systemd, which are not of a test.
func groupsOfContainers() (found []string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, _ fs.DirEntry, err error) error { // what vanishes is not left
		if err == nil && strings.HasPrefix(filepath.Base(path), "libpod-") {
			if !strings.HasSuffix(path, ".scope") {
				found = append(found, path)
			}
			return fs.SkipDir
		}
		return nil
	})
	return found
}

// removeGroups removes the empty control groups of podman and its pods.
func removeGroups(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/libpod_parent", "/sys/fs/cgroup/*/libpod_parent"} {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			pods, _ := filepath.Glob(filepath.Join(dir, "[0-9a-f]*")) // runc leaves them in the hierarchies without controllers
			for _, d := range append(pods, filepath.Join(dir, "conmon"), dir) {
				if err := syscall.Rmdir(d); err != nil && !errors.Is(err, fs.ErrNotExist) && err != syscall.EBUSY && err != syscall.ENOTDIR {
					t.Logf("remove %s: %v", d, err)
				}
			}
		}
	}
}
