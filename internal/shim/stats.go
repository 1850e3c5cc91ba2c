package shim

import (
	"context"
	"fmt"
	"math"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/sys"
)

// microsecond is one in the unit of cgroup version 1, nanoseconds.
const microsecond = 1000

// statistics are those of a container or pod, in the form that containerd knows.
func statistics(ctx context.Context, box *sandbox.Sandbox, name string) (*anypb.Any, error) {
	stats, err := box.Stats(ctx, name)
	if err != nil {
		return nil, err
	}
	unified, err := sys.UnifiedCgroups()
	if err != nil {
		return nil, err
	}
	m := metrics(stats, unified)
	data, err := proto.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode statistics: %w", err)
	}
	return &anypb.Any{TypeUrl: typeURL(m), Value: data}, nil
}

// metrics puts the guest's statistics, which are those of cgroup version 2, into the form that the host's
// containers have.
func metrics(s *agentv1.StatsResponse, unified bool) proto.Message {
	if unified {
		return unifiedMetrics(s)
	}
	cpu, memory := s.GetCpu(), s.GetMemory()
	m := &v1.Metrics{
		Pids: &v1.PidsStat{Current: s.GetPids().GetCurrent(), Limit: v1Limit(s.GetPids().GetLimit())},
		CPU: &v1.CPUStat{
			Usage: &v1.CPUUsage{
				Total: cpu.GetUsageUsec() * microsecond, User: cpu.GetUserUsec() * microsecond,
				Kernel: cpu.GetSystemUsec() * microsecond,
			},
			Throttling: &v1.Throttle{
				Periods: cpu.GetPeriods(), ThrottledPeriods: cpu.GetThrottledPeriods(),
				ThrottledTime: cpu.GetThrottledUsec() * microsecond,
			},
		},
		Memory:           v1Memory(memory),
		MemoryOomControl: &v1.MemoryOomControl{OomKill: memory.GetOomKills()},
		Blkio:            &v1.BlkIOStat{},
	}
	for _, io := range s.GetIo() {
		m.Blkio.IoServiceBytesRecursive = append(m.Blkio.IoServiceBytesRecursive,
			&v1.BlkIOEntry{Op: "Read", Major: io.Major, Minor: io.Minor, Value: io.ReadBytes},
			&v1.BlkIOEntry{Op: "Write", Major: io.Major, Minor: io.Minor, Value: io.WriteBytes})
		m.Blkio.IoServicedRecursive = append(m.Blkio.IoServicedRecursive,
			&v1.BlkIOEntry{Op: "Read", Major: io.Major, Minor: io.Minor, Value: io.ReadOps},
			&v1.BlkIOEntry{Op: "Write", Major: io.Major, Minor: io.Minor, Value: io.WriteOps})
	}
	return m
}

// v1Memory names by version 1 what version 2 counts: anonymous memory is rss, files are cache.
func v1Memory(m *agentv1.MemoryStats) *v1.MemoryStat {
	stat := m.GetStat()
	return &v1.MemoryStat{
		Cache: stat["file"], RSS: stat["anon"], RSSHuge: stat["anon_thp"], MappedFile: stat["file_mapped"],
		Dirty: stat["file_dirty"], Writeback: stat["file_writeback"], PgFault: stat["pgfault"],
		PgMajFault: stat["pgmajfault"], InactiveAnon: stat["inactive_anon"], ActiveAnon: stat["active_anon"],
		InactiveFile: stat["inactive_file"], ActiveFile: stat["active_file"], Unevictable: stat["unevictable"],
		HierarchicalMemoryLimit: v1Limit(m.GetLimit()), HierarchicalSwapLimit: v1Limit(m.GetSwapLimit()),
		TotalCache: stat["file"], TotalRSS: stat["anon"], TotalRSSHuge: stat["anon_thp"],
		TotalMappedFile: stat["file_mapped"], TotalDirty: stat["file_dirty"], TotalWriteback: stat["file_writeback"],
		TotalPgFault: stat["pgfault"], TotalPgMajFault: stat["pgmajfault"],
		TotalInactiveAnon: stat["inactive_anon"], TotalActiveAnon: stat["active_anon"],
		TotalInactiveFile: stat["inactive_file"], TotalActiveFile: stat["active_file"],
		TotalUnevictable: stat["unevictable"],
		Usage:            &v1.MemoryEntry{Usage: m.GetUsage(), Max: m.GetPeak(), Limit: v1Limit(m.GetLimit())},
		// Version 1 counts memory and swap together.
		Swap:   &v1.MemoryEntry{Usage: m.GetUsage() + m.GetSwapUsage(), Limit: v1Limit(m.GetSwapLimit())},
		Kernel: &v1.MemoryEntry{Usage: stat["kernel"]},
		// In the former already; CRI-O reads it whether it is there or not.
		KernelTCP: &v1.MemoryEntry{},
	}
}

// v1Limit is what version 1 says of no limit: the largest number of whole pages (memory.limit_in_bytes).
func v1Limit(limit uint64) uint64 {
	if limit == math.MaxUint64 {
		return math.MaxInt64 &^ 4095
	}
	return limit
}

func unifiedMetrics(s *agentv1.StatsResponse) *v2.Metrics {
	cpu, memory := s.GetCpu(), s.GetMemory()
	stat := memory.GetStat()
	m := &v2.Metrics{
		Pids: &v2.PidsStat{Current: s.GetPids().GetCurrent(), Limit: s.GetPids().GetLimit()},
		CPU: &v2.CPUStat{
			UsageUsec: cpu.GetUsageUsec(), UserUsec: cpu.GetUserUsec(), SystemUsec: cpu.GetSystemUsec(),
			NrPeriods: cpu.GetPeriods(), NrThrottled: cpu.GetThrottledPeriods(), ThrottledUsec: cpu.GetThrottledUsec(),
		},
		Memory: &v2.MemoryStat{
			Anon: stat["anon"], File: stat["file"], KernelStack: stat["kernel_stack"], Slab: stat["slab"],
			Sock: stat["sock"], Shmem: stat["shmem"], FileMapped: stat["file_mapped"], FileDirty: stat["file_dirty"],
			FileWriteback: stat["file_writeback"], AnonThp: stat["anon_thp"], InactiveAnon: stat["inactive_anon"],
			ActiveAnon: stat["active_anon"], InactiveFile: stat["inactive_file"], ActiveFile: stat["active_file"],
			Unevictable: stat["unevictable"], SlabReclaimable: stat["slab_reclaimable"],
			SlabUnreclaimable: stat["slab_unreclaimable"], Pgfault: stat["pgfault"], Pgmajfault: stat["pgmajfault"],
			Usage: memory.GetUsage(), UsageLimit: memory.GetLimit(), MaxUsage: memory.GetPeak(),
			SwapUsage: memory.GetSwapUsage(), SwapLimit: memory.GetSwapLimit(),
		},
		MemoryEvents: &v2.MemoryEvents{OomKill: memory.GetOomKills()},
		Io:           &v2.IOStat{},
	}
	for _, io := range s.GetIo() {
		m.Io.Usage = append(m.Io.Usage, &v2.IOEntry{
			Major: io.Major, Minor: io.Minor, Rbytes: io.ReadBytes, Wbytes: io.WriteBytes, Rios: io.ReadOps, Wios: io.WriteOps,
		})
	}
	return m
}
