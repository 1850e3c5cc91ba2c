package vmmtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest/echo"
)

func fakeTarget(t *testing.T) Target {
	dir := t.TempDir()
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	return Target{
		Driver:      &Fake{Serve: echo.Serve},
		Spec:        vmm.Spec{ID: "fake-1", Machine: "microvm", Kernel: kernel, MemoryMiB: 64, VCPUs: 1, RunDir: run},
		ConsoleMark: "is up",
		Boot:        10 * time.Second,
		Transfer:    64 << 20,
		Crash: func(vm vmm.VM) error {
			vm.(*FakeVM).Crash()
			return nil
		},
	}
}

func TestFake(t *testing.T) { Suite(t, fakeTarget) }

func TestFakeGuestThatEnds(t *testing.T) {
	for _, c := range []struct {
		name, want string
		serve      func(context.Context, *channel.Server) error
	}{
		{"with an error", "out of coffee", func(context.Context, *channel.Server) error { return errors.New("out of coffee") }},
		{"by itself", "powered off", func(context.Context, *channel.Server) error { return nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			CheckLeaks(t)
			target := fakeTarget(t)
			target.Driver = &Fake{Serve: c.serve}
			vm := target.start(t)
			gone(t, vm, 5*time.Second)
			if err := vm.Err(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Err: %v, want %s", err, c.want)
			}
		})
	}
}

func TestFakeStopWaitsForTheGuest(t *testing.T) {
	release := make(chan struct{})
	target := fakeTarget(t)
	target.Driver = &Fake{Serve: func(context.Context, *channel.Server) error {
		<-release
		return nil
	}}
	vm := target.start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := vm.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Stop of a guest that does not end: %v", err)
	}
	close(release)
	gone(t, vm, 5*time.Second)
}
