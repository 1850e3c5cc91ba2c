package sys

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ModuleList names the kernel modules that a guest loads when it boots, one path a line, in order. A kernel that has
// everything built in has no list.
const ModuleList = "/lib/modules/husk-modules"

// LoadModules loads what ModuleList names.
func LoadModules() error {
	list, err := os.ReadFile(ModuleList)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	for path := range strings.Lines(string(list)) {
		path = strings.TrimSpace(path)
		if path == "" || strings.HasPrefix(path, "#") {
			continue
		}
		if err := loadModule(path); err != nil {
			return err
		}
	}
	return nil
}

// loadModule loads an uncompressed kernel module. One that is loaded already is no error.
func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("load module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", path, err)
	}
	return nil
}

// LinkUp sets the network interface up.
func LinkUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// Uptime returns how long ago the kernel started, by its own clock.
func Uptime() time.Duration {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return 0
	}
	return time.Duration(now.Nano())
}

// SyncFS writes everything that is dirty in the file system of path to where it is kept.
func SyncFS(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// PollHangup tells whether the other side of f is not there (POLLHUP, poll(2)).
func PollHangup(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return true
	}
	up := false
	_ = raw.Control(func(fd uintptr) { // fails on a closed file: no other side either
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
		_, err := unix.Poll(fds, 0)
		up = err == nil && fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) == 0
	})
	return !up
}

// SlewClock corrects the clock by the offset, at most about 2,000 s, by letting it run a little faster or
// slower for a while (adjtime(3)).
func SlewClock(offset time.Duration) error {
	change := unix.Timex{Modes: unix.ADJ_OFFSET | unix.ADJ_OFFSET_SINGLESHOT, Offset: offset.Microseconds()}
	if _, err := unix.Adjtimex(&change); err != nil {
		return fmt.Errorf("slew clock: %w", err)
	}
	return nil
}
