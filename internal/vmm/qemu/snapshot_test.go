package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/sys/seccomp"
	"husk.dev/husk/internal/testenv"
	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest"
	"husk.dev/husk/internal/vmm/vmmtest/echo"
)

// saved boots the test guest, saves it and returns what continues it.
func saved(t *testing.T) vmmtest.Target {
	t.Helper()
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	if runtime.GOARCH != "amd64" {
		t.Skip("VMs are saved on amd64 only")
	}
	target := target(t, q35)
	target.Spec.UID, target.Spec.GID = nobody, nobody
	target.Spec.Savable = true
	vm := boot(t, target)
	c := answers(t, vm, target.Boot)
	c.Close()
	time.Sleep(200 * time.Millisecond) // until the guest has heard of it: what is saved is in no conversation
	dir := t.TempDir()
	target.Spec.Savable = false
	target.Spec.From = &vmm.Snapshot{
		Memory: filepath.Join(dir, "memory"), State: filepath.Join(dir, "state"), MemoryMiB: target.Spec.MemoryMiB,
	}
	memory, state := create(t, target.Spec.From.Memory), create(t, target.Spec.From.State)
	limited, cancel := context.WithTimeout(t.Context(), target.Boot)
	defer cancel()
	if err := vm.(vmm.Saver).Save(limited, memory, state); err != nil {
		t.Fatal(err)
	}
	if err := vm.Stop(ctx(t)); err != nil {
		t.Fatal(err)
	}
	return target
}

func create(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", hash.Sum(nil))
}

// noFilterEnv makes TestContinue one of a process in which no filter can be installed.
const noFilterEnv = "HUSK_QEMU_TEST_NO_FILTER"

// TestContinue continues one saved VM several times at once. None of them can write to its files.
func TestContinue(t *testing.T) {
	vmmtest.CheckLeaks(t)
	target := saved(t)
	from := target.Spec.From
	memory, state := sum(t, from.Memory), sum(t, from.State)
	var vms []vmm.VM
	for i := range 3 {
		target.Spec.ID = fmt.Sprintf("clone-%d", i)
		vms = append(vms, boot(t, target))
	}
	for i, vm := range vms {
		c := answers(t, vm, target.Boot)
		text := bytes.Repeat([]byte{byte('a' + i)}, 1<<16)
		go func() { _, _ = c.Write(text) }()
		back := make([]byte, len(text))
		if _, err := io.ReadFull(c, back); err != nil || !bytes.Equal(back, text) {
			t.Errorf("clone %d echoes something else: %v", i, err)
		}
		checkLent(t, vm.PID(), from, os.Getenv(noFilterEnv) == "")
		if status := procStatus(t, vm.PID()); status["Uid"] != "65534\t65534\t65534\t65534" || status["CapEff"] != "0000000000000000" {
			t.Errorf("clone %d runs as %s with %s", i, status["Uid"], status["CapEff"])
		}
	}
	for _, vm := range vms {
		if err := vm.Stop(ctx(t)); err != nil {
			t.Error(err)
		}
	}
	if sum(t, from.Memory) != memory || sum(t, from.State) != state {
		t.Error("the VMs changed what they were continued from")
	}
}

// checkLent looks for a way in which QEMU could write to the files of a saved VM. Where memory is lent QEMU
// has mapped its file, else a copy.
func checkLent(t *testing.T, pid int, from *vmm.Snapshot, lent bool) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	copies := 0
	for _, link := range links {
		file, err := os.Readlink(link)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(file, "memfd:husk-ram") {
			copies++
		}
		if file != from.Memory && file != from.State {
			continue
		}
		info, err := os.ReadFile(strings.Replace(link, "/fd/", "/fdinfo/", 1))
		if err != nil {
			t.Fatal(err)
		}
		var flags int
		_, rest, _ := strings.Cut(string(info), "flags:")
		if _, err := fmt.Sscanf(rest, "%o", &flags); err != nil {
			t.Fatalf("%s: %v", info, err)
		}
		if flags&3 != os.O_RDONLY {
			t.Errorf("QEMU has %s open with flags %#o", file, flags)
		}
	}
	if lent != (copies == 0) {
		t.Errorf("QEMU has %d copies of the memory, lent %v", copies, lent)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mapped := false
	for line := range strings.Lines(string(maps)) {
		if fields := strings.Fields(line); len(fields) == 6 && fields[5] == from.Memory {
			mapped = true
			if fields[1] != "rw-p" && fields[1] != "r--p" && fields[1] != "---p" {
				t.Errorf("QEMU has mapped the memory as %s", fields[1])
			}
		}
	}
	if mapped != lent {
		t.Errorf("the saved memory is mapped: %v, want %v", mapped, lent)
	}
}

// TestContinueWithoutFilter runs TestContinue in a process that has a filter with a listener already, beside
// which the kernel takes no other: QEMU then gets copies.
func TestContinueWithoutFilter(t *testing.T) {
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	lent := create(t, filepath.Join(t.TempDir(), "lent"))
	opener := seccomp.NewOpener("/nowhere/asked", lent)
	cmd := exec.Command(os.Args[0], "-test.run=^TestContinue$", "-test.v", "-test.timeout=3m")
	cmd.Env = append(os.Environ(), noFilterEnv+"=1")
	type result struct {
		out []byte
		err error
	}
	results := make(chan result, 1)
	var run func()
	run = func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if syscall.Gettid() == os.Getpid() {
			go run()
			select {} // the first thread of a process does not end, and would keep the filter
		}
		err := opener.Install()
		if err != nil {
			results <- result{err: err}
			return
		}
		go func() { _ = opener.Serve() }() // the child hangs without
		out, err := cmd.CombinedOutput()
		results <- result{out, err}
	}
	go run()
	r := <-results
	if r.err != nil || !strings.Contains(string(r.out), "--- PASS: TestContinue") {
		t.Errorf("%v\n%s", r.err, r.out)
	}
}

// TestContinueBroken: what is no saved VM does not start, and nothing of it is left.
func TestContinueBroken(t *testing.T) {
	target := saved(t)
	whole := *target.Spec.From
	state, err := os.ReadFile(whole.State)
	if err != nil {
		t.Fatal(err)
	}
	text := func(data []byte) string {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	garbled := bytes.Clone(state)
	for i := len(garbled) / 2; i < len(garbled); i++ {
		garbled[i] ^= 0x55
	}
	for name, from := range map[string]vmm.Snapshot{
		"no state":        {Memory: whole.Memory, State: "/nonexistent"},
		"no memory":       {Memory: "/nonexistent", State: whole.State},
		"empty state":     {Memory: whole.Memory, State: text(nil)},
		"truncated state": {Memory: whole.Memory, State: text(state[:len(state)/2])},
		"garbled state":   {Memory: whole.Memory, State: text(garbled)},
		"garbage":         {Memory: whole.Memory, State: text(bytes.Repeat([]byte("garbage "), 20_000))},
		"zeros":           {Memory: whole.Memory, State: text(make([]byte, len(state)))},
		"short memory":    {Memory: text([]byte("short")), State: whole.State},
		"directories":     {Memory: t.TempDir(), State: t.TempDir()},
	} {
		t.Run(name, func(t *testing.T) {
			vmmtest.CheckLeaks(t)
			from.MemoryMiB = whole.MemoryMiB
			target.Spec.From = &from
			limited, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			began := time.Now()
			vm, err := target.Driver.Start(limited, target.Spec)
			if err == nil {
				_ = vm.Stop(ctx(t))
				t.Fatal("started")
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
			// Files that are not there or not whole are the caller's to know of; the rest only QEMU can tell.
			if told := whole.Memory == from.Memory && from.State != "/nonexistent"; errors.Is(err, vmm.ErrSnapshot) != told {
				t.Errorf("ErrSnapshot: %v, want %v", !told, told)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("it took %v to fail", took)
			}
			t.Log(err)
		})
	}
	target.Spec.From = &whole
	answers(t, boot(t, target), target.Boot)
}

// TestContinueWithMore: more memory than was saved is plugged in beside it.
func TestContinueWithMore(t *testing.T) {
	vmmtest.CheckLeaks(t)
	target := saved(t)
	target.Spec.MemoryMiB += 512
	answers(t, boot(t, target), target.Boot)
}

// TestSaveRefused: a VM that was not made for it is not saved and runs on.
func TestSaveRefused(t *testing.T) {
	vmmtest.CheckLeaks(t)
	target := target(t, q35)
	vm := boot(t, target)
	dir := t.TempDir()
	err := vm.(vmm.Saver).Save(ctx(t), create(t, filepath.Join(dir, "memory")), create(t, filepath.Join(dir, "state")))
	if !errors.Is(err, vmm.ErrNotSupported) {
		t.Errorf("Save: %v", err)
	}
	answers(t, vm, target.Boot)
	if c, err := vm.Dial(ctx(t), echo.Port); err == nil {
		c.Close()
	}
}

// TestSaveFails: files that cannot be written are an error, and the VM can be stopped.
func TestSaveFails(t *testing.T) {
	vmmtest.CheckLeaks(t)
	target := target(t, q35)
	target.Spec.Savable = true
	vm := boot(t, target)
	answers(t, vm, target.Boot).Close()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	dir := t.TempDir()
	err = vm.(vmm.Saver).Save(ctx(t), create(t, filepath.Join(dir, "memory")), full)
	if err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("Save to a full disk: %v", err)
	}
	t.Log(err)
	if err := vm.Stop(ctx(t)); err != nil {
		t.Error(err)
	}
}
