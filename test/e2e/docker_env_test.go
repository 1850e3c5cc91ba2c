package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// newDocker starts a node with dockerd in it and the image demo. In its scripts d is docker, whose run and create take the
// runtime that is tried; $A is a container's name that differs between runtimes. The node is a PID namespace too: all that
// the daemon starts ends with it. up starts the daemon, again after it was killed.
func newDocker(t *testing.T) *node {
	t.Helper()
	for _, program := range []string{"dockerd", "docker", "containerd", "script"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v (make setup installs it)", err)
		}
	}
	n := &node{t: t, dir: t.TempDir()}
	n.dockerPrograms("cgroupfs")
	n.withProcesses()
	if r := n.run("runc", fmt.Sprintf("up && tar -C %s -c . | d import -c 'CMD [\"sh\"]' - demo", env.rootfs)); r.code != 0 {
		log, _ := os.ReadFile(filepath.Join(n.dir, "dockerd.log"))
		t.Fatalf("start docker: %s\n%.3000s", r.stderr, log)
	}
	t.Cleanup(func() {
		n.t = t
		n.run("runc", "d ps -aq | xargs -r d rm -f; kill $(cat /run/docker-test.pid)")
		dockerGroups(t)
	})
	return n
}

// dockerPrograms writes what scripts call, with a cgroup driver of Docker's.
func (n *node) dockerPrograms(driver string) {
	n.t.Helper()
	files := map[string]string{
		"husk": fmt.Sprintf("#!/bin/sh\nexec %s --config %s \"$@\"\n", env.binary, env.config),
		"d": "#!/bin/sh\ncase $1 in run|create) v=$1; shift; set -- $v --runtime $(basename $RUNTIME) \"$@\" ;; esac\n" +
			"exec /usr/bin/docker -H unix:///run/docker-test.sock \"$@\"\n",
		"up": fmt.Sprintf("#!/bin/sh\nrm -f /run/docker-test.pid\nsetsid dockerd --data-root %[1]s/root --exec-root /run/docker-test --pidfile /run/docker-test.pid "+
			"-H unix:///run/docker-test.sock --add-runtime husk=%[1]s/husk --storage-driver overlay2 --live-restore --exec-opt native.cgroupdriver=%[2]s >>%[1]s/dockerd.log 2>&1 </dev/null &\n"+
			"i=0; until d info >/dev/null 2>&1; do [ $((i+=1)) -lt 300 ] || exit 1; sleep 0.1; done\n", n.dir, driver),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
}

// dockerGroups checks that no control group of a container is left, and removes docker's own.
func dockerGroups(t *testing.T) {
	t.Helper()
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/docker")
	if whole, _ := filepath.Glob("/sys/fs/cgroup/docker"); len(whole) > 0 {
		dirs = append(dirs, whole...)
	}
	for _, dir := range dirs {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() && len(e.Name()) == 64 && strings.Trim(e.Name(), "0123456789abcdef") == "" {
				t.Errorf("left behind: control group %s/%s", dir, e.Name())
			}
		}
		_ = syscall.Rmdir(dir) // of another docker, where it is in use
	}
}
