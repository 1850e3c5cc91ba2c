package hostcgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
)

// Limits are what a group's processes may use of the host. What is zero or empty is left as it is.
type Limits struct {
	Shares uint64 // weight of processor time, in version 1's unit: 1024 is usual
	Quota  int64  // microseconds of processor time in each Period; negative: any
	Period uint64 // microseconds
	CPUs   string // processors, as cpuset(7) lists them
	Mems   string // memory nodes
	PIDs   int64  // processes and threads; negative: any
}

// setting is a file of a group and what is written to it.
type setting struct{ file, value string }

// Limit sets limits of a group that this process has joined. A hierarchy that does not have a limit is passed over;
// processors and memory nodes must be set in one. A nil Group is no group.
func (g *Group) Limit(l Limits) error {
	if g == nil {
		return nil
	}
	if err := g.limitScope(l); err != nil {
		return err
	}
	for name, value := range map[string]string{"cpuset.cpus": l.CPUs, "cpuset.mems": l.Mems} {
		if err := g.set(setting{name, value}); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the host's control groups cannot set %s", name)
		} else if err != nil {
			return err
		}
	}
	for _, s := range append(l.version1(), l.version2()...) {
		if err := g.set(s); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// limitScope tells systemd of the limits of its scope: it writes its own over what it was not told of. Not all limits are its.
func (g *Group) limitScope(l Limits) error {
	if (g.scope == scope{}) {
		return nil
	}
	properties, err := l.properties(slices.ContainsFunc(g.hierarchies, func(h hierarchy) bool { return h.unified && !h.bare }))
	if err != nil || len(properties) == 0 {
		return err
	}
	return withManager(func(ctx context.Context, m *manager) error { return m.set(ctx, g.scope, properties) })
}

func (l Limits) version1() (all []setting) {
	if l.Shares > 0 {
		all = append(all, setting{"cpu.shares", strconv.FormatUint(l.Shares, 10)})
	}
	if l.Period > 0 {
		all = append(all, setting{"cpu.cfs_period_us", strconv.FormatUint(l.Period, 10)})
	}
	if l.Quota != 0 {
		all = append(all, setting{"cpu.cfs_quota_us", strconv.FormatInt(max(l.Quota, -1), 10)})
	}
	if l.PIDs != 0 {
		all = append(all, setting{"pids.max", most(l.PIDs)})
	}
	return all
}

// weight is Shares in version 2's unit: from 2..262144 to 1..10000, as the systems that came with version 2 do it.
func (l Limits) weight() uint64 {
	shares := min(max(l.Shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

// version2 translates; pids.max is the same in both versions, and in version1.
func (l Limits) version2() (all []setting) {
	if l.Shares > 0 {
		all = append(all, setting{"cpu.weight", strconv.FormatUint(l.weight(), 10)})
	}
	if l.Quota != 0 || l.Period > 0 {
		value := "max"
		if l.Quota > 0 {
			value = strconv.FormatInt(l.Quota, 10)
		}
		if l.Period > 0 {
			value += " " + strconv.FormatUint(l.Period, 10)
		}
		all = append(all, setting{"cpu.max", value})
	}
	return all
}

// most is a limit of numbers as the kernel writes it.
func most(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// set writes a setting wherever there is a file of that name; where there is none the error is fs.ErrNotExist.
func (g *Group) set(s setting) error {
	if s.value == "" {
		return nil
	}
	missing := error(&fs.PathError{Op: "find", Path: s.file, Err: fs.ErrNotExist})
	for _, h := range g.hierarchies {
		err := write(filepath.Join(h.dir, g.path, s.file), s.value)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("limit control group: set %s to %q: %w", s.file, s.value, err)
		}
		missing = nil
	}
	return missing
}
