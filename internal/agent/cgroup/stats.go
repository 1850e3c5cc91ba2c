package cgroup

import (
	"bufio"
	"errors"
	"math"
	"strconv"
	"strings"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// Stats reads the group's use of resources. What a controller that is not there would tell is zero.
func (g Group) Stats() (*agentv1.StatsResponse, error) {
	cpu, err := g.read("cpu.stat") // the one file that every group has
	if err != nil {
		return nil, err
	}
	read := func(name string) string {
		text, failed := g.read(name)
		if failed != nil && !errors.Is(failed, ErrNone) {
			err = errors.Join(err, failed)
		}
		return text
	}
	s := &agentv1.StatsResponse{
		Cpu: parseCPU(cpu),
		Memory: &agentv1.MemoryStats{
			Usage:     parseNumber(read("memory.current")),
			Limit:     parseNumber(read("memory.max")),
			Peak:      parseNumber(read("memory.peak")),
			SwapUsage: parseNumber(read("memory.swap.current")),
			SwapLimit: parseNumber(read("memory.swap.max")),
			Stat:      parseFlat(read("memory.stat")),
			OomKills:  parseFlat(read("memory.events"))["oom_kill"],
		},
		Pids: &agentv1.PidsStats{
			Current: parseNumber(read("pids.current")),
			Limit:   parseNumber(read("pids.max")),
		},
		Io: parseIO(read("io.stat")),
	}
	return s, err
}

func parseCPU(text string) *agentv1.CPUStats {
	v := parseFlat(text)
	return &agentv1.CPUStats{
		UsageUsec: v["usage_usec"], UserUsec: v["user_usec"], SystemUsec: v["system_usec"],
		Periods: v["nr_periods"], ThrottledPeriods: v["nr_throttled"], ThrottledUsec: v["throttled_usec"],
	}
}

// parseFlat reads a flat-keyed file: lines of a key and a number.
func parseFlat(text string) map[string]uint64 {
	values := map[string]uint64{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		if key, value, found := strings.Cut(lines.Text(), " "); found {
			values[key] = parseNumber(value)
		}
	}
	return values
}

// parseNumber reads a single value; "max" is the largest number, and anything else that is no number 0.
func parseNumber(text string) uint64 {
	text = strings.TrimSpace(text)
	if text == "max" {
		return math.MaxUint64
	}
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// parseIO reads io.stat: lines like "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func parseIO(text string) []*agentv1.IOStats {
	var devices []*agentv1.IOStats
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue // a device that was used, but not through this group
		}
		major, minor, found := strings.Cut(fields[0], ":")
		if !found {
			continue
		}
		d := &agentv1.IOStats{Major: parseNumber(major), Minor: parseNumber(minor)}
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			switch n := parseNumber(value); key {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "rios":
				d.ReadOps = n
			case "wios":
				d.WriteOps = n
			}
		}
		devices = append(devices, d)
	}
	return devices
}
