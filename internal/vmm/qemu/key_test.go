package qemu

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"testing"
	"time"

	"husk.dev/husk/internal/vmm"
)

// keyed is a driver and the description of a VM whose files are all in dir.
func keyed(t *testing.T) (d *Driver, s vmm.Spec, dir string) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("VMs are saved on amd64 only")
	}
	dir = t.TempDir()
	for _, name := range []string{"qemu", "kernel", "initrd", "other"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("file"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return New(Options{Binary: filepath.Join(dir, "qemu")}), vmm.Spec{
		ID: "a", Machine: q35, Accel: "tcg", Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"),
		Cmdline: "quiet", MemoryMiB: 256, VCPUs: 1,
	}, dir
}

func key(t *testing.T, d *Driver, s vmm.Spec) string {
	t.Helper()
	k, err := d.SnapshotKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSnapshotKeyIsTheSame(t *testing.T) {
	d, s, dir := keyed(t)
	want := key(t, d, s)
	if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(want) {
		t.Errorf("key %q", want)
	}
	for name, change := range map[string]func(*vmm.Spec){
		"nothing":    func(*vmm.Spec) {},
		"id":         func(s *vmm.Spec) { s.ID = "b" },
		"disks":      func(s *vmm.Spec) { s.Disks = []vmm.Disk{{Serial: "d", Path: "/d"}} },
		"shares":     func(s *vmm.Spec) { s.Shares = []vmm.Share{{Tag: "s", Socket: "/s"}} },
		"user":       func(s *vmm.Spec) { s.UID, s.GID = 7, 7 },
		"directory":  func(s *vmm.Spec) { s.RunDir = dir },
		"to be made": func(s *vmm.Spec) { s.Savable = true },
		"continued":  func(s *vmm.Spec) { s.From = &vmm.Snapshot{Memory: "/m", State: "/s", MemoryMiB: 256} },
	} {
		changed := s
		change(&changed)
		if got := key(t, New(d.options), changed); got != want {
			t.Errorf("%s makes another key", name)
		}
	}
}

func savedCard(queues int) []vmm.NIC {
	return []vmm.NIC{{Name: "eth0", MAC: vmm.SavedMAC, MTU: vmm.MaxMTU, Taps: make([]*os.File, queues)}}
}

func TestSnapshotKeyDiffers(t *testing.T) {
	touch := func(name string) func(*testing.T, *vmm.Spec, string) {
		return func(t *testing.T, _ *vmm.Spec, dir string) {
			when := time.Now().Add(time.Second)
			if err := os.Chtimes(filepath.Join(dir, name), when, when); err != nil {
				t.Fatal(err)
			}
		}
	}
	set := func(change func(*vmm.Spec)) func(*testing.T, *vmm.Spec, string) {
		return func(_ *testing.T, s *vmm.Spec, _ string) { change(s) }
	}
	keys := map[string]string{}
	for name, change := range map[string]func(t *testing.T, s *vmm.Spec, dir string){
		"monitor touched": touch("qemu"),
		"kernel touched":  touch("kernel"),
		"image touched":   touch("initrd"),
		"kernel larger, same time": func(t *testing.T, s *vmm.Spec, _ string) {
			info, err := os.Stat(s.Kernel)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.Kernel, []byte("another"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(s.Kernel, info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
		},
		"another kernel": func(_ *testing.T, s *vmm.Spec, dir string) { s.Kernel = filepath.Join(dir, "other") },
		"no image":       set(func(s *vmm.Spec) { s.Initrd = "" }),
		"memory":         set(func(s *vmm.Spec) { s.MemoryMiB = 512 }),
		"processors":     set(func(s *vmm.Spec) { s.VCPUs = 2 }),
		"a card":         set(func(s *vmm.Spec) { s.NICs = savedCard(1) }),
		"a socket's card": set(func(s *vmm.Spec) {
			s.NICs = []vmm.NIC{{Name: "eth0", MAC: vmm.StreamMAC, MTU: vmm.StreamMTU, Stream: new(os.File)}}
		}),
		"its queues":   set(func(s *vmm.Spec) { s.NICs = savedCard(2) }),
		"command line": set(func(s *vmm.Spec) { s.Cmdline = "loud" }),
	} {
		d, s, dir := keyed(t)
		before := key(t, d, s)
		change(t, &s, dir)
		after := key(t, d, s)
		if after == before {
			t.Errorf("%s: the key is the same", name)
		}
		if other, taken := keys[after]; taken {
			t.Errorf("%s and %s: the same key", name, other)
		}
		keys[after] = name
	}
}

func TestSnapshotKeyFails(t *testing.T) {
	for name, change := range map[string]func(s *vmm.Spec){
		"microvm":        func(s *vmm.Spec) { s.Machine = microvm },
		"no kernel":      func(s *vmm.Spec) { s.Kernel = "/nonexistent" },
		"no processors":  func(s *vmm.Spec) { s.VCPUs = 0 },
		"no memory":      func(s *vmm.Spec) { s.MemoryMiB = 0 },
		"another accel":  func(s *vmm.Spec) { s.Accel = "xen" },
		"relative image": func(s *vmm.Spec) { s.Initrd = "initrd" },
	} {
		d, s, _ := keyed(t)
		change(&s)
		if k, err := d.SnapshotKey(s); err == nil {
			t.Errorf("%s: key %s", name, k)
		}
	}
}

// TestTSCClass: what is measured of one counter is one class, wherever processors usually have theirs.
func TestTSCClass(t *testing.T) {
	if tscClass(0) != 0 {
		t.Error("an unknown frequency has a class")
	}
	for _, khz := range []int{
		1_000_000, 1_800_000, 1_992_000, 2_000_000, 2_095_078, 2_100_000, 2_112_000, 2_199_998, 2_245_780, 2_295_686, 2_400_000,
		2_445_424, 2_494_140, 2_496_000, 2_500_000, 2_593_906, 2_595_124, 2_596_142, 2_650_000, 2_712_000, 2_794_748,
		2_808_000, 2_904_000, 2_999_998, 3_000_000, 3_399_906, 3_600_000, 3_700_028, 4_200_000, 5_000_000,
	} {
		for _, off := range []int{-50, -10, -1, 1, 10, 50} {
			if tscClass(khz+off) != tscClass(khz) {
				t.Errorf("%d kHz and %d kHz are two classes", khz, khz+off)
			}
		}
	}
	if tscClass(2_400_000) == tscClass(2_420_000) || tscClass(2_400_000) == 0 {
		t.Error("counters that differ are one class")
	}
}
