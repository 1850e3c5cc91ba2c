package vmmtest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest/echo"
)

// Target is a driver under test, made anew for every test of the suite.
type Target struct {
	Driver vmm.Driver
	// Spec describes a VM whose guest runs echo.Serve, with an ID and a RunDir.
	Spec vmm.Spec
	// ConsoleMark is what the guest prints on its console before it serves.
	ConsoleMark string
	// Crash ends a VM from outside, as if its monitor had crashed.
	Crash func(vmm.VM) error
	// Boot bounds the wait for a guest to answer, with patience for a busy machine.
	Boot time.Duration
	// Transfer is how much a large transfer moves each way, in bytes.
	Transfer int
}

// Suite runs the tests that every driver passes.
func Suite(t *testing.T, factory func(t *testing.T) Target) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Target)
	}{
		{"StartEchoStop", testStartEchoStop},
		{"StopTwice", testStopTwice},
		{"StopWhileDialing", testStopWhileDialing},
		{"Crash", testCrash},
		{"CancelledStart", testCancelledStart},
		{"CancelledDial", testCancelledDial},
		{"ManyStreams", testManyStreams},
		{"LargeTransfer", testLargeTransfer},
		{"NobodyListens", testNobodyListens},
		{"Pause", testPause},
		{"PlugDisks", testPlugDisks},
		{"Console", testConsole},
		{"ConsoleWithoutReader", testConsoleWithoutReader},
		{"BadSpecs", testBadSpecs},
		{"TwentyInARow", testTwentyInARow},
	} {
		t.Run(c.name, func(t *testing.T) {
			CheckLeaks(t)
			target := factory(t)
			c.test(t, target)
			files, err := os.ReadDir(target.Spec.RunDir)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				t.Errorf("left behind: %s", filepath.Join(target.Spec.RunDir, f.Name()))
			}
		})
	}
}

// bound is a context for one step of a test.
func bound(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// start starts the target's VM, which the test may stop itself. A test that fails shows what the VM has
// to say for itself.
func (target Target) start(t *testing.T) vmm.VM {
	t.Helper()
	console := func() string { return "(the test's own)" }
	if target.Spec.Console == nil {
		target.Spec.Console, console = record(t)
	}
	vm, err := target.Driver.Start(bound(t, target.Boot), target.Spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, vm) })
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		select {
		case <-vm.Done():
			t.Logf("the VM is gone: %v", vm.Err())
		case <-time.After(time.Second):
			t.Log("the VM runs")
		}
		t.Logf("its console: %s", console())
	})
	return vm
}

// record returns a console and what reads its last lines.
func record(t *testing.T) (console *os.File, last func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "console")
	console, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return console, func() string {
		text, err := os.ReadFile(path)
		if err != nil {
			return err.Error()
		}
		return string(text[max(0, len(text)-4096):])
	}
}

func stop(t *testing.T, vm vmm.VM) {
	t.Helper()
	// The test's own context has ended when its cleanups run.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := vm.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// dial connects to the guest's echo. The connection has a deadline, so that no test hangs.
func (target Target) dial(t *testing.T, vm vmm.VM) net.Conn {
	t.Helper()
	c, err := vm.Dial(bound(t, target.Boot), echo.Port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(target.Boot)); err != nil {
		t.Fatal(err)
	}
	return c
}

// running fails the test if the VM is gone.
func running(t *testing.T, vm vmm.VM) {
	t.Helper()
	select {
	case <-vm.Done():
		t.Fatalf("the VM is gone: %v", vm.Err())
	default:
	}
}

// gone waits for the VM's end.
func gone(t *testing.T, vm vmm.VM, limit time.Duration) {
	t.Helper()
	select {
	case <-vm.Done():
	case <-time.After(limit):
		t.Fatalf("the VM still runs after %v", limit)
	}
}

// stopped fails the test if the VM is not gone, now that Stop has returned.
func stopped(t *testing.T, vm vmm.VM) {
	t.Helper()
	select {
	case <-vm.Done():
	default:
		t.Error("Stop has returned before Done is closed")
	}
	if err := vm.Err(); err != nil {
		t.Errorf("Err after Stop: %v, want nil", err)
	}
}
