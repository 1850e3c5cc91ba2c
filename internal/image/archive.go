package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
)

// Bounds of an archive of images.
const (
	maxArchiveEntries = 100_000
	maxArchiveLinks   = 8
)

// tarFiles are the files in a tar that can be read at any place: an index of where each one's bytes lie.
type tarFiles struct {
	file  *os.File
	index map[string]tarEntry
}

type tarEntry struct {
	offset, size int64
	link         string // the target, where the entry is a link; old docker archives name equal layers so
}

// indexTar reads the headers of a tar. f must stay open while the result is used.
func indexTar(f *os.File) (*tarFiles, error) {
	t := &tarFiles{file: f, index: map[string]tarEntry{}}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	tr := tar.NewReader(f)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: read archive: %w", ErrNotImage, err)
		}
		if len(t.index) >= maxArchiveEntries {
			return nil, fmt.Errorf("%w: the archive has more than %d entries", ErrTooLarge, maxArchiveEntries)
		}
		name := path.Clean(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			// The reader does not buffer, so the file's position is where the entry's bytes begin.
			offset, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			t.index[name] = tarEntry{offset: offset, size: hdr.Size}
		case tar.TypeSymlink:
			t.index[name] = tarEntry{link: path.Join(path.Dir(name), hdr.Linkname)}
		case tar.TypeLink:
			t.index[name] = tarEntry{link: path.Clean(hdr.Linkname)}
		}
	}
}

func (t *tarFiles) open(name string) (io.ReadCloser, error) {
	e, err := t.find(name)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(io.NewSectionReader(t.file, e.offset, e.size)), nil
}

// size is the length of an entry in bytes, -1 where there is none.
func (t *tarFiles) size(name string) int64 {
	e, err := t.find(name)
	if err != nil {
		return -1
	}
	return e.size
}

func (t *tarFiles) has(name string) bool {
	_, err := t.find(name)
	return err == nil
}

// find looks up an entry through links.
func (t *tarFiles) find(name string) (tarEntry, error) {
	name = path.Clean(name)
	for range maxArchiveLinks {
		e, ok := t.index[name]
		if !ok {
			return e, &fs.PathError{Op: "open in archive", Path: name, Err: fs.ErrNotExist}
		}
		if e.link == "" {
			return e, nil
		}
		name = e.link
	}
	return tarEntry{}, &fs.PathError{Op: "open in archive", Path: name, Err: errors.New("too many links")}
}

// openArchive makes the tar at path, or that comes from r where path is empty, readable at any place. A
// stream or a compressed tar is spooled to the work directory first, up to limit bytes.
func openArchive(w *work, path string, r io.Reader, limit int64) (*tarFiles, error) {
	if path != "" {
		f, err := openRegular(path)
		if err != nil {
			return nil, fmt.Errorf("open archive: %w", err)
		}
		plain, err := isPlain(f)
		if err == nil && plain {
			return indexOrClose(f)
		}
		defer f.Close()
		if err != nil {
			return nil, fmt.Errorf("read archive %s: %w", path, err)
		}
		r = f
	}
	spool, err := os.CreateTemp(w.dir, "archive-")
	if err != nil {
		return nil, fmt.Errorf("spool archive: %w", err)
	}
	d, err := Decompress(r)
	if err == nil {
		defer d.Close()
		_, err = io.Copy(spool, &boundedReader{r: d, left: limit})
	}
	if err != nil {
		_ = spool.Close()
		return nil, fmt.Errorf("read archive: %w", err)
	}
	return indexOrClose(spool)
}

func indexOrClose(f *os.File) (*tarFiles, error) {
	t, err := indexTar(f)
	if err != nil {
		_ = f.Close()
	}
	return t, err
}

func (t *tarFiles) close() error { return t.file.Close() }
