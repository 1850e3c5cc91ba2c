package sys

import (
	"errors"
	"fmt"
	"io"
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

// CopySparse makes target as long as source and copies what holds data to the same places; holes stay holes
// (lseek(2)). target must be empty.
func CopySparse(target, source *os.File) error {
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if err := target.Truncate(info.Size()); err != nil {
		return err
	}
	for offset := int64(0); offset < info.Size(); {
		start, err := source.Seek(offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			return nil
		}
		if err != nil {
			return err
		}
		end, err := source.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := target.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := source.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(target, source, end-start); err != nil {
			return err
		}
		offset = end
	}
	return nil
}
