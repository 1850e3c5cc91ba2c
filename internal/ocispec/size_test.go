package ocispec

import (
	"math"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var sizing = Sizing{MemoryMiB: 512, OverheadMiB: 96, VCPUs: 1, MinMemoryMiB: 128, HostMemoryMiB: 4096, HostCPUs: 8}

func TestSizeOf(t *testing.T) {
	memory := func(bytes int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &bytes}}
	}
	cpu := func(quota int64, period uint64, cpus string) *specs.LinuxResources {
		return &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period, Cpus: cpus}}
	}
	shares := uint64(4096)
	for _, c := range []struct {
		name         string
		r            *specs.LinuxResources
		memory, cpus int
		err          string
	}{
		{"nothing", nil, 512, 1, ""},
		{"empty", &specs.LinuxResources{}, 512, 1, ""},
		{"memory alone", memory(1 << 30), 1024 + 16 + 96, 1, ""},
		{"a byte more", memory(1<<30 + 1), 1025 + 16 + 96, 1, ""},
		{"unlimited memory", memory(-1), 512, 1, ""},
		{"zero memory", memory(0), 512, 1, ""},
		{"all memory", memory(3938 << 20), 3938 + 61 + 96, 1, ""},
		{"little memory", memory(16 << 20), 0, 0, "needs at least 128 MiB"},
		{"too much memory", memory(3940 << 20), 0, 0, "but the host has 4096 MiB"},
		{"absurd memory", memory(math.MaxInt64), 0, 0, "but the host has"},
		{"cpu alone", cpu(150_000, 100_000, ""), 512, 2, ""},
		{"small cpu", cpu(1000, 100_000, ""), 512, 1, ""},
		{"whole cpus", cpu(300_000, 100_000, ""), 512, 3, ""},
		{"default period", cpu(250_000, 0, ""), 512, 3, ""},
		{"unlimited cpu", cpu(-1, 100_000, ""), 512, 1, ""},
		{"more cpus than there are", cpu(math.MaxInt64, 1, ""), 512, 8, ""},
		{"pinned", cpu(0, 0, "0-2,2,5"), 512, 4, ""},
		{"pinned and limited", cpu(200_000, 100_000, "0-5"), 512, 2, ""},
		{"limited and pinned", cpu(600_000, 100_000, "0,1"), 512, 2, ""},
		{"bad list", cpu(0, 0, "0-"), 0, 0, "no list of processors"},
		{"backward list", cpu(0, 0, "3-1"), 0, 0, "no list of processors"},
		{"shares do not count", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}, 512, 1, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := SizeOf(c.r, sizing)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v, want %q", err, c.err)
				}
				return
			}
			if err != nil || got != (Size{MemoryMiB: c.memory, VCPUs: c.cpus}) {
				t.Errorf("%+v, %v; want %d MiB and %d CPUs", got, err, c.memory, c.cpus)
			}
		})
	}
}

func FuzzCountCPUs(f *testing.F) {
	f.Add("0-3,8")
	f.Add("0-65535,,")
	f.Fuzz(func(t *testing.T, list string) {
		if n, err := countCPUs(list); err == nil && (n < 0 || n > 1<<16) {
			t.Errorf("counted %d in %q", n, list)
		}
	})
}
