package vmmtest

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest/echo"
)

func testStartEchoStop(t *testing.T, target Target) {
	info := target.Driver.Info()
	if info.Name == "" || info.Isolation != vmm.Hardware && info.Isolation != vmm.Emulated {
		t.Errorf("driver describes itself as %+v", info)
	}
	vm := target.start(t)
	running(t, vm)
	if err := vm.Err(); err != nil {
		t.Errorf("Err of a running VM: %v", err)
	}
	if vm.PID() <= 0 {
		t.Errorf("pid %d", vm.PID())
	}
	echoes(t, target.dial(t, vm), []byte("hello"))
	stop(t, vm)
	stopped(t, vm)
}

func testStopTwice(t *testing.T, target Target) {
	vm := target.start(t)
	var both sync.WaitGroup
	for range 4 {
		both.Go(func() { stop(t, vm) })
	}
	both.Wait()
	stop(t, vm)
	stopped(t, vm)
}

func testStopWhileDialing(t *testing.T, target Target) {
	vm := target.start(t)
	c := target.dial(t, vm)
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	dialed := make(chan error, 1)
	go func() {
		for {
			c, err := vm.Dial(bound(t, target.Boot), echo.Port)
			if err != nil {
				dialed <- err
				return
			}
			c.Close()
			time.Sleep(time.Millisecond)
		}
	}()
	time.Sleep(20 * time.Millisecond)
	stop(t, vm)
	for what, failed := range map[string]chan error{"Read": read, "Dial": dialed} {
		select {
		case err := <-failed:
			if err == nil {
				t.Errorf("%s returned no error when the VM was stopped", what)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s still waits 5 s after Stop", what)
		}
	}
}

func testCrash(t *testing.T, target Target) {
	vm := target.start(t)
	c := target.dial(t, vm)
	echoes(t, c, []byte("before"))
	if err := target.Crash(vm); err != nil {
		t.Fatal(err)
	}
	gone(t, vm, time.Second)
	if vm.Err() == nil {
		t.Error("Err after a crash is nil")
	}
	t.Logf("a crash reads: %v", vm.Err())
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a connection to a crashed VM still reads")
	}
	start := time.Now()
	dead, err := vm.Dial(bound(t, target.Boot), echo.Port)
	if err == nil {
		dead.Close()
		t.Error("dialed a crashed VM")
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("dialing a crashed VM took %v", took)
	}
	if p, ok := vm.(vmm.Pauser); ok && p.Pause(bound(t, 5*time.Second)) == nil {
		t.Error("paused a crashed VM")
	}
	stop(t, vm)
	if vm.Err() == nil {
		t.Error("Stop after a crash hides why the VM is gone")
	}
}

func testCancelledStart(t *testing.T, target Target) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if vm, err := target.Driver.Start(ended, target.Spec); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with an ended context: %v", err)
		if err == nil {
			stop(t, vm)
		}
	}
	// Whenever the context ends, there is a VM or an error, and nothing is left of the latter.
	for delay := 500 * time.Microsecond; delay < 200*time.Millisecond; delay *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), delay)
		vm, err := target.Driver.Start(ctx, target.Spec)
		cancel()
		switch {
		case err == nil:
			running(t, vm)
			stop(t, vm)
		case !errors.Is(err, context.DeadlineExceeded):
			t.Errorf("Start cancelled after %v: %v", delay, err)
		case !strings.Contains(err.Error(), target.Spec.ID):
			t.Errorf("Start cancelled after %v does not name the VM: %v", delay, err)
		}
	}
}

func testPause(t *testing.T, target Target) {
	vm := target.start(t)
	p, ok := vm.(vmm.Pauser)
	if !ok {
		t.Skip("the driver does not pause")
	}
	c := target.dial(t, vm)
	echoes(t, c, []byte("before"))
	if err := p.Pause(bound(t, target.Boot)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a paused guest answers")
	}
	running(t, vm)
	if err := p.Resume(bound(t, target.Boot)); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(target.Boot)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Errorf("a resumed guest does not answer: %v", err)
	}
	echoes(t, c, []byte("after"))
}

func testTwentyInARow(t *testing.T, target Target) {
	for i := range 20 {
		// Each has a test of its own, which stops its VM before the next one starts.
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			echoes(t, target.dial(t, target.start(t)), []byte("again"))
		})
	}
}
