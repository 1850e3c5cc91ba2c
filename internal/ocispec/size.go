package ocispec

import (
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Sizing is what the size of a VM depends on beside the container's own limits.
type Sizing struct {
	MemoryMiB   int // where there is no memory limit
	OverheadMiB int // added to a memory limit, for the guest's kernel and agent
	VCPUs       int // where there is no CPU limit

	MinMemoryMiB  int // the least that the guest starts with
	HostMemoryMiB int // the most that there is
	HostCPUs      int // more processors than the host has help nobody
}

// Size is the size of a VM.
type Size struct {
	MemoryMiB int
	VCPUs     int
}

// SizeOf sizes the VM of a container with the limits r, which may be nil. Memory and processors are
// looked at each alone: a limit of the one leaves the other at its default.
func SizeOf(r *specs.LinuxResources, s Sizing) (Size, error) {
	memory, err := memoryMiB(r, s)
	if err != nil {
		return Size{}, err
	}
	vcpus, err := vcpus(r, s)
	if err != nil {
		return Size{}, err
	}
	return Size{MemoryMiB: memory, VCPUs: vcpus}, nil
}

// pageBooks is how many bytes of memory a Linux kernel keeps one byte of books for: 64 for each page of 4096.
const pageBooks = 64

func memoryMiB(r *specs.LinuxResources, s Sizing) (int, error) {
	need, what := int64(s.MemoryMiB), "the default memory"
	if r != nil && r.Memory != nil && r.Memory.Limit != nil && *r.Memory.Limit > 0 {
		const mib = 1 << 20
		limit := *r.Memory.Limit / mib
		if *r.Memory.Limit%mib > 0 {
			limit++
		}
		need = limit + limit/pageBooks + int64(s.OverheadMiB)
		what = fmt.Sprintf("the memory limit of %d bytes with %d MiB for the guest itself", *r.Memory.Limit, need-limit)
	}
	if need < int64(s.MinMemoryMiB) {
		return 0, fmt.Errorf("%s gives a guest of %d MiB, which needs at least %d MiB to start", what, need, s.MinMemoryMiB)
	}
	if need > int64(s.HostMemoryMiB) {
		return 0, fmt.Errorf("%s gives a guest of %d MiB, but the host has %d MiB", what, need, s.HostMemoryMiB)
	}
	return int(need), nil
}

func vcpus(r *specs.LinuxResources, s Sizing) (int, error) {
	n := int64(s.VCPUs)
	if r != nil && r.CPU != nil {
		limit := int64(0)
		if q := r.CPU.Quota; q != nil && *q > 0 {
			period := uint64(100_000) // the kernel's default, microseconds
			if r.CPU.Period != nil && *r.CPU.Period > 0 {
				period = *r.CPU.Period
			}
			quota := uint64(*q)
			limit = int64(min((quota-1)/period+1, 1<<20))
		}
		pinned, err := countCPUs(r.CPU.Cpus)
		if err != nil {
			return 0, err
		}
		switch {
		case limit > 0 && pinned > 0:
			n = min(limit, int64(pinned))
		case limit > 0:
			n = limit
		case pinned > 0:
			n = int64(pinned)
		}
	}
	return int(max(1, min(n, int64(s.HostCPUs)))), nil
}

// countCPUs counts the processors of a list such as "0-3,8", the form of cpuset(7).
func countCPUs(list string) (int, error) {
	const most = 1 << 16
	seen := map[uint64]bool{}
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		first, err1 := strconv.ParseUint(low, 10, 16)
		last, err2 := strconv.ParseUint(high, 10, 16)
		if err1 != nil || err2 != nil || first > last || last >= most {
			return 0, fmt.Errorf("linux.resources.cpu.cpus: %q is no list of processors", list)
		}
		for n := first; n <= last; n++ {
			seen[n] = true
		}
	}
	return len(seen), nil
}
