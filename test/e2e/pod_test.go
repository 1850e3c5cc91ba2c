package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// newSandbox starts the container that holds a pod's namespaces, as engines do with theirs.
func newSandbox(t *testing.T) *box {
	t.Helper()
	b := newBundle(t, `exec sleep 1000`)
	b.spec.Hostname = "the-pod"
	b.spec.Annotations = map[string]string{"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": b.id}
	return b.up()
}

// newMember makes the bundle of a container of the pod of sandbox, in whose namespaces of these kinds it is.
func newMember(t *testing.T, sandbox *box, id, script string, kinds ...specs.LinuxNamespaceType) *bundle {
	t.Helper()
	b := newBundle(t, script)
	b.id = sandbox.id + "-" + id
	b.spec.Annotations = map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox.id}
	b.spec.Hostname = ""
	for i, ns := range b.spec.Linux.Namespaces {
		for _, kind := range append(kinds, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace) {
			if ns.Type == kind {
				file := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net"}[kind]
				if file == "" {
					file = string(kind)
				}
				b.spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", sandbox.pid, file)
			}
		}
	}
	return b
}

// shm makes what engines make on the host for the /dev/shm of a pod.
func shm(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "husk-e2e-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// onShm binds dir over the bundle's /dev/shm.
func (b *bundle) onShm(dir string) *bundle {
	for i, m := range b.spec.Mounts {
		if m.Destination == "/dev/shm" {
			b.spec.Mounts[i] = specs.Mount{Type: "bind", Source: dir, Destination: "/dev/shm", Options: []string{"rbind", "nosuid", "nodev", "noexec"}}
		}
	}
	return b
}

// TestPod runs three containers in one virtual machine.
func TestPod(t *testing.T) {
	begin(t)
	sandbox := newSandbox(t)
	memory, volume, program := shm(t), t.TempDir(), probe(t)
	a := newMember(t, sandbox, "a", `touch /v/lock; echo in-memory >/dev/shm/f; /probe lock /v/lock & exec nc -ll -p 7 -e cat`).
		onShm(memory).bind(volume, "/v").bind(program, "/probe", "ro").up()
	b := newMember(t, sandbox, "b", `exec sleep 1000`, specs.PIDNamespace).onShm(memory).bind(volume, "/v", "ro").bind(program, "/probe", "ro").up()
	a.printed("locked")
	if helper(t, a.id, "vmm") != helper(t, sandbox.id, "vmm") || record(t, b.id).Sandbox != sandbox.id {
		t.Errorf("the containers are in several virtual machines: %+v, %+v", record(t, a.id), record(t, b.id))
	}
	if out := husk(t, "state", a.id).ok(); !strings.Contains(out, `"dev.husk.sandbox": "`+sandbox.id+`"`) {
		t.Errorf("the state does not name the sandbox: %s", out)
	}
	for _, c := range []*box{sandbox, a, b} {
		expect(t, "hostname of "+c.id, c.exec("hostname"), "the-pod\n")
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		expect(t, "the namespace "+kind, a.exec("readlink /proc/self/ns/"+kind), sandbox.exec("readlink /proc/self/ns/"+kind))
	}
	expect(t, "what a peer says on localhost", b.exec("echo hello | nc -w 5 127.0.0.1 7"), "hello\n")
	expect(t, "memory of the pod", b.exec("cat /dev/shm/f; rm /dev/shm/f"), "in-memory\n")
	expect(t, "a file that a peer has removed", a.exec("ls /dev/shm"), "")
	expect(t, "files that the host keeps for the memory", len(entries(t, memory)), 0)
	expect(t, "a lock that a peer holds", b.exec("/probe lock /v/lock"), "busy\n")
	expect(t, "writes to a volume that is read-only here alone", b.exec("touch /v/x 2>/dev/null; echo $?"), "1\n")
	expect(t, "process 1 where the sandbox' processes are", b.exec("tr '\\0' ' ' </proc/1/cmdline"), "sleep 1000 ")
	expect(t, "process 1 elsewhere", strings.HasPrefix(a.exec("tr '\\0' ' ' </proc/1/cmdline"), "nc "), true)

	// One ends and comes again, the others do not notice.
	husk(t, "kill", a.id, "KILL").ok()
	expect(t, "exit code of the host process", a.exited(), 137)
	a.stopped()
	husk(t, "delete", a.id).ok()
	expect(t, "status after delete", status(t, a.id), "none")
	a = newMember(t, sandbox, "a", `cat /v/lock && echo again; exec sleep 1000`).onShm(memory).bind(volume, "/v").up()
	a.printed("again")
	expect(t, "a lock that nobody holds any more", b.exec("/probe lock /v/lock & sleep 2; kill $!"), "locked\n")
	expect(t, "status of the sandbox", status(t, sandbox.id), "running")
	monitor := helper(t, sandbox.id, "vmm")
	for _, c := range []*box{b, sandbox, a} {
		expect(t, "the monitor lives", alive(monitor), true)
		husk(t, "delete", "--force", c.id).ok()
		expect(t, "exit code of the host process", c.exited(), 137)
	}
	expect(t, "the monitor lives", alive(monitor), false)
}

func entries(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestPodOwnNetwork gives a container of a pod a network of its own, which has nothing but loopback.
func TestPodOwnNetwork(t *testing.T) {
	begin(t)
	sandbox := newSandbox(t)
	b := newMember(t, sandbox, "own", `exec sleep 1000`)
	for i := range b.spec.Linux.Namespaces {
		b.spec.Linux.Namespaces[i].Path = ""
	}
	c := b.up()
	if c.exec("readlink /proc/self/ns/net") == sandbox.exec("readlink /proc/self/ns/net") {
		t.Error("it has the pod's network")
	}
	expect(t, "interfaces", c.exec("ls /sys/class/net; cat /sys/class/net/lo/flags"), "lo\n0x9\n")
	other := newSpace(t)
	b = newMember(t, sandbox, "other", `true`)
	for i, ns := range b.spec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			b.spec.Linux.Namespaces[i].Path = other.path
		}
	}
	husk(t, "create", "--bundle", b.write(), b.id).fails(1, other.path, "has one network")
	expect(t, "status of the one that was refused", status(t, b.id), "none")
	expect(t, "status of the sandbox", status(t, sandbox.id), "running")
}

// TestPodRefuses asks for containers that cannot be made. They leave nothing, and the pod runs on.
func TestPodRefuses(t *testing.T) {
	begin(t)
	sandbox := newSandbox(t)
	before := entries(t, env.run)
	b := newMember(t, sandbox, "bad", "true")
	b.spec.Process.Args = []string{"no-such-program"}
	husk(t, "run", "--bundle", b.write(), b.id).fails(1, "no-such-program")
	husk(t, "create", "--bundle", b.write(), b.id).fails(1, "no-such-program")
	b = newMember(t, sandbox, "bad", "true")
	b.spec.Linux.Namespaces[0].Path, b.spec.Linux.Namespaces[0].Type = "/proc/1/ns/pid", specs.PIDNamespace
	b.spec.Linux.Namespaces = b.spec.Linux.Namespaces[:1]
	husk(t, "create", "--bundle", b.write(), b.id).fails(1, "/proc/1/ns/pid", "no container in this virtual machine")
	b = newMember(t, sandbox, "bad", "true")
	b.spec.Annotations["io.kubernetes.cri.sandbox-id"] = "no-such-sandbox"
	for i := range b.spec.Linux.Namespaces {
		b.spec.Linux.Namespaces[i].Path = ""
	}
	husk(t, "create", "--bundle", b.write(), b.id).fails(1, "no-such-sandbox", "does not exist")
	expect(t, "state directories", fmt.Sprint(entries(t, env.run)), fmt.Sprint(before))
	expect(t, "what the sandbox says", sandbox.exec("echo well"), "well\n")
	share, err := filepath.Glob(fmt.Sprintf("/proc/%d/root%s/*", record(t, sandbox.id).Owner.PID, filepath.Join(env.run, sandbox.id, "share")))
	expect(t, fmt.Sprintf("names in the tree of shares (%v, %v)", share, err), len(share), 1)
	good := newMember(t, sandbox, "bad", `echo good; exec sleep 1000`).up()
	good.printed("good")
}

// TestPodSandboxGoes deletes the sandbox' container before the others: its id is free, and they run on in its VM.
func TestPodSandboxGoes(t *testing.T) {
	begin(t)
	sandbox := newSandbox(t)
	a := newMember(t, sandbox, "a", `exec sleep 1000`).up()
	husk(t, "kill", sandbox.id, "KILL").ok()
	expect(t, "exit code of the sandbox", sandbox.exited(), 137)
	sandbox.stopped()
	husk(t, "delete", sandbox.id).ok()
	expect(t, "status of the sandbox", status(t, sandbox.id), "none")
	expect(t, "hostname", a.exec("hostname"), "the-pod\n")
	again := newSandbox(t)
	expect(t, "the two are in one virtual machine", helper(t, again.id, "vmm") == helper(t, a.id, "vmm"), false)
	b := newMember(t, again, "b", `exec sleep 1000`).up()
	kill9(t, record(t, a.id).Owner.PID)
	expect(t, "exit code of the one that was left", a.exited(), 137)
	husk(t, "delete", a.id).ok()
	expect(t, "what the new pod says", b.exec("hostname"), "the-pod\n")
}

// TestPodOwnerKilled takes the owner of three containers away.
func TestPodOwnerKilled(t *testing.T) {
	begin(t)
	sandbox := newSandbox(t)
	all := []*box{sandbox}
	for _, id := range []string{"a", "b"} {
		all = append(all, newMember(t, sandbox, id, `exec sleep 1000`).up())
	}
	kill9(t, record(t, sandbox.id).Owner.PID)
	took := until(t, "all are stopped", seenWithin, func() bool {
		for _, c := range all {
			if status(t, c.id) != "stopped" {
				return false
			}
		}
		return true
	})
	t.Logf("seen as stopped after %v", took.Round(time.Millisecond))
	for _, i := range []int{1, 0, 2} {
		expect(t, "exit code of the host process", all[i].exited(), 137)
		husk(t, "exec", all[i].id, "true").fails(1, "stopped")
		husk(t, "delete", all[i].id).ok()
	}
}

// TestPodMonitorKilled ends the VM of two containers: both count as killed.
func TestPodMonitorKilled(t *testing.T) {
	begin(t)
	sandbox := newSandbox(t)
	a := newMember(t, sandbox, "a", `exec sleep 1000`).up()
	if err := syscall.Kill(helper(t, a.id, "vmm"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*box{a, sandbox} {
		expect(t, "exit code of the host process", c.exited(), 137)
		expect(t, "status", status(t, c.id), "stopped")
		expect(t, "exit code on record", record(t, c.id).ExitStatus, 137)
	}
}

// TestPodAtOnce creates ten containers of a pod in parallel, and deletes them in parallel.
func TestPodAtOnce(t *testing.T) {
	begin(t)
	sandbox := newSandbox(t)
	const many = 10
	var bundles [many]*bundle
	for i := range bundles {
		bundles[i] = newMember(t, sandbox, fmt.Sprint(i), fmt.Sprintf("echo member %d; exec sleep 1000", i))
		bundles[i].write()
		remove(t, bundles[i].id)
	}
	each := func(args func(b *bundle) []string) {
		t.Helper()
		var group sync.WaitGroup
		for _, b := range bundles {
			group.Go(func() {
				cmd := husk(t, args(b)...).cmd() // without pipes, which what it leaves behind would keep open
				if err := cmd.Run(); err != nil {
					t.Errorf("husk %q: %v", args(b), err)
				}
			})
		}
		group.Wait()
	}
	each(func(b *bundle) []string { return []string{"run", "--detach", "--bundle", b.dir, b.id} })
	for _, b := range bundles {
		expect(t, "status of "+b.id, status(t, b.id), "running")
		expect(t, "its virtual machine", helper(t, b.id, "vmm"), helper(t, sandbox.id, "vmm"))
	}
	each(func(b *bundle) []string { return []string{"delete", "--force", b.id} })
	expect(t, "what the sandbox says", sandbox.exec("echo well"), "well\n")
}

// TestPodMemory creates containers whose memory limits are together more than the virtual machine has.
func TestPodMemory(t *testing.T) {
	begin(t)
	if os.Getenv("HUSK_TEST_MACHINE") == "microvm" {
		t.Skip("machine microvm takes no more memory")
	}
	sandbox := newSandbox(t)
	total := func() (mib int) {
		t.Helper()
		if _, err := fmt.Sscanf(sandbox.exec("head -1 /proc/meminfo"), "MemTotal: %d", &mib); err != nil {
			t.Fatal(err)
		}
		return mib >> 10
	}
	before := total()
	limited := func(id string, mib int64) *bundle {
		b := newMember(t, sandbox, id, `dd if=/dev/zero of=/dev/null bs=$1 count=1 2>/dev/null && echo filled; exec sleep 1000`)
		b.spec.Process.Args = append(b.spec.Process.Args, "sh", fmt.Sprint(mib<<20*3/4))
		limit := mib << 20
		b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
		return b
	}
	a := limited("a", 600).up()
	until(t, "the guest has more memory", patience, func() bool { return total() >= 600 })
	limited("b", 100).up()
	until(t, "the guest has memory for both", patience, func() bool { return total() >= 700 })
	a.printed("filled")
	t.Logf("the guest had %d MiB and has %d MiB", before, total())
	huge := limited("huge", 1<<30)
	said := husk(t, "create", "--bundle", huge.write(), huge.id).cmd()
	log, err := os.OpenFile(file(t, ""), os.O_WRONLY, 0) // a pipe would be open as long as the container
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	said.Stderr = log
	err = said.Run()
	remove(t, huge.id)
	if text := content(t, log.Name()); err != nil || !strings.Contains(text, "the host has") {
		t.Errorf("a limit of more than the host has: %v, %q", err, text)
	}
}

// TestPodCreateKilled kills whoever creates a container of a pod, at several moments: nothing of it is left.
func TestPodCreateKilled(t *testing.T) {
	begin(t)
	sandbox := newSandbox(t)
	b := newMember(t, sandbox, "cut", `exec sleep 1000`)
	b.write()
	remove(t, b.id)
	for _, after := range []time.Duration{20, 60, 120, 200} {
		cmd := husk(t, "create", "--bundle", b.dir, b.id).cmd()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after * time.Millisecond)
		_ = cmd.Process.Kill()
		if cmd.Wait() == nil { // it was faster
			husk(t, "delete", b.id).ok()
		}
		until(t, "the container is gone or can be deleted", soon, func() bool {
			switch status(t, b.id) {
			case "none":
				return true
			case "stopped", "created": // what was made is kept when it was all but told
				husk(t, "delete", "--force", b.id).ok()
				return true
			}
			return false
		})
		expect(t, "what the sandbox says", sandbox.exec("echo well"), "well\n")
		until(t, "the guest has the sandbox alone", soon, func() bool {
			return husk(t, "shell", sandbox.id, "sh", "-c", "ls /run/crun").ok() == sandbox.id+"\n"
		})
	}
}
