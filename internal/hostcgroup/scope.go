package hostcgroup

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/godbus/dbus/v5"
)

// scope is a unit of systemd's that is a control group of processes which others have started (systemd.scope(5)).
type scope struct {
	slice string // the unit that it is below
	unit  string
}

const (
	scopeSuffix, sliceSuffix = ".scope", ".slice"
	systemSlice              = "system.slice"
	userSlice                = "user.slice"
	// maxUnit bounds the name of a unit in bytes (systemd.unit(5)).
	maxUnit = 255
)

// systemdDir is there where systemd is the machine's first process (sd_booted(3)).
const systemdDir = "/run/systemd/system"

// Booted tells whether systemd runs on this machine, and can make control groups.
func Booted() bool {
	_, err := os.Stat(systemdDir)
	return err == nil
}

// CheckScope returns an error unless name is a path for systemd: slice:prefix:name.
func CheckScope(name string) error {
	_, err := parseScope(name)
	return err
}

// isScope tells whether name is meant for systemd.
func isScope(name string) bool { return !path.IsAbs(name) && strings.Count(name, ":") == 2 }

// parseScope reads a path for systemd. Without a slice it is that of the system or, for an ordinary user, of users.
func parseScope(name string) (scope, error) {
	if !isScope(name) {
		return scope{}, fmt.Errorf("control group %q: want slice:prefix:name for systemd", name)
	}
	parts := strings.Split(name, ":")
	s := scope{slice: parts[0], unit: parts[1] + "-" + parts[2] + scopeSuffix}
	if parts[1] == "" {
		s.unit = parts[2] + scopeSuffix
	}
	if s.slice == "" {
		s.slice = systemSlice
		if hostUID() != 0 {
			s.slice = userSlice
		}
	}
	if parts[2] == "" || !unitName(s.unit) {
		return scope{}, fmt.Errorf("control group %q: %q cannot be the name of a unit of systemd", name, s.unit)
	}
	if _, err := slicePath(s.slice); err != nil {
		return scope{}, fmt.Errorf("control group %q: %w", name, err)
	}
	return s, nil
}

// unitName tells whether systemd takes a name.
func unitName(name string) bool {
	other := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(`:-_.\@`, r))
	}
	return len(name) <= maxUnit && strings.IndexFunc(name, other) < 0
}

// slicePath is the path of a slice's control group below systemd's own: a-b.slice is in a.slice (systemd.slice(5)).
func slicePath(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, sliceSuffix)
	if name == "-" && ok {
		return "/", nil
	}
	parts := strings.Split(name, "-")
	dir := "/"
	for i, part := range parts {
		if !ok || part == "" || !unitName(slice) {
			return "", fmt.Errorf("%q is no slice of systemd's", slice)
		}
		dir = path.Join(dir, strings.Join(parts[:i+1], "-")+sliceSuffix)
	}
	return dir, nil
}

// group is the path of the scope's control group below systemd's own.
func (s scope) group() string {
	dir, _ := slicePath(s.slice) // parseScope has checked it
	return path.Join(dir, s.unit)
}

// properties are the limits as systemd has them (systemd.resource-control(5), org.freedesktop.systemd1(5)): for a machine
// whose control groups are of version 2, or of version 1.
func (l Limits) properties(version2 bool) (all []property, err error) {
	add := func(name string, value any) { all = append(all, property{name, dbus.MakeVariant(value)}) }
	switch {
	case l.Shares > 0 && version2:
		add("CPUWeight", l.weight())
	case l.Shares > 0:
		add("CPUShares", l.Shares)
	}
	if l.Period > 0 {
		add("CPUQuotaPeriodUSec", l.Period)
	}
	if l.Quota != 0 {
		add("CPUQuotaPerSecUSec", l.quotaPerSecond())
	}
	if l.PIDs != 0 {
		most := unlimited
		if l.PIDs > 0 {
			most = uint64(l.PIDs)
		}
		add("TasksMax", most)
	}
	if !version2 {
		return all, nil // of processors and memory nodes systemd knows in version 2 alone
	}
	for _, set := range []struct{ name, list string }{{"AllowedCPUs", l.CPUs}, {"AllowedMemoryNodes", l.Mems}} {
		if set.list == "" {
			continue
		}
		mask, err := maskOf(set.list)
		if err != nil {
			return nil, fmt.Errorf("limit control group: %w", err)
		}
		add(set.name, mask)
	}
	return all, nil
}

// usualPeriod is the Period where none is given, in microseconds.
const usualPeriod = 100_000

// quotaPerSecond is the processor time in microseconds for each second, a multiple of a percent as systemd counts.
func (l Limits) quotaPerSecond() uint64 {
	if l.Quota < 0 {
		return unlimited
	}
	period := l.Period
	if period == 0 {
		period = usualPeriod
	}
	quota := uint64(l.Quota) * microsPerSecond / period
	return (quota + microsPerPercent - 1) / microsPerPercent * microsPerPercent
}

// maxNumber bounds the numbers of processors and memory nodes: the kernel knows fewer.
const maxNumber = 1 << 16

// maskOf is a list of numbers and ranges (cpuset(7)) as bits, the lowest in the first byte.
func maskOf(list string) ([]byte, error) {
	var mask []byte
	for _, part := range strings.Split(strings.TrimSpace(list), ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			high = low
		}
		from, err := strconv.ParseUint(low, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%q is no list of numbers: %w", list, err)
		}
		to, err := strconv.ParseUint(high, 10, 32)
		if err != nil || to < from || to >= maxNumber {
			return nil, fmt.Errorf("%q is no list of numbers", list)
		}
		for n := from; n <= to; n++ {
			for uint64(len(mask)) <= n/8 {
				mask = append(mask, 0)
			}
			mask[n/8] |= 1 << (n % 8)
		}
	}
	return mask, nil
}
