package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// CloneFile makes target share all blocks of source, without copying any. Where the file system cannot
// do that the error matches errors.ErrUnsupported or EXDEV or EINVAL.
func CloneFile(target, source *os.File) error {
	if err := unix.IoctlFileClone(int(target.Fd()), int(source.Fd())); err != nil {
		return fmt.Errorf("clone %s: %w", source.Name(), err)
	}
	return nil
}

// Whences of os.File.Seek that find the data in a sparse file, see lseek(2).
const (
	SeekData = unix.SEEK_DATA
	SeekHole = unix.SEEK_HOLE
)
