package sys

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// gather is for how long changes of a directory become one.
const gather = 10 * time.Millisecond

// FollowDir calls changed, from one goroutine, after names in an open directory have changed (inotify(7)), until stop is
// called, which waits for it. Several changes at once may be one call.
func FollowDir(dir *os.File, changed func()) (stop func(), err error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("follow %s: %w", dir.Name(), err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	_, err = unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()),
		unix.IN_CREATE|unix.IN_DELETE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO|unix.IN_CLOSE_WRITE|unix.IN_ATTRIB|unix.IN_ONLYDIR)
	if err != nil {
		events.Close()
		return nil, fmt.Errorf("follow %s: %w", dir.Name(), err)
	}
	raw, err := events.SyscallConn()
	if err != nil {
		events.Close()
		return nil, fmt.Errorf("follow %s: %w", dir.Name(), err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buffer := make([]byte, 16<<10)
		for {
			if _, err := events.Read(buffer); err != nil {
				return // closed
			}
			time.Sleep(gather)
			_ = raw.Read(func(fd uintptr) bool { // what has come meanwhile
				for n := 1; n > 0; {
					n, _ = unix.Read(int(fd), buffer) // -1 where there is nothing
				}
				return true
			})
			changed()
		}
	}()
	return func() { events.Close(); <-ended }, nil
}

// Ownership is the st_mode of a file, with its type, and whose it is.
func Ownership(info fs.FileInfo) (mode, uid, gid uint32) {
	st := info.Sys().(*syscall.Stat_t)
	return st.Mode, st.Uid, st.Gid
}
