package sys

import (
	"errors"
	"fmt"
	"io"
	"iter"
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
	for part, err := range DataParts(source, info.Size()) {
		if err != nil {
			return err
		}
		if _, err := target.Seek(part.Offset, io.SeekStart); err != nil {
			return err
		}
		if _, err := source.Seek(part.Offset, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(target, source, part.Length); err != nil {
			return err
		}
	}
	return nil
}

// Part is a piece of a file, in bytes.
type Part struct{ Offset, Length int64 }

// DataParts yields in order the parts of the first size bytes of a file that hold data; between them are holes, which read as
// zeros (lseek(2)). It moves the file's offset.
func DataParts(f *os.File, size int64) iter.Seq2[Part, error] {
	return func(yield func(Part, error) bool) {
		for offset := int64(0); offset < size; {
			start, err := f.Seek(offset, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) { // only a hole is left
				return
			}
			if err != nil {
				yield(Part{}, err)
				return
			}
			end, err := f.Seek(start, unix.SEEK_HOLE)
			if err != nil {
				yield(Part{}, err)
				return
			}
			if start >= size || !yield(Part{start, min(end, size) - start}, nil) {
				return
			}
			offset = end
		}
	}
}
