package vmm

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"
)

func valid() Spec {
	return Spec{
		ID: "a-1_2.3+4", Machine: "microvm", Kernel: "/k", Initrd: "/i", Cmdline: "quiet a=b,c",
		MemoryMiB: 128, VCPUs: 1, RunDir: "/run/x",
		Disks:  []Disk{{Serial: "root-0", Path: "/d,isk"}, {Serial: "data", Path: "/e"}},
		Shares: []Share{{Tag: "share", Socket: "/s"}},
		NICs: []NIC{
			{Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1500, Taps: make([]*os.File, 2), Vhosts: make([]*os.File, 2)},
			{Name: "eth1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, MTU: MinMTU, Taps: make([]*os.File, 1)},
		},
	}
}

func TestCheckTakesAValidSpec(t *testing.T) {
	if err := valid().Check(); err != nil {
		t.Fatal(err)
	}
}

func savedWithCard(s *Spec) *Snapshot {
	return &Snapshot{Memory: "/t/memory", State: "/t/state", MemoryMiB: s.MemoryMiB, Card: TapCard}
}

func TestCheckTakesASavedCard(t *testing.T) {
	s := valid()
	s.NICs[0].MAC = SavedMAC
	s.From = savedWithCard(&s)
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	s.From, s.Savable, s.Disks, s.Shares, s.NICs = nil, true, nil, nil, s.NICs[:1]
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

func TestQueues(t *testing.T) {
	for vcpus, want := range map[int]int{1: 1, 2: 2, 8: 8, 64: 8} {
		if got := Queues(vcpus); got != want {
			t.Errorf("Queues(%d) = %d, want %d", vcpus, got, want)
		}
	}
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name   string
		breakf func(*Spec)
		want   string
	}{
		{"no id", func(s *Spec) { s.ID = "" }, `id ""`},
		{"id with comma", func(s *Spec) { s.ID = "a,b" }, `id "a,b"`},
		{"long id", func(s *Spec) { s.ID = strings.Repeat("a", 129) }, "1 to 128"},
		{"accelerator", func(s *Spec) { s.Accel = "hax" }, `accelerator "hax"`},
		{"no kernel", func(s *Spec) { s.Kernel = "" }, "kernel"},
		{"relative initrd", func(s *Spec) { s.Initrd = "x" }, "initrd"},
		{"zero in path", func(s *Spec) { s.Kernel = "/a\x00b" }, "zero byte"},
		{"newline in cmdline", func(s *Spec) { s.Cmdline = "a\nb" }, "printable"},
		{"long cmdline", func(s *Spec) { s.Cmdline = strings.Repeat("a", MaxCmdline+1) }, "at most"},
		{"no memory", func(s *Spec) { s.MemoryMiB = 0 }, "memory of 0 MiB"},
		{"too much memory", func(s *Spec) { s.MemoryMiB = MaxMemoryMiB + 1 }, "memory of"},
		{"no vcpu", func(s *Spec) { s.VCPUs = 0 }, "0 virtual processors"},
		{"many vcpus", func(s *Spec) { s.VCPUs = MaxVCPUs + 1 }, "virtual processors"},
		{"serial", func(s *Spec) { s.Disks[0].Serial = "a_b" }, `serial "a_b"`},
		{"long serial", func(s *Spec) { s.Disks[0].Serial = strings.Repeat("a", 21) }, "1 to 20"},
		{"same serial", func(s *Spec) { s.Disks[1].Serial = "root-0" }, "taken"},
		{"relative disk", func(s *Spec) { s.Disks[0].Path = "d" }, "disk root-0"},
		{"tag", func(s *Spec) { s.Shares[0].Tag = "a/b" }, `tag "a/b"`},
		{"same tag", func(s *Spec) { s.Shares = append(s.Shares, s.Shares[0]) }, "taken"},
		{"no MAC address", func(s *Spec) { s.NICs[0].MAC = nil }, "(eth0): MAC"},
		{"zero MAC address", func(s *Spec) { s.NICs[0].MAC = make(net.HardwareAddr, 6) }, "(eth0): MAC"},
		{"a group's MAC address", func(s *Spec) { s.NICs[0].MAC = net.HardwareAddr{3, 0, 0, 0, 0, 1} }, "03:00"},
		{"same MAC address", func(s *Spec) { s.NICs[1].MAC = s.NICs[0].MAC }, "taken"},
		{"small MTU", func(s *Spec) { s.NICs[1].MTU-- }, "MTU 67"},
		{"large MTU", func(s *Spec) { s.NICs[1].MTU = MaxMTU + 1 }, "MTU 65536"},
		{"no queue", func(s *Spec) { s.NICs[1].Taps = nil }, "0 queues"},
		{"many queues", func(s *Spec) { s.NICs[1].Taps = make([]*os.File, MaxQueues+1) }, "257 queues"},
		{"few vhost files", func(s *Spec) { s.NICs[0].Vhosts = s.NICs[0].Vhosts[:1] }, "1 vhost files for 2"},
		{"shares of a VM to be saved", func(s *Spec) { s.Savable, s.Disks, s.NICs = true, nil, nil }, "no shares"},
		{"cards of a VM to be saved", func(s *Spec) { s.Savable, s.Disks, s.Shares = true, nil, nil }, "one network card"},
		{"card of a VM to be saved", func(s *Spec) { s.Savable, s.Disks, s.Shares, s.NICs = true, nil, nil, s.NICs[:1] }, "06:68:75:73:6b:ff"},
		{"no card of a saved VM", func(s *Spec) { s.NICs, s.From = nil, savedWithCard(s) }, "without it"},
		{"another card of a saved VM", func(s *Spec) { s.From = savedWithCard(s) }, "without it"},
		{"relative run dir", func(s *Spec) { s.RunDir = "run" }, "run directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := valid()
			c.breakf(&s)
			err := s.Check()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Check: %v, want an error about %s", err, c.want)
			}
		})
	}
}

func TestUnsupportedErrorMatches(t *testing.T) {
	err := error(&UnsupportedError{Driver: "x", What: "y", Needs: "z"})
	if !errors.Is(err, ErrNotSupported) {
		t.Fatalf("%v does not match ErrNotSupported", err)
	}
}
