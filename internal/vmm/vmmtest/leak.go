package vmmtest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// CheckLeaks fails the test if it ends with open files or child processes that it did not begin with.
// Tests that use it must not run in parallel with others of their package.
func CheckLeaks(t testing.TB) {
	t.Helper()
	before := holdings()
	t.Cleanup(func() {
		var more []string
		// Files are closed and processes reaped a moment after the call that causes it.
		for range 200 {
			if more = grown(before, holdings()); len(more) == 0 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("left behind: %s", strings.Join(more, ", "))
	})
}

// holdings counts this process's open files and children by what they are.
func holdings() map[string]int {
	held := map[string]int{}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return held
	}
	for _, f := range files {
		target, err := os.Readlink("/proc/self/fd/" + f.Name())
		if err != nil {
			continue // the directory that was just read
		}
		// Numbers of sockets and pipes tell nothing, and Go's poller opens its own when it likes.
		target, _, _ = strings.Cut(target, ":[")
		if strings.HasPrefix(target, "anon_inode") && !strings.Contains(target, "pidfd") {
			continue
		}
		held["file "+target]++
	}
	for _, child := range children() {
		held["process "+child]++
	}
	return held
}

// children names the processes whose parent is this one, zombies too.
func children() []string {
	var names []string
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	self := strconv.Itoa(os.Getpid())
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		head, rest, _ := strings.Cut(string(text), ") ")
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == self {
			names = append(names, head+")")
		}
	}
	return names
}

func grown(before, after map[string]int) []string {
	var more []string
	for _, what := range slices.Sorted(maps.Keys(after)) {
		if n := after[what] - before[what]; n > 0 {
			more = append(more, fmt.Sprintf("%d x %s", n, what))
		}
	}
	return more
}
