package sys

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// SocketAt calls use with a name of the unix socket at path that fits into a socket's address (108 bytes, unix(7)),
// however deep its directory lies. The name is good until use returns.
func SocketAt(path string, use func(short string) error) error {
	dir, err := os.OpenFile(filepath.Dir(path), syscall.O_DIRECTORY|os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return use(filepath.Join("/proc/self/fd", strconv.Itoa(int(dir.Fd())), filepath.Base(path)))
}
