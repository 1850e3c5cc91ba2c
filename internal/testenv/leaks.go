package testenv

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// leakGrace is how long what was told to end may take to be gone. It bounds a wait, it is no promise.
const leakGrace = 5 * time.Second

// Leaks notes what is there before a test and fails the test for what is left after it: descendants of
// the test's process, mounts, and files below dirs. The test's process must be a subreaper
// (sys.BecomeSubreaper), so that no process gets out of sight by losing its parent. Tests that use it
// must not run in parallel.
func Leaks(t testing.TB, dirs ...string) {
	t.Helper()
	mounts := mountPoints(t)
	files := filesBelow(t, dirs)
	children := map[int]bool{}
	for _, pid := range descendants(os.Getpid()) {
		children[pid] = true
	}
	t.Cleanup(func() {
		var left []string
		for end := time.Now().Add(leakGrace); ; time.Sleep(20 * time.Millisecond) {
			left = leftProcesses(children)
			left = append(left, added("mount", mounts, mountPoints(t))...)
			left = append(left, added("file", files, filesBelow(t, dirs))...)
			if len(left) == 0 || time.Now().After(end) {
				break
			}
		}
		for _, l := range left {
			t.Errorf("left behind: %s", l)
		}
	})
}

// leftProcesses names the descendants that were not there before, and reaps those that only wait for that.
func leftProcesses(before map[int]bool) (left []string) {
	for _, pid := range descendants(os.Getpid()) {
		if before[pid] {
			continue
		}
		var status syscall.WaitStatus
		if got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil); err == nil && got == pid {
			continue
		}
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		left = append(left, fmt.Sprintf("process %d: %.300s", pid, strings.ReplaceAll(string(line), "\x00", " ")))
	}
	return left
}

// descendants returns the ids of all processes below pid, by the parents that /proc names.
func descendants(pid int) (found []int) {
	below := map[int][]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			below[parent] = append(below[parent], child)
		}
	}
	for next := below[pid]; len(next) > 0; next = next[1:] {
		found = append(found, next[0])
		next = append(next, below[next[0]]...)
	}
	return found
}

func mountPoints(t testing.TB) map[string]bool {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	points := map[string]bool{}
	for _, line := range strings.Split(string(data), "\n") {
		if fields := strings.Fields(line); len(fields) > 4 {
			points[fields[0]+" "+fields[4]] = true
		}
	}
	return points
}

func filesBelow(t testing.TB, dirs []string) map[string]bool {
	t.Helper()
	files := map[string]bool{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err == nil && path != dir {
				files[path] = true
			}
			return nil // what vanishes meanwhile is not left
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func added(what string, before, after map[string]bool) (left []string) {
	for name := range after {
		if !before[name] {
			left = append(left, what+" "+name)
		}
	}
	return left
}
