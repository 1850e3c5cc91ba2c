package qemu

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/sys/kvm"
	"husk.dev/husk/internal/testenv"
	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest"
)

// nobody runs QEMU in the posture tests.
const nobody = 65534

func sorted(d []time.Duration) []time.Duration { return slices.Sorted(slices.Values(d)) }

// procStatus returns the lines of /proc/pid/status by their keys.
func procStatus(t *testing.T, pid int) map[string]string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.SplitSeq(string(text), "\n") {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.TrimSpace(value)
	}
	return status
}

// TestPosture looks at a running QEMU that serves as another user: what it may do is what a guest that
// breaks out of it may do.
func TestPosture(t *testing.T) {
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	vmmtest.CheckLeaks(t)
	target := target(t, q35)
	target.Spec.UID, target.Spec.GID = nobody, nobody
	layer := disk(t, "layer", 2<<20, vmm.Disk{ReadOnly: true, Pmem: true})
	if err := os.Chmod(layer.Path, 0o444); err != nil { // in a directory that nobody else may enter
		t.Fatal(err)
	}
	target.Spec.Disks = []vmm.Disk{disk(t, "secret", 1<<20, vmm.Disk{}), disk(t, "fixed", 1<<20, vmm.Disk{ReadOnly: true}), layer}
	// What this process was started with is not QEMU's.
	dir, err := syscall.Open("/", syscall.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(dir)
	vm := boot(t, target)
	answers(t, vm, target.Boot)

	groups := "" // or the one that may open /dev/kvm
	if info, err := os.Stat(kvm.Device); err == nil && kvm.Measure().State == kvm.Real && info.Mode().Perm()&0o006 == 0 {
		groups = strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Gid))
	}
	status := procStatus(t, vm.PID())
	for key, want := range map[string]string{
		"Uid": "65534\t65534\t65534\t65534", "Gid": "65534\t65534\t65534\t65534", "Groups": groups,
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapInh": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if status[key] != want {
			t.Errorf("%s is %q, want %q", key, status[key], want)
		}
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", vm.PID()))
	if err != nil || string(environ) != "LC_ALL=C\x00" {
		t.Errorf("environment %q, %v", environ, err)
	}
	if session, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", vm.PID())); err != nil {
		t.Error(err)
	} else if _, rest, _ := strings.Cut(string(session), ") "); strings.Fields(rest)[3] != strconv.Itoa(vm.PID()) {
		t.Errorf("session %s, want QEMU's own", strings.Fields(rest)[3])
	}
	checkFiles(t, vm.PID(), target.Spec)
}

// checkFiles compares QEMU's open files with those that it should have.
func checkFiles(t *testing.T, pid int, s vmm.Spec) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, link := range links {
		file, err := os.Readlink(link)
		if err != nil {
			t.Fatal(err)
		}
		kind, _, _ := strings.Cut(file, ":[")
		got[kind]++
	}
	for _, internal := range []string{"anon_inode", "/dev/null", "pipe"} {
		delete(got, internal)
	}
	allowed := map[string]int{"socket": 2, s.Kernel: 1, s.Initrd: 1, "/dev/vhost-vsock": 1}
	if kvm.Measure().State == kvm.Real {
		maps.Copy(allowed, map[string]int{kvm.Device: 1, "anon_inode:kvm-vm": 1, "anon_inode:kvm-vcpu:0": 1})
	}
	for _, d := range s.Disks {
		allowed[d.Path] = 2 // its own and the block layer's
	}
	for _, file := range slices.Sorted(maps.Keys(got)) {
		if got[file] > allowed[file] {
			t.Errorf("QEMU holds %d of %s, want %d", got[file], file, allowed[file])
		}
	}
}

// ownerEnv makes the test binary an owner that starts a VM and waits to be killed.
const ownerEnv = "HUSK_QEMU_TEST_OWNER"

func TestQEMUDiesWithItsOwner(t *testing.T) {
	if os.Getenv(ownerEnv) != "" {
		vm, err := New(Options{Binary: testenv.QEMU()}).Start(t.Context(), target(t, microvm).Spec)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("VM %d\n", vm.PID())
		select {}
	}
	testenv.NeedVM(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestQEMUDiesWithItsOwner$", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), ownerEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	pid := 0
	for lines := bufio.NewScanner(out); pid == 0; {
		if !lines.Scan() {
			t.Fatal("the owner started no VM")
		}
		if text, ok := strings.CutPrefix(lines.Text(), "VM "); ok {
			if pid, err = strconv.Atoi(text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("QEMU does not run: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("QEMU still runs 5 s after its owner was killed")
		}
	}
}

// alive tells whether pid is a process that is not a zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}
