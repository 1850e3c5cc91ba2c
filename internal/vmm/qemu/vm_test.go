package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/sys/kvm"
	"husk.dev/husk/internal/testenv"
	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest"
	"husk.dev/husk/internal/vmm/vmmtest/echo"
)

// target is a QEMU of one machine with the test guest.
func target(t *testing.T, machine string) vmmtest.Target {
	t.Helper()
	kernel, initrd := vmmtest.Guest(t)
	run := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	return vmmtest.Target{
		Driver: New(Options{Binary: testenv.QEMU()}),
		Spec: vmm.Spec{
			ID: "qemu-" + machine, Machine: machine, Kernel: kernel, Initrd: initrd,
			MemoryMiB: 128, VCPUs: 1, RunDir: run,
		},
		ConsoleMark: echo.ConsoleMark,
		Boot:        time.Minute,
		Transfer:    16 << 20,
		Crash:       func(vm vmm.VM) error { return syscall.Kill(vm.PID(), syscall.SIGKILL) },
	}
}

func TestSuite(t *testing.T) {
	testenv.NeedVM(t)
	for _, machine := range []string{microvm, q35} {
		t.Run(machine, func(t *testing.T) {
			vmmtest.Suite(t, func(t *testing.T) vmmtest.Target { return target(t, machine) })
		})
	}
}

func TestUnusableKVMIsNamed(t *testing.T) {
	why := errors.New("reason")
	for state, told := range map[kvm.State]bool{
		kvm.Real: false, kvm.Emulated: false, kvm.Absent: false, kvm.Denied: true, kvm.Broken: true,
	} {
		if err := unusable(kvm.Result{State: state, Err: why}); (err != nil) != told || told && !errors.Is(err, why) {
			t.Errorf("%s: %v, want one that says why: %v", state, err, told)
		}
	}
}
