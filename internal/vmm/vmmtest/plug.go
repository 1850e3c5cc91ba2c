package vmmtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/vmm"
)

// togetherDisks is how many disks the suite plugs at once: more than a device on PCI has functions.
const togetherDisks = 10

// testPlugDisks plugs disks in and out of a VM that runs.
func testPlugDisks(t *testing.T, target Target) {
	target.Spec.Cmdline += " husktest.watch"
	console, printed := record(t)
	target.Spec.Console = console
	vm := target.start(t)
	plugger, ok := vm.(vmm.DiskPlugger)
	if !ok {
		t.Skip("the driver plugs no disks")
	}
	echoes(t, target.dial(t, vm), []byte("up"))
	disks := plugImages(t, togetherDisks)
	err := plugger.PlugDisks(bound(t, target.Boot), disks)
	if errors.Is(err, vmm.ErrNotSupported) {
		t.Logf("refused: %v", err)
		running(t, vm)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	says := func(format string, args ...any) {
		t.Helper()
		line := fmt.Sprintf(format, args...)
		for end := time.Now().Add(target.Boot); !strings.Contains(printed(), line); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the guest does not say %q; its console: %s", line, printed())
			}
		}
	}
	for _, d := range disks {
		says("came %s ro %d starts %q", d.Serial, map[bool]int{true: 1}[d.ReadOnly], (d.Serial + "________")[:8])
	}
	for _, d := range disks {
		if err := plugger.PlugDisks(bound(t, target.Boot), []vmm.Disk{d}); err == nil || errors.Is(err, vmm.ErrNotSupported) {
			t.Errorf("plugging %s a second time: %v", d.Serial, err)
		}
	}
	if err := plugger.UnplugDisks(bound(t, target.Boot), disks); err != nil {
		t.Fatal(err)
	}
	for _, d := range disks {
		says("went %s", d.Serial)
		if data, err := os.ReadFile(d.File.Name()); err != nil || bytes.Contains(data, []byte("written by guest")) == d.ReadOnly {
			t.Errorf("disk %s, read-only %v: the guest's write arrived, or not (%v)", d.Serial, d.ReadOnly, err)
		}
		if open := held(t, vm, d.File.Name()); open != "" {
			t.Errorf("disk %s is out, and the monitor holds %s", d.Serial, open)
		}
	}
	if err := plugger.UnplugDisks(bound(t, target.Boot), disks); err == nil {
		t.Error("disks were unplugged twice")
	}
	testPlugPlaces(t, target, plugger)
	running(t, vm)
}

// testPlugPlaces fills all places, and plugs what cannot be.
func testPlugPlaces(t *testing.T, target Target, plugger vmm.DiskPlugger) {
	t.Helper()
	good := plugImages(t, 2)
	bad := []vmm.Disk{{Serial: good[0].Serial, Path: "/nonexistent"}, good[1]}
	if err := plugger.PlugDisks(bound(t, target.Boot), bad); err == nil || !strings.Contains(err.Error(), "nonexistent") {
		t.Fatalf("plugging a file that does not exist: %v", err)
	}
	if err := plugger.PlugDisks(bound(t, target.Boot), good); err != nil {
		t.Fatalf("after a failure: %v", err)
	}
	var all [][]vmm.Disk
	for n := 0; ; n++ {
		one := plugImages(t, 1)
		one[0].Serial = fmt.Sprintf("place-%d", n)
		err := plugger.PlugDisks(bound(t, target.Boot), one)
		if errors.Is(err, vmm.ErrNotSupported) {
			break
		}
		if err != nil || n > 1000 {
			t.Fatalf("place %d: %v", n, err)
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		t.Fatal("there is place for two disks only")
	}
	t.Logf("places beside that of two disks: %d", len(all))
	last := all[len(all)-1]
	if err := plugger.UnplugDisks(bound(t, target.Boot), last); err != nil {
		t.Fatal(err)
	}
	if err := plugger.PlugDisks(bound(t, target.Boot), last); err != nil {
		t.Errorf("where one was taken out: %v", err)
	}
}

// plugImages makes open images that begin with their serials, the first of them read-only.
func plugImages(t *testing.T, count int) (disks []vmm.Disk) {
	t.Helper()
	dir := t.TempDir()
	for i := range count {
		d := vmm.Disk{Serial: fmt.Sprintf("plug-%d", i), ReadOnly: i == 0}
		data := make([]byte, 1<<20)
		copy(data, d.Serial+"________")
		path := filepath.Join(dir, "image,of="+d.Serial)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		flags := os.O_RDWR
		if d.ReadOnly {
			flags = os.O_RDONLY
		}
		var err error
		if d.File, err = os.OpenFile(path, flags, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.File.Close() })
		disks = append(disks, d)
	}
	return disks
}

// held is the descriptor by which the monitor has a file open, empty for none.
func held(t *testing.T, vm vmm.VM, path string) string {
	t.Helper()
	if vm.PID() == os.Getpid() {
		return "" // a guest without a monitor
	}
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", vm.PID()))
	if err != nil || len(all) == 0 {
		t.Fatalf("look at the monitor's files: %v", err)
	}
	for _, fd := range all {
		if target, err := os.Readlink(fd); err == nil && target == path {
			return fd
		}
	}
	return ""
}
