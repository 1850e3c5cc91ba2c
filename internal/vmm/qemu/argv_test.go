package qemu

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"husk.dev/husk/internal/vmm"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func spec(machine string) vmm.Spec {
	return vmm.Spec{
		ID: "web-1", Machine: machine, Kernel: "/guest/vmlinux", Initrd: "/guest/initrd, new",
		Cmdline: "loglevel=7", MemoryMiB: 256, VCPUs: 2,
	}
}

// tcg is a host of AMD's without KVM, where QEMU has inherited the kernel first.
func tcg() facts {
	return facts{arch: "amd64", accel: "tcg", amd: true, tscKHz: 2596142, console: true, kernel: 3, initrd: 4, qmp: 5, agent: 6}
}

func onKVM(f facts) facts {
	f.accel, f.tscKHz = "kvm", 0
	return f
}

func TestArgv(t *testing.T) {
	disks := []vmm.Disk{
		{Serial: "layer-0", Path: "/d/a", ReadOnly: true, Pmem: true},
		{Serial: "layer-1", Path: "/d/b", ReadOnly: true},
		{Serial: "upper", Path: "/d/c,d"},
		{Serial: "data", Path: "/d/e", Pmem: true},
	}
	nics := []vmm.NIC{
		{Name: "eth0", MAC: net.HardwareAddr{0x16, 0x93, 0x59, 0x9c, 0x7b, 0x0d}, MTU: 1500},
		{Name: "net1", MAC: net.HardwareAddr{0x06, 'h', 'u', 's', 'k', 2}, MTU: 9000},
	}
	diskFacts := []diskFact{{fd: 7, size: 64 << 20}, {fd: 8, size: 4096}, {fd: 9, size: 1 << 30}, {fd: 10, size: 2 << 20}}
	for _, c := range []struct {
		name string
		spec func() (vmm.Spec, facts)
	}{
		{"microvm-tcg", func() (vmm.Spec, facts) { return spec(microvm), tcg() }},
		{"microvm-kvm", func() (vmm.Spec, facts) { return spec(microvm), onKVM(tcg()) }},
		{"q35-tcg", func() (vmm.Spec, facts) { return spec(q35), tcg() }},
		{"q35-kvm-intel", func() (vmm.Spec, facts) {
			f := onKVM(tcg())
			f.amd = false
			return spec(q35), f
		}},
		{"q35-kvm-vsock", func() (vmm.Spec, facts) {
			f := onKVM(tcg())
			f.agent, f.vhost, f.cid = 0, 6, 4000000001
			return spec(q35), f
		}},
		{"microvm-vsock", func() (vmm.Spec, facts) {
			f := tcg()
			f.agent, f.vhost, f.cid = 0, 6, 3
			return spec(microvm), f
		}},
		{"microvm-unknown-tsc", func() (vmm.Spec, facts) {
			f := tcg()
			f.tscKHz = 0
			return spec(microvm), f
		}},
		{"microvm-bare", func() (vmm.Spec, facts) {
			s, f := spec(microvm), tcg()
			s.Initrd, s.Cmdline, f.initrd, f.console = "", "", 0, false
			return s, f
		}},
		{"q35-disks", func() (vmm.Spec, facts) {
			s, f := spec(q35), tcg()
			s.Disks, f.disks = disks, diskFacts
			return s, f
		}},
		{"microvm-disks", func() (vmm.Spec, facts) {
			s, f := spec(microvm), tcg()
			s.Disks, f.disks = disks[1:3], diskFacts[1:3]
			return s, f
		}},
		{"q35-shares", func() (vmm.Spec, facts) {
			s, f := spec(q35), tcg()
			s.Shares, f.shares = []vmm.Share{{Tag: "rootfs", Socket: "/r"}, {Tag: "volumes", Socket: "/v"}}, []int{7, 8}
			return s, f
		}},
		{"microvm-shares", func() (vmm.Spec, facts) {
			s, f := spec(microvm), tcg()
			s.Shares, f.shares = []vmm.Share{{Tag: "rootfs", Socket: "/r"}}, []int{7}
			return s, f
		}},
		{"q35-nics", func() (vmm.Spec, facts) {
			s, f := spec(q35), tcg()
			s.NICs, f.nics = nics, []nicFact{{taps: []int{7}}, {taps: []int{8, 9}, vhosts: []int{10, 11}}}
			return s, f
		}},
		{"microvm-nics", func() (vmm.Spec, facts) {
			s, f := spec(microvm), tcg()
			s.NICs, f.nics = nics, []nicFact{{taps: []int{7}, vhosts: []int{8}}, {taps: []int{9, 10}}}
			return s, f
		}},
		{"arm64-microvm", func() (vmm.Spec, facts) {
			f := onKVM(tcg())
			f.arch, f.amd = "arm64", false
			return spec(microvm), f
		}},
		{"arm64-q35-tcg", func() (vmm.Spec, facts) {
			f := tcg()
			f.arch, f.amd, f.tscKHz = "arm64", false, 0
			return spec(q35), f
		}},
	} {
		t.Run(c.name, func(t *testing.T) { golden(t, c.name, lines(argv(c.spec()))) })
	}
}

// TestArgvOfSnapshots: what is saved and what continues it must agree on all that comes before the disks.
func TestArgvOfSnapshots(t *testing.T) {
	layer := vmm.Disk{Serial: "layer-1", Path: "/d/b", ReadOnly: true}
	for _, c := range []struct {
		name string
		spec func() (vmm.Spec, facts)
	}{
		{"q35-savable", func() (vmm.Spec, facts) {
			s, f := spec(q35), tcg()
			s.Savable, f.ram = true, 7
			return s, f
		}},
		{"q35-continued", func() (vmm.Spec, facts) { // its first disk takes a place, memory is plugged in
			s, f := spec(q35), tcg()
			s.From, s.MemoryMiB = &vmm.Snapshot{Memory: "/t/memory", State: "/t/state", MemoryMiB: 256}, 1023
			s.Disks, f.disks = []vmm.Disk{layer}, []diskFact{{fd: 8, size: 4096}}
			f.kernel, f.initrd, f.state, f.lent = 0, 0, 3, true
			return s, f
		}},
		{"q35-savable-card", func() (vmm.Spec, facts) {
			s, f := spec(q35), tcg()
			s.Savable, f.ram = true, 7
			s.NICs, f.nics = savedCard(1), []nicFact{{taps: []int{8}}}
			return s, f
		}},
		{"q35-continued-cards", func() (vmm.Spec, facts) { // the first is where the saved one was, the other is found
			s, f := spec(q35), tcg()
			s.From = &vmm.Snapshot{Memory: "/t/memory", State: "/t/state", MemoryMiB: 256, Card: vmm.TapCard}
			s.NICs = append(savedCard(1), vmm.NIC{Name: "net1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, MTU: 1500})
			s.NICs[0].Reset = net.HardwareAddr{2, 0, 0, 0, 0, 1}
			f.nics = []nicFact{{taps: []int{8}}, {taps: []int{9}}}
			f.kernel, f.initrd, f.state, f.lent = 0, 0, 3, true
			return s, f
		}},
		{"q35-continued-shares", func() (vmm.Spec, facts) { // its memory is a copy that the file service maps
			s, f := spec(q35), tcg()
			s.From = &vmm.Snapshot{Memory: "/t/memory", State: "/t/state", MemoryMiB: 256}
			s.Shares, f.shares = []vmm.Share{{Tag: "rootfs", Socket: "/r"}}, []int{8}
			f.kernel, f.initrd, f.state, f.ram = 0, 0, 3, 4
			return s, f
		}},
	} {
		t.Run(c.name, func(t *testing.T) { golden(t, c.name, lines(argv(c.spec()))) })
	}
}

// TestACPI: only an emulated guest that needs none, and few devices, goes without.
func TestACPI(t *testing.T) {
	needless := func(machine string) vmm.Spec {
		s := spec(machine)
		s.NoACPI = true
		return s
	}
	unknown, full, crowded := tcg(), needless(microvm), needless(microvm)
	unknown.tscKHz = 0
	full.Disks = make([]vmm.Disk, mmioDevices-ownSlots)
	crowded.Disks, crowded.NICs = full.Disks, make([]vmm.NIC, 1)
	for name, c := range map[string]struct {
		spec  vmm.Spec
		facts facts
		want  string
	}{
		"needless":          {needless(microvm), tcg(), "microvm,acpi=off,"},
		"all slots taken":   {full, tcg(), "microvm,acpi=off,"},
		"too many devices":  {crowded, tcg(), "microvm,acpi=on,"},
		"needed":            {spec(microvm), tcg(), "microvm,acpi=on,"},
		"clock unknown":     {needless(microvm), unknown, "microvm,acpi=on,"},
		"on KVM":            {needless(microvm), onKVM(tcg()), "microvm,acpi=on,"},
		"a machine with it": {needless(q35), tcg(), "q35,smbus=off"},
	} {
		b := &builder{spec: c.spec, facts: c.facts}
		if got := b.machineType(); !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: machine %s, want %s", name, got, c.want)
		}
	}
}

// lines puts every option on a line of its own.
func lines(args []string) string {
	var b strings.Builder
	for i, a := range args {
		if i > 0 && strings.HasPrefix(a, "-") {
			b.WriteByte('\n')
		} else if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(a)
	}
	b.WriteByte('\n')
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update rewrites it)\ngot:\n%swant:\n%s", path, got, want)
	}
}

func TestCmdlineFitsTheKernel(t *testing.T) {
	s, f := spec(microvm), tcg()
	s.Cmdline = strings.Repeat("a", vmm.MaxCmdline)
	f.tscKHz = 99999999
	if n := len(cmdline(s, f)); n >= 2048 {
		t.Errorf("command line of %d bytes, an x86 kernel takes 2047", n)
	}
}

// TestArgvHoldsNoPath: what QEMU does not name it need not be allowed to open.
func TestArgvHoldsNoPath(t *testing.T) {
	s, f := spec(q35), tcg()
	s.Kernel, s.Initrd = "/secret/kernel", "/secret/initrd"
	s.Disks, f.disks = []vmm.Disk{{Serial: "d", Path: "/secret/disk"}}, []diskFact{{fd: 7, size: 1}}
	s.Shares, f.shares = []vmm.Share{{Tag: "t", Socket: "/secret/socket"}}, []int{8}
	for _, a := range argv(s, f) {
		if strings.Contains(a, "secret") {
			t.Errorf("argument %q holds a path", a)
		}
	}
}
