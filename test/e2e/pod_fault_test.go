package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPodFaults asks containerd for pods that are unusual or cannot be, and takes away what pods live on. Each pod can be
// removed afterwards, and nothing of it is left.
func TestPodFaults(t *testing.T) {
	begin(t)
	c := newPodCaller(newEngine(t))
	for _, part := range []struct {
		name string
		test func(t *testing.T, c *podCaller)
	}{
		{"thirty containers", podOfMany},
		{"long annotations", podAnnotated},
		{"no such user", podWithoutUser},
		{"volume gone before the start", podWithoutVolume},
		{"volume gone while it runs", podLosesVolume},
		{"full disk", podOnFullDisk},
		{"shim killed", podWithoutShim},
		{"monitor killed", podWithoutMonitor},
		{"exec without client", podExecAbandoned},
		{"limits filled", podFillsLimits},
	} {
		t.Run(part.name, func(t *testing.T) {
			part.test(t, c)
			c.cleared(t)
		})
	}
}

// TestPodHangs stops processes that a pod needs: nothing waits for them for ever, and the pod can be removed.
func TestPodHangs(t *testing.T) {
	begin(t)
	c := newPodCaller(newEngine(t))
	var all sync.WaitGroup
	for _, program := range []string{"qemu-system-x86_64", "virtiofsd"} {
		p, id := c.good(t, volumeOf(t.TempDir()))
		stopped := 0
		for pid, name := range p.processes() {
			if name == program {
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				stopped++
			}
		}
		if stopped == 0 {
			t.Fatalf("the pod has no %s: %v", program, p.processes())
		}
		all.Go(func() { // each takes minutes
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			_, err := c.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"cat", "/volume/none"}})
			refused(t, "an exec in a pod whose "+program+" hangs", err)
			p.removed(t)
		})
	}
	all.Wait()
	c.cleared(t)
}

// good is a pod with a container.
func (c *podCaller) good(t *testing.T, edit ...func(*cri.ContainerConfig)) (p *calledPod, id string) {
	t.Helper()
	p, err := c.pod()
	if err != nil {
		t.Fatal(err)
	}
	if id, err = p.run("main", edit...); err != nil {
		t.Fatal(err)
	}
	return p, id
}

// says checks what a script in a container prints.
func (c *podCaller) says(t *testing.T, id, script, want string) {
	t.Helper()
	if got, err := c.exec(id, script); err != nil || got != want {
		t.Errorf("%q printed %q (%v), want %q", script, got, err, want)
	}
}

// removed removes the pod and reports how long that took.
func (p *calledPod) removed(t *testing.T) {
	t.Helper()
	began := time.Now()
	if err := p.remove(); err != nil {
		t.Error(err)
	}
	t.Logf("%s was removed after %v", p.config.Metadata.Name, time.Since(began).Round(time.Millisecond))
}

// refused checks an error's words.
func refused(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s was not refused", what)
		return
	}
	t.Logf("%s: %v", what, err)
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: the error %q has no %q in it", what, err, w)
		}
	}
}

func podOfMany(t *testing.T, c *podCaller) {
	p, err := c.pod()
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for i := range 30 {
		id, err := p.run(fmt.Sprintf("member-%d", i))
		if err != nil {
			t.Fatalf("container %d: %v", i, err)
		}
		ids = append(ids, id)
	}
	for i, id := range ids {
		c.says(t, id, fmt.Sprintf("echo %d; hostname", i), fmt.Sprintf("%d\n%s\n", i, p.config.Hostname))
	}
	for _, id := range ids[:10] {
		if err := c.drop(id); err != nil {
			t.Error(err)
		}
	}
	c.says(t, ids[29], "echo well", "well\n")
	p.removed(t)
}

// podFillsLimits has containers take more memory than they or their pod may have: they are killed, others are not.
func podFillsLimits(t *testing.T, c *podCaller) {
	p, err := c.pod(func(config *cri.PodSandboxConfig) {
		config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 256 << 20, CpuPeriod: 100000, CpuQuota: 100000}
	})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := p.run("kept")
	if err != nil {
		t.Fatal(err)
	}
	c.says(t, kept, "grep -c ^processor /proc/cpuinfo", "1\n")
	limited := func(bytes int64) func(*cri.ContainerConfig) {
		return func(config *cri.ContainerConfig) {
			config.Command = []string{"sh", "-c", "all=0123456789abcdef; while :; do all=$all$all; done"}
			config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: bytes}
		}
	}
	for name, bytes := range map[string]int64{"own limit": 64 << 20, "the pod's limit": 0} {
		id, err := p.run(strings.ReplaceAll(name, " ", "-"), limited(bytes))
		if err != nil {
			t.Fatal(err)
		}
		var state *cri.ContainerStatus
		until(t, "the container over "+name+" has ended", patience, func() bool {
			r, err := call(c.runtime.ContainerStatus, &cri.ContainerStatusRequest{ContainerId: id})
			if err != nil {
				t.Fatal(err)
			}
			state = r.Status
			return state.State == cri.ContainerState_CONTAINER_EXITED
		})
		expect(t, "exit code over "+name, state.ExitCode, 137)
		expect(t, "reason over "+name, state.Reason, "OOMKilled")
		c.says(t, kept, "echo well", "well\n")
	}
	// One that comes later has what it asks for, beside the others.
	late, err := p.run("late", func(config *cri.ContainerConfig) {
		config.Linux.Resources = &cri.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}
	})
	if err != nil {
		t.Fatal(err)
	}
	c.says(t, late, "all=0123456789abcdef; while [ ${#all} -lt 20000000 ]; do all=$all$all; done; echo ${#all}", "33554432\n")
	c.says(t, kept, "echo well", "well\n")
	p.removed(t)
}

func podAnnotated(t *testing.T, c *podCaller) {
	long := map[string]string{"test.long": strings.Repeat("annotation ", 64<<10/11)}
	for i := range 100 {
		long[fmt.Sprintf("test.number-%d", i)] = "one of many"
	}
	p, err := c.pod(func(config *cri.PodSandboxConfig) { config.Annotations = long })
	if err != nil {
		t.Fatal(err)
	}
	id, err := p.run("main", func(config *cri.ContainerConfig) { config.Annotations = long })
	if err != nil {
		t.Fatal(err)
	}
	c.says(t, id, "echo well", "well\n")
	if out := husk(t, "state", "k8s.io."+p.id[:24]+"-"+p.suffix(t)).ok(); !strings.Contains(out, long["test.long"]) {
		t.Errorf("the state has no such annotation: %.300s", out)
	}
	p.removed(t)
}

func podWithoutUser(t *testing.T, c *podCaller) {
	p, good := c.good(t)
	_, err := p.run("nobody", func(config *cri.ContainerConfig) {
		config.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{RunAsUsername: "no-such-user"}
	})
	refused(t, "a user that the image does not know", err, "no users found") // containerd looks
	id, err := p.run("number", func(config *cri.ContainerConfig) {
		config.Linux.SecurityContext = &cri.LinuxContainerSecurityContext{RunAsUser: &cri.Int64Value{Value: 12345}, RunAsGroup: &cri.Int64Value{Value: 54321}}
	})
	if err != nil {
		t.Fatal(err)
	}
	c.says(t, id, "id -u; id -g", "12345\n54321\n")
	_, err = p.run("absent", func(config *cri.ContainerConfig) { config.Command = []string{"/no/such/program"} })
	refused(t, "a program that is not there", err, "/no/such/program", "no such file")
	_, err = p.run("elsewhere", func(config *cri.ContainerConfig) { config.WorkingDir = "/bin/sh" })
	refused(t, "a working directory that is a file", err, "/bin/sh")
	c.says(t, good, "echo well", "well\n")
	p.removed(t)
}

// volumeOf has a container use dir.
func volumeOf(dir string) func(*cri.ContainerConfig) {
	return func(config *cri.ContainerConfig) {
		config.Mounts = []*cri.Mount{{HostPath: dir, ContainerPath: "/volume"}}
	}
}

func podWithoutVolume(t *testing.T, c *podCaller) {
	dir := filepath.Join(t.TempDir(), "volume")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p, good := c.good(t)
	id, err := p.create("late", volumeOf(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	_, err = call(c.runtime.StartContainer, &cri.StartContainerRequest{ContainerId: id})
	refused(t, "a volume that has gone", err, dir, "does not exist")
	c.says(t, good, "echo well", "well\n")
	if _, err := p.run("again", volumeOf(t.TempDir())); err != nil {
		t.Error(err)
	}
	p.removed(t)
}

func podLosesVolume(t *testing.T, c *podCaller) {
	dir := filepath.Join(t.TempDir(), "volume")
	if err := os.MkdirAll(filepath.Join(dir, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	p, id := c.good(t, volumeOf(dir))
	c.says(t, id, "echo text >/volume/below/file; ls /volume", "below\n")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	until(t, "the guest has forgotten the file", soon, func() bool {
		out, err := c.exec(id, "cat /volume/below/file 2>/dev/null || echo gone")
		return err == nil && out == "gone\n"
	})
	c.says(t, id, "touch /volume/new 2>/dev/null || echo cannot", "cannot\n")
	if _, err := p.run("another"); err != nil {
		t.Error(err)
	}
	if err := c.drop(id); err != nil {
		t.Error(err)
	}
	p.removed(t)
}

// podOnFullDisk has the states of containers on a file system that is full, before there is a pod and while one runs.
func podOnFullDisk(t *testing.T, c *podCaller) {
	run := t.TempDir()
	text := fmt.Sprintf("run_dir = %q\ndata_dir = %q\ntemplate = \"ready\"\n", run, env.data)
	if err := os.WriteFile(c.file("small.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	shell := func(script string) string {
		t.Helper()
		r := begun(t, c.inside("sh", "-ec", script, "sh", run)).wait()
		if r.code != 0 {
			t.Fatalf("%q: %s", script, r.stderr)
		}
		return r.stdout
	}
	const fill, free = `dd if=/dev/zero of="$1/ballast" bs=4k 2>/dev/null || :`, `rm "$1/ballast"`
	shell(`mount -t tmpfs -o size=8m husk-test "$1"; ` + fill)
	small := &podCaller{engine: c.engine, runtime: c.runtime, handler: "small"}
	small.serial.Store(1000)
	_, err := small.pod()
	refused(t, "a pod on a full disk", err, "no space left")
	expect(t, "what is left of it", shell(`ls "$1"`), "ballast\n")
	shell(free)
	p, id := small.good(t)
	shell(fill)
	_, err = p.run("late")
	refused(t, "a container on a full disk", err, "no space left")
	small.says(t, id, "echo well", "well\n")
	shell(free)
	if _, err := p.run("again"); err != nil {
		t.Error(err)
	}
	shell(fill)
	p.removed(t)
	expect(t, "what is left", shell(`ls "$1"; umount "$1"`), "ballast\n")
}

// notReady waits until containerd has seen the pod's end.
func (p *calledPod) notReady(t *testing.T) {
	t.Helper()
	took := until(t, "the pod is not ready", patience, func() bool {
		r, err := call(p.c.runtime.PodSandboxStatus, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
		return err == nil && r.Status.State == cri.PodSandboxState_SANDBOX_NOTREADY
	})
	t.Logf("seen as not ready after %v", took.Round(time.Millisecond))
}

// lost takes something away from a pod with two containers, in one of which a client waits for a process.
func lost(t *testing.T, c *podCaller, strike func(p *calledPod)) {
	t.Helper()
	p, id := c.good(t)
	if _, err := p.run("second"); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	go func() {
		_, err := c.exec(id, "touch /waits; sleep 1000")
		waits <- err
	}()
	until(t, "the client waits", patience, func() bool { _, err := c.exec(id, "test -e /waits"); return err == nil })
	strike(p)
	select {
	case err := <-waits:
		refused(t, "the exec that waits", err)
	case <-time.After(patience):
		t.Error("the client still waits for its process")
	}
	p.notReady(t)
	_, err := c.exec(id, "true")
	refused(t, "an exec after the end", err)
	p.removed(t)
}

func podWithoutShim(t *testing.T, c *podCaller) {
	lost(t, c, func(p *calledPod) { kill9(t, p.shim()) })
}

func podWithoutMonitor(t *testing.T, c *podCaller) {
	lost(t, c, func(p *calledPod) { kill9(t, p.monitor()) })
}

// podExecAbandoned leaves execs alone: one whose time is over is killed, one whose client goes is too, and neither holds
// up the removal of the container.
func podExecAbandoned(t *testing.T, c *podCaller) {
	p, id := c.good(t)
	shim := p.shim()
	time.Sleep(settled)
	before := openFiles(shim)
	r, err := call(c.runtime.ExecSync, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "2001"}, Timeout: 1})
	refused(t, fmt.Sprintf("an exec whose time is over (%v)", r), err)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, err = c.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "2002"}})
	refused(t, "an exec whose client has gone", err)
	until(t, "neither process is left", patience, func() bool {
		out, err := c.exec(id, `for f in /proc/[0-9]*/cmdline; do tr '\0' ' ' <"$f"; echo; done 2>/dev/null | grep -c 'sleep 200[12]' || :`)
		return err == nil && out == "0\n"
	})
	until(t, "the shim has no more files open", soon, func() bool { return openFiles(shim) <= before })
	// One that goes on without anybody who reads what it prints.
	cmd := c.inside("ctr", "-a", c.file("sock"), "-n", "k8s.io", "task", "exec", "--exec-id", "alone", id, "sh", "-c", "echo up; while :; do echo line; sleep 0.01; done")
	client := begun(t, cmd)
	client.prints("up\n")
	client.signal(syscall.SIGKILL)
	client.wait()
	c.says(t, id, "echo well", "well\n")
	if err := c.drop(id); err != nil {
		t.Error(err)
	}
	until(t, "the shim has no more files open than before", soon, func() bool { return openFiles(shim) <= before })
	p.removed(t)
}
