// Package cgroup reads and controls the cgroup v2 groups of containers, see cgroups(7) and the kernel's
// cgroup-v2 document.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// maxFile bounds what is read of one file, in bytes.
	maxFile = 1 << 20
	// maxPids bounds the processes of one group that are looked at.
	maxPids = 1 << 16
)

// Group is one cgroup, named by its directory. The zero value has no directory, and each call on it
// returns ErrNone.
type Group struct{ Dir string }

// ErrNone is matched by the errors of groups that do not exist.
var ErrNone = errors.New("no cgroup")

// read returns the content of one of the group's files.
func (g Group) read(name string) (string, error) {
	if g.Dir == "" {
		return "", fmt.Errorf("read %s: %w", name, ErrNone)
	}
	f, err := os.Open(filepath.Join(g.Dir, name))
	if err != nil {
		return "", none(err)
	}
	defer f.Close()
	var text strings.Builder
	buf := make([]byte, 4096)
	for text.Len() < maxFile {
		n, err := f.Read(buf)
		text.Write(buf[:n])
		if n == 0 || err != nil {
			break // kernfs gives an error at the first read or never
		}
	}
	return text.String(), nil
}

func (g Group) write(name, value string) error {
	if g.Dir == "" {
		return fmt.Errorf("write %s: %w", name, ErrNone)
	}
	f, err := os.OpenFile(filepath.Join(g.Dir, name), os.O_WRONLY, 0)
	if err != nil {
		return none(err)
	}
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return none(err)
	}
	return nil
}

func none(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("%w: %w", ErrNone, err)
	}
	return err
}

// Pids returns the processes of the group and of the groups below it, as the reader's PID namespace
// numbers them.
func (g Group) Pids() ([]int, error) {
	if g.Dir == "" {
		return nil, fmt.Errorf("list processes: %w", ErrNone)
	}
	var pids []int
	err := filepath.WalkDir(g.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if path != g.Dir && errors.Is(err, fs.ErrNotExist) {
				return nil // a group below was removed meanwhile
			}
			return none(err)
		}
		if !d.IsDir() {
			return nil
		}
		text, err := Group{Dir: path}.read("cgroup.procs")
		if err != nil {
			if path != g.Dir {
				return nil
			}
			return err
		}
		pids = append(pids, parsePids(text)...)
		if len(pids) > maxPids {
			return fmt.Errorf("more than %d processes", maxPids)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	return pids, nil
}

// parsePids reads cgroup.procs. A process of another PID namespace is 0 there, and left out.
func parsePids(text string) []int {
	var pids []int
	for _, line := range strings.Fields(text) {
		if pid, err := strconv.Atoi(line); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Kill sends SIGKILL to every process of the group and below, forks in progress included.
func (g Group) Kill() error {
	if err := g.write("cgroup.kill", "1"); err != nil {
		return fmt.Errorf("kill cgroup: %w", err)
	}
	return nil
}

// Freeze stops every process of the group, or with frozen false lets them go on, and waits until the
// kernel says that it is done.
func (g Group) Freeze(ctx context.Context, frozen bool) error {
	value, verb := "0", "thaw"
	if frozen {
		value, verb = "1", "freeze"
	}
	if err := g.write("cgroup.freeze", value); err != nil {
		return fmt.Errorf("%s cgroup: %w", verb, err)
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		text, err := g.read("cgroup.events")
		if err != nil {
			return fmt.Errorf("%s cgroup: %w", verb, err)
		}
		if parseFlat(text)["frozen"] == parseNumber(value) {
			return nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			if frozen {
				_ = g.write("cgroup.freeze", "0") // half frozen is worse; the caller learns of the failure
			}
			return fmt.Errorf("%s cgroup: %w", verb, ctx.Err())
		}
	}
}

// OOMKills returns how many processes of the group and below were killed for want of memory.
func (g Group) OOMKills() (uint64, error) {
	text, err := g.read("memory.events")
	if err != nil {
		return 0, fmt.Errorf("read OOM kills: %w", err)
	}
	return parseFlat(text)["oom_kill"], nil
}

// Remove removes the group and the groups below it. It kills what is left in them, and waits a while for
// it to be gone.
func (g Group) Remove(ctx context.Context) error {
	if g.Dir == "" {
		return nil
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := removeTree(g.Dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		_ = g.Kill() // what is busy has processes; the next try tells
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
}

// removeTree removes the directories of dir from the bottom up. Their files cannot and need not be removed.
func removeTree(dir string) error {
	if err := syscall.Rmdir(dir); err == nil || err == syscall.ENOENT {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := syscall.Rmdir(dir); err != nil {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}
