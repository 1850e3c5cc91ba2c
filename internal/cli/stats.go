package cli

import (
	"math"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// The form in which runc's events verb prints; its consumers read these names.
type (
	runcEvent struct {
		Type string `json:"type"`
		ID   string `json:"id"`
		Data any    `json:"data,omitempty"`
	}
	statsData struct {
		CPU    cpuData           `json:"cpu"`
		Memory memoryData        `json:"memory"`
		Pids   pidsData          `json:"pids"`
		Blkio  map[string][]blkE `json:"blkio"`
	}
	cpuData struct {
		Usage struct {
			Total  uint64 `json:"total"` // nanoseconds, as the next two
			Kernel uint64 `json:"kernel"`
			User   uint64 `json:"user"`
		} `json:"usage"`
		Throttling struct {
			Periods          uint64 `json:"periods"`
			ThrottledPeriods uint64 `json:"throttledPeriods"`
			ThrottledTime    uint64 `json:"throttledTime"` // nanoseconds
		} `json:"throttling"`
	}
	memoryEntry struct {
		Limit   uint64 `json:"limit"` // bytes, as all
		Usage   uint64 `json:"usage"`
		Max     uint64 `json:"max"`
		Failcnt uint64 `json:"failcnt"`
	}
	memoryData struct {
		Cache uint64            `json:"cache"`
		Usage memoryEntry       `json:"usage"`
		Swap  memoryEntry       `json:"swap"`
		Raw   map[string]uint64 `json:"raw,omitempty"`
	}
	pidsData struct {
		Current uint64 `json:"current"`
		Limit   uint64 `json:"limit"` // 0: none
	}
	blkE struct {
		Major uint64 `json:"major"`
		Minor uint64 `json:"minor"`
		Op    string `json:"op"`
		Value uint64 `json:"value"`
	}
)

func runcStats(s *agentv1.StatsResponse) statsData {
	var d statsData
	cpu, memory := s.GetCpu(), s.GetMemory()
	d.CPU.Usage.Total = cpu.GetUsageUsec() * 1000
	d.CPU.Usage.Kernel = cpu.GetSystemUsec() * 1000
	d.CPU.Usage.User = cpu.GetUserUsec() * 1000
	d.CPU.Throttling.Periods = cpu.GetPeriods()
	d.CPU.Throttling.ThrottledPeriods = cpu.GetThrottledPeriods()
	d.CPU.Throttling.ThrottledTime = cpu.GetThrottledUsec() * 1000
	d.Memory.Cache = memory.GetStat()["file"]
	d.Memory.Usage = memoryEntry{
		Limit: memory.GetLimit(), Usage: memory.GetUsage(), Max: memory.GetPeak(), Failcnt: memory.GetOomKills(),
	}
	d.Memory.Swap = memoryEntry{Limit: memory.GetSwapLimit(), Usage: memory.GetSwapUsage()}
	d.Memory.Raw = memory.GetStat()
	d.Pids.Current = s.GetPids().GetCurrent()
	if limit := s.GetPids().GetLimit(); limit != math.MaxUint64 {
		d.Pids.Limit = limit
	}
	d.Blkio = map[string][]blkE{"ioServiceBytesRecursive": {}, "ioServicedRecursive": {}}
	for _, io := range s.GetIo() {
		add := func(list, op string, value uint64) {
			d.Blkio[list] = append(d.Blkio[list], blkE{io.Major, io.Minor, op, value})
		}
		add("ioServiceBytesRecursive", "Read", io.ReadBytes)
		add("ioServiceBytesRecursive", "Write", io.WriteBytes)
		add("ioServicedRecursive", "Read", io.ReadOps)
		add("ioServicedRecursive", "Write", io.WriteOps)
	}
	return d
}
