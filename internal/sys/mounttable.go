package sys

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// MountPoint is a line of the mount table (proc(5), /proc/pid/mountinfo).
type MountPoint struct {
	Device string // of the file system, as major:minor
	Root   string // the part of the file system that is mounted
	Path   string
	Type   string
}

// MountTable lists what is mounted as this thread sees it.
func MountTable() ([]MountPoint, error) {
	table, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("look at mounts: %w", err)
	}
	defer table.Close()
	var all []MountPoint
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		mount, rest, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(mount), strings.Fields(rest)
		if len(fields) < 5 || len(kind) == 0 {
			continue
		}
		all = append(all, MountPoint{Device: fields[2], Root: Unescape(fields[3]), Path: Unescape(fields[4]), Type: kind[0]})
	}
	return all, lines.Err()
}

// Unescape undoes mountinfo's octal escapes of space, tab, newline and backslash.
func Unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// MountsBelow tells whether anything is mounted below the directory path, which has no symlinks, as this thread sees it.
func MountsBelow(path string) (bool, error) {
	all, err := MountTable()
	for _, m := range all {
		if strings.HasPrefix(m.Path, strings.TrimSuffix(path, "/")+"/") {
			return true, nil
		}
	}
	return false, err
}

// FollowMounts calls changed, from one goroutine, whenever something was mounted or unmounted in this thread's mount namespace,
// until stop is called, which waits for it.
func FollowMounts(changed func()) (stop func(), err error) {
	// Not by os.Open: Go's poller would take its events, of which each is told once.
	table, err := unix.Open("/proc/thread-self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("look at mounts: %w", err)
	}
	wake, end, err := os.Pipe()
	if err != nil {
		unix.Close(table)
		return nil, fmt.Errorf("follow mounts: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer runtime.KeepAlive(end) // also for who never stops it
		defer wake.Close()
		defer unix.Close(table)
		for {
			fds := []unix.PollFd{{Fd: int32(table), Events: unix.POLLPRI}, {Fd: int32(wake.Fd()), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR || fds[1].Revents != 0 {
				return
			}
			if fds[0].Revents != 0 {
				changed()
			}
		}
	}()
	return func() { end.Close(); <-ended }, nil
}
