package agent_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/testenv"
	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/qemu"
)

// image builds the agent and the guest's files, most of which come from the build cache.
func image(t *testing.T) (kernel, initrd string) {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute) // a kernel that is not cached
	defer cancel()
	program := filepath.Join(dir, "husk-agent")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -buildid=", "-o", program, "husk.dev/husk/cmd/husk-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the agent: %v\n%s", err, out)
	}
	if st, err := os.Stat(program); err == nil {
		t.Logf("agent: %d KiB", st.Size()>>10)
	}
	guest := filepath.Join(dir, "guest")
	if out, err := exec.CommandContext(ctx, "../../scripts/guest.sh", "image", guest, program).CombinedOutput(); err != nil {
		t.Fatalf("build the image: %v\n%s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(guest, "guest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var files struct{ Kernel, Initrd string }
	if err := json.Unmarshal(text, &files); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(guest, files.Kernel), filepath.Join(guest, files.Initrd)
}

// erofs makes an EROFS image of a directory.
func erofs(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.erofs")
	if out, err := exec.CommandContext(t.Context(), "mkfs.erofs", path, dir).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	return path
}

// ext4 makes an empty ext4 image.
func ext4(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "upper.ext4")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 64<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	return path
}

// boot starts a VM that is stopped at the end of the test. spec says what is in it beside the agent.
func boot(t *testing.T, spec vmm.Spec) vmm.VM {
	t.Helper()
	spec.ID, spec.MemoryMiB, spec.VCPUs, spec.RunDir = "agent-test", 256, 1, t.TempDir()
	spec.Kernel, spec.Initrd = image(t)
	log := filepath.Join(t.TempDir(), "console")
	var err error
	if spec.Console, err = os.Create(log); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	vm, err := qemu.New(qemu.Options{}).Start(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		if err := vm.Stop(ctx); err != nil {
			t.Error(err)
		}
		if text, err := os.ReadFile(log); err == nil && t.Failed() {
			t.Logf("console:\n%s", text)
		}
	})
	return vm
}

// TestGuest runs every scenario in a VM, and what needs a kernel of its own.
func TestGuest(t *testing.T) {
	testenv.NeedVM(t)
	vm := boot(t, vmm.Spec{Machine: "microvm", Disks: []vmm.Disk{
		{Serial: "root", Path: erofs(t, busyboxRoot(t)), ReadOnly: true}, {Serial: "upper", Path: ext4(t)},
	}})
	began := time.Now()
	s := greet(t, vm)
	h := s.Greeting()
	t.Logf("answered %v after the monitor was started; kernel time %d ms, agent %d KiB resident, %d of %d MiB used, %s, %s",
		time.Since(began), h.BootMicroseconds/1000, h.AgentRssKib, h.MemoryUsedKib>>10, h.MemoryTotalKib>>10, h.Kernel, h.Runner)
	lower := []*agentv1.Disk{{Serial: "root", Filesystem: "erofs", Readonly: true}}
	s.root = func() *agentv1.Rootfs { return &agentv1.Rootfs{Lower: lower} }
	s.machine = true
	scenarios(t, s)
	for _, c := range []struct {
		name string
		test func(*testing.T, *subject)
	}{
		{"stats", testStats}, {"out of memory", testOOM}, {"update", testUpdate}, {"devices", testDevices},
		{"posture", testPosture}, {"clock", testClock}, {"times", testTimes},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, s) })
	}
	t.Run("writable disk", func(t *testing.T) { testWritableDisk(t, s, lower) })
	t.Run("end", func(t *testing.T) { testEnd(t, s, vm) })
}

// limits is a linux object with resources.
func limits(resources map[string]any) map[string]any {
	return map[string]any{"linux": map[string]any{
		"resources":  resources,
		"namespaces": []any{map[string]any{"type": "pid"}, map[string]any{"type": "mount"}, map[string]any{"type": "uts"}},
	}}
}

func testStats(t *testing.T, s *subject) {
	changes := limits(map[string]any{"memory": map[string]any{"limit": 32 << 20}, "pids": map[string]any{"limit": 50}})
	p := s.open(t, false)
	id := s.create(t, config(process("sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=8; echo done >&2; sleep 1000"), changes), p.stdio, true)
	p.err.until(t, "done")
	r, err := s.Stats(t.Context(), &agentv1.ContainerRequest{Id: id})
	if err != nil {
		t.Fatal(err)
	}
	if r.Memory.Limit != 32<<20 || r.Memory.Usage < 8<<20 || r.Memory.Stat["shmem"] < 8<<20 {
		t.Errorf("memory is %v", r.Memory)
	}
	if r.Pids.Limit != 50 || r.Pids.Current == 0 || r.Cpu.UsageUsec == 0 {
		t.Errorf("pids are %v, CPU %v", r.Pids, r.Cpu)
	}
}

func testOOM(t *testing.T, s *subject) {
	changes := limits(map[string]any{"memory": map[string]any{"limit": 16 << 20, "swap": 16 << 20}})
	id := s.create(t, config(process("tail", "/dev/zero"), changes), &agentv1.Stdio{}, true)
	if got := s.exit(t, id, ""); got != 137 {
		t.Errorf("status is %d, want 137", got)
	}
	s.mu.Lock()
	events := s.events[id+"/"]
	s.mu.Unlock()
	if len(events) != 2 || events[0].GetOom() == nil || events[1].GetExit() == nil {
		t.Errorf("events are %v, want the OOM kill before the exit", events)
	}
	r, err := s.Stats(t.Context(), &agentv1.ContainerRequest{Id: id})
	if err != nil || r.Memory.OomKills == 0 {
		t.Errorf("stats of a stopped container are %v, %v", r, err)
	}
}

func testUpdate(t *testing.T, s *subject) {
	id := s.sleeper(t, limits(map[string]any{"memory": map[string]any{"limit": 64 << 20}}))
	_, err := s.Update(t.Context(), &agentv1.UpdateRequest{Id: id, Resources: marshal(map[string]any{
		"memory": map[string]any{"limit": 48 << 20}, "pids": map[string]any{"limit": 7},
	})})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Stats(t.Context(), &agentv1.ContainerRequest{Id: id})
	if err != nil || r.Memory.Limit != 48<<20 || r.Pids.Limit != 7 {
		t.Errorf("stats are %v, %v", r, err)
	}
}

// testDevices checks that device rules are in force, which a host may not let a test load.
func testDevices(t *testing.T, s *subject) {
	what := process("sh", "-c", "echo > /dev/null && echo null; cat /dev/kmsg | head -c 1 && echo kmsg; true")
	p := s.open(t, false)
	id := s.create(t, config(what, nil), p.stdio, true)
	s.exit(t, id, "")
	if out := p.out.all(t); !strings.HasPrefix(out, "null\n") {
		t.Errorf("output %q", out)
	}
}

// testPosture looks at the guest from inside, by its shell.
func testPosture(t *testing.T, s *subject) {
	for _, c := range []struct{ command, want string }{
		// No module comes later: the kernel takes none, or none any more.
		{"cat /proc/sys/kernel/modules_disabled 2>/dev/null || { test ! -e /proc/modules && echo 1; }", "1\n"},
		{"cat /proc/self/cgroup", "0::/husk-agent\n"},
		{"kill -TERM 1; kill -INT 1; kill -HUP 1; cat /proc/1/comm", "init\n"},
		{"hostname", "tested\n"},
		{"cat /sys/class/net/lo/operstate", "unknown\n"},                  // what loopback is when it is up
		{"grep -c ' / overlay\\| /run/husk/m' /proc/mounts; true", "0\n"}, // no container's mount is left
		{"ls /run/husk/m /run/husk/x /run/husk/b /run/crun | grep -v :; true", "\n\n\n"},
		{"find /sys/fs/cgroup/husk -mindepth 1 -type d", ""},
		{"ps -o stat | grep -c Z; true", "0\n"},
	} {
		p := s.open(t, false)
		exec := s.id("sh")
		_, err := s.Shell(t.Context(), &agentv1.ShellRequest{Exec: exec, Stdio: p.stdio, Program: s.program(t), Args: []string{"sh", "-c", c.command}})
		if err != nil {
			t.Fatal(err)
		}
		s.exit(t, "", exec)
		if out := p.out.all(t); out != c.want {
			t.Errorf("%s: %q, want %q (%s)", c.command, out, c.want, p.err.all(t))
		}
	}
}

func testClock(t *testing.T, s *subject) {
	later := time.Now().Add(time.Hour)
	for _, now := range []time.Time{later, time.Now()} { // forward, and back, which takes two calls
		for range 2 {
			if _, err := s.Ping(t.Context(), &agentv1.PingRequest{NowUnixNanos: now.UnixNano()}); err != nil {
				t.Fatal(err)
			}
		}
		r, err := s.Ping(t.Context(), &agentv1.PingRequest{NowUnixNanos: now.UnixNano()})
		if err != nil {
			t.Fatal(err)
		}
		if off := time.Duration(r.OffsetNanoseconds).Abs(); off > 5*time.Second {
			t.Errorf("clock is off by %v after it was set", off)
		}
	}
	_, err := s.Ping(t.Context(), &agentv1.PingRequest{})
	wantCode(t, err, codes.InvalidArgument, "time")
}

// testTimes tells what the calls cost. It asserts nothing of it: machines differ.
func testTimes(t *testing.T, s *subject) {
	measure := func(name string, call func() error) {
		began := time.Now()
		if err := call(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Logf("%-8s %4d ms", name, time.Since(began).Milliseconds())
	}
	for range 3 {
		r := &agentv1.ContainerRequest{Id: s.id("t")}
		measure("create", func() error {
			_, err := s.CreateContainer(t.Context(), &agentv1.CreateContainerRequest{
				Id: r.Id, Spec: config(process("sleep", "1000"), nil), Rootfs: s.root(),
			})
			return err
		})
		measure("start", func() error { _, err := s.StartContainer(t.Context(), r); return err })
		exec := s.id("e")
		measure("exec", func() error {
			_, err := s.Exec(t.Context(), &agentv1.ExecRequest{Container: r.Id, Exec: exec, Process: marshal(process("true"))})
			return err
		})
		measure("exited", func() error { s.exit(t, r.Id, exec); return nil })
		measure("kill", func() error {
			_, err := s.Signal(t.Context(), &agentv1.SignalRequest{Container: r.Id, Signal: 9})
			s.exit(t, r.Id, "")
			return err
		})
		measure("delete", func() error { _, err := s.DeleteContainer(t.Context(), r); return err })
	}
	h, err := s.Hello(t.Context(), &agentv1.HelloRequest{NowUnixNanos: time.Now().UnixNano()})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("agent %d KiB resident at the end", h.AgentRssKib)
}

// testWritableDisk keeps a container's writes on a disk from one container to the next.
func testWritableDisk(t *testing.T, s *subject, lower []*agentv1.Disk) {
	memory := s.root
	defer func() { s.root = memory }()
	s.root = func() *agentv1.Rootfs {
		return &agentv1.Rootfs{Lower: lower, Upper: &agentv1.Disk{Serial: "upper", Filesystem: "ext4"}}
	}
	p := s.open(t, false)
	id := s.create(t, config(process("sh", "-c", "echo kept > /kept; echo ok"), nil), p.stdio, true)
	if status, out := s.exit(t, id, ""), p.out.all(t); status != 0 || out != "ok\n" {
		t.Fatalf("status %d, output %q, %s", status, out, p.err.all(t))
	}
	if _, err := s.Sync(t.Context(), &agentv1.Empty{}); err != nil {
		t.Error(err)
	}
	if _, err := s.DeleteContainer(t.Context(), &agentv1.ContainerRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	if status, out, _ := s.run(t, "cat", "/kept"); status != 0 || out != "kept\n" {
		t.Errorf("status %d, output %q", status, out)
	}
	_, err := s.CreateContainer(t.Context(), &agentv1.CreateContainerRequest{
		Id: "nodisk", Spec: config(process("true"), nil),
		Rootfs: &agentv1.Rootfs{Lower: []*agentv1.Disk{{Serial: "absent", Filesystem: "erofs"}}},
	})
	wantCode(t, err, codes.NotFound, "disk absent: no such device")
}

// testEnd closes the channel: the guest ends itself at once.
func testEnd(t *testing.T, s *subject, vm vmm.VM) {
	p := s.open(t, false)
	_, err := s.Shell(t.Context(), &agentv1.ShellRequest{Exec: "end", Stdio: p.stdio, Args: []string{"kill", "-SEGV", "1"}})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	select {
	case <-vm.Done():
		t.Logf("the VM ended %v after its init died", time.Since(began))
	case <-time.After(wait):
		t.Error("the VM goes on after its init died")
	}
}
