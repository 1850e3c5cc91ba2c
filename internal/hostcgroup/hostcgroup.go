// Package hostcgroup puts the host's processes of a sandbox into the control group that an engine names, where the
// engine looks for what the container uses.
package hostcgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"husk.dev/husk/internal/sys"
)

// hierarchy is one tree of control groups: one of version 1, or the one of version 2 (cgroups(7)).
type hierarchy struct {
	dir     string // where its root is mounted
	unified bool
	cpuset  bool   // a version 1 hierarchy with the controller cpuset
	bare    bool   // counts nothing: the ones that systemd finds processes by, where controllers are elsewhere
	own     string // this process' group, a path below dir
}

// Group is a control group that this process has joined, in every hierarchy of the host.
type Group struct {
	path        string
	hierarchies []hierarchy
	scope       scope // of systemd's that it is; empty for none
}

// Usable tells whether name is a path that Join takes, as engines write it: one of a file system, where relative ones
// start at the root of each hierarchy too, or slice:prefix:name where systemd runs, which makes a scope then.
func Usable(name string) bool {
	if isScope(name) {
		return CheckScope(name) == nil && Booted()
	}
	return clean(name) != "/" && !strings.ContainsAny(name, "\x00\n")
}

// clean is the path below a hierarchy's mount point that name stands for.
func clean(name string) string { return path.Clean("/" + name) }

// Join makes the control group name where it is missing, in every hierarchy, and moves this process and others there.
// What they start later is in it too. Limits are set by Limit alone. An error leaves nothing of the group that Join made, and
// the processes where they were.
func Join(name string, others ...int) (*Group, error) {
	return place(name, append([]int{os.Getpid()}, others...))
}

// Place is Join without this process.
func Place(name string, pids ...int) error {
	_, err := place(name, pids)
	return err
}

func place(name string, pids []int) (*Group, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find control groups: %w", err)
	}
	all := hierarchies(string(mounts), string(own))
	if isScope(name) {
		return joinScope(name, all, pids)
	}
	return join(name, counting(all), pids)
}

// joinScope has systemd make a scope of processes. It moves them in the hierarchies that are its own; the
// others of version 1 get a group of the same path.
func joinScope(name string, all []hierarchy, pids []int) (*Group, error) {
	s, err := parseScope(name)
	if err != nil {
		return nil, err
	}
	g := &Group{scope: s, hierarchies: all}
	err = withManager(func(ctx context.Context, m *manager) error {
		g.path = m.path(s)
		return m.start(ctx, s, pids)
	})
	if err != nil {
		return nil, err
	}
	old := slices.DeleteFunc(counting(all), func(h hierarchy) bool { return h.unified })
	if len(old) > 0 {
		if _, err := join(g.path, old, pids); err != nil {
			_ = errors.Join(g.Leave(), g.Remove()) // the error that led here is the one to tell
			return nil, err
		}
	}
	return g, nil
}

func join(name string, all []hierarchy, pids []int) (_ *Group, err error) {
	if !Usable(name) {
		return nil, fmt.Errorf("control group %q: not a path", name)
	}
	if len(all) == 0 {
		return nil, errors.New("no control groups are mounted")
	}
	g := &Group{path: clean(name)}
	defer func() {
		if err != nil {
			_ = errors.Join(g.Leave(), g.Remove()) // the error that led here is the one to tell
		}
	}()
	for _, h := range all {
		g.hierarchies = append(g.hierarchies, h)
		if err := h.make(g.path); err != nil {
			return nil, fmt.Errorf("make control group: %w", err)
		}
		for _, pid := range pids {
			if err := enter(filepath.Join(h.dir, g.path), pid); err != nil {
				return nil, fmt.Errorf("join control group: %w", err)
			}
		}
	}
	return g, nil
}

// Leave moves this process back to where it was before Join.
func (g *Group) Leave() error {
	var errs []error
	for _, h := range g.hierarchies {
		errs = append(errs, enter(filepath.Join(h.dir, h.own), os.Getpid()))
	}
	return errors.Join(errs...)
}

// Outside calls f while this process is back where it was before Join, for what f starts and is to outlive the
// group. A nil Group is no group.
func (g *Group) Outside(f func() error) error {
	if g == nil {
		return f()
	}
	if err := g.Leave(); err != nil {
		return fmt.Errorf("leave control group: %w", err)
	}
	err := f()
	for _, h := range g.hierarchies {
		err = errors.Join(err, enter(filepath.Join(h.dir, g.path), os.Getpid()))
	}
	return err
}

// Remove is the function Remove for a group that this process has left.
func (g *Group) Remove() error {
	switch {
	case g == nil:
		return nil
	case g.scope != scope{}:
		return removeScope(g.scope, g.hierarchies)
	}
	return remove(g.path, g.hierarchies)
}

const (
	// dyingWait bounds the wait for processes to leave a group that are ending.
	dyingWait  = time.Second
	dyingCheck = 10 * time.Millisecond
)

// Remove removes the control group name from every hierarchy, once its processes have gone; the groups above it
// stay, they are the engine's. It ends no process: a group that is still in use after a second is an error.
// One that does not exist is none.
func Remove(name string) error {
	if !Usable(name) {
		return nil
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("find control groups: %w", err)
	}
	all := hierarchies(string(mounts), "")
	if isScope(name) {
		s, err := parseScope(name)
		if err != nil {
			return err
		}
		return removeScope(s, all)
	}
	return remove(clean(name), counting(all))
}

// removeScope has systemd remove a scope that nothing is in any more.
func removeScope(s scope, all []hierarchy) error {
	return withManager(func(ctx context.Context, m *manager) error {
		name := m.path(s)
		for end := time.Now().Add(dyingWait); ; time.Sleep(dyingCheck) {
			inside := slices.ContainsFunc(all, func(h hierarchy) bool {
				procs, err := os.ReadFile(filepath.Join(h.dir, name, "cgroup.procs"))
				return err == nil && len(procs) > 0
			})
			if !inside {
				break
			}
			if time.Now().After(end) { // systemd would end them
				return fmt.Errorf("remove control group %s: there are processes in it", name)
			}
		}
		return errors.Join(m.stop(ctx, s), remove(name, all))
	})
}

func remove(name string, all []hierarchy) error {
	var errs []error
	end := time.Now().Add(dyingWait)
	for _, h := range all {
		dir := filepath.Join(h.dir, name)
		err := syscall.Rmdir(dir)
		for errors.Is(err, syscall.EBUSY) && time.Now().Before(end) {
			time.Sleep(dyingCheck)
			err = syscall.Rmdir(dir)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.EROFS) {
			errs = append(errs, fmt.Errorf("remove control group %s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// enter moves a process, with all its threads, into the group dir.
func enter(dir string, pid int) error {
	return write(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid))
}

// write writes to a file of the kernel's and never makes one.
func write(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// make makes the group name and those above it.
func (h hierarchy) make(name string) error {
	dir := h.dir
	for _, part := range strings.Split(strings.Trim(name, "/"), "/") {
		parent := dir
		dir = filepath.Join(dir, part)
		if h.unified {
			h.delegate(parent)
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if h.cpuset {
			if err := inherit(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// delegate has the groups below parent account for what their processes use. A controller that the host does not
// give out is not counted: that is what its statistics lack, and no reason not to start.
func (hierarchy) delegate(parent string) {
	controllers, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, c := range strings.Fields(string(controllers)) {
		_ = write(filepath.Join(parent, "cgroup.subtree_control"), "+"+c)
	}
}

// inherit gives a group of the version 1 controller cpuset what its parent has: without, it takes no process.
func inherit(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(have)) != "" {
			continue
		}
		above, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := write(filepath.Join(dir, name), strings.TrimSpace(string(above))); err != nil {
			return err
		}
	}
	return nil
}

// hierarchies reads /proc/PID/mountinfo and /proc/PID/cgroup (proc(5), cgroups(7)). Mounts that show a part of
// a hierarchy are left out: a path in them would be another group. So are hierarchies with names but systemd's.
func hierarchies(mounts, own string) (found []hierarchy) {
	seen, hybrid := map[string]bool{}, false
	for _, line := range strings.Split(mounts, "\n") {
		mount, rest, ok := strings.Cut(line, " - ")
		fields, super := strings.Fields(mount), strings.Fields(rest)
		if !ok || len(fields) < 5 || len(super) < 3 || fields[3] != "/" || seen[fields[2]] {
			continue
		}
		options := strings.Split(super[2], ",")
		h := hierarchy{dir: sys.Unescape(fields[4])}
		switch super[0] {
		case "cgroup2":
			h.unified = true
		case "cgroup":
			h.cpuset = slices.Contains(options, "cpuset")
			h.bare = slices.Contains(options, systemdHierarchy)
			if !h.bare && named(options) {
				continue
			}
			hybrid = hybrid || !h.bare
		default:
			continue
		}
		seen[fields[2]] = true // a hierarchy may be mounted twice; its device number is the same
		h.own = ownGroup(own, options, h.unified)
		found = append(found, h)
	}
	for i := range found {
		found[i].bare = found[i].bare || found[i].unified && hybrid
	}
	return found
}

// counting leaves the hierarchies in which groups have controllers.
func counting(all []hierarchy) []hierarchy {
	return slices.DeleteFunc(slices.Clone(all), func(h hierarchy) bool { return h.bare })
}

// systemdHierarchy is the option of the version 1 hierarchy that systemd has for itself.
const systemdHierarchy = "name=systemd"

// named tells whether a version 1 hierarchy has a name, and so no controllers.
func named(options []string) bool {
	return slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "name=") })
}

// ownGroup finds the group of a process in the hierarchy that is mounted with options.
func ownGroup(own string, options []string, unified bool) string {
	for _, line := range strings.Split(own, "\n") {
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 {
			continue
		}
		first, _, _ := strings.Cut(parts[1], ",") // or the name
		if unified && parts[0] == "0" || !unified && first != "" && slices.Contains(options, first) {
			return parts[2]
		}
	}
	return "/"
}
