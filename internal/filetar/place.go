package filetar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"husk.dev/husk/internal/sys"
)

// Named is what a path to copy from or to says by its form, before anyone has looked at what is there.
type Named struct {
	Path string
	// Directory: it ends in "/" or "/.", and so has to be a directory.
	Directory bool
	// Contents: it ends in ".", "..", or is the root, so that what is copied from it are its contents and it has no name there.
	Contents bool
}

// Name takes the form of a path apart.
func Name(given string) Named {
	base := path.Base(strings.TrimRight(given, "/"))
	contents := base == "." || base == ".." || strings.Trim(given, "/") == ""
	return Named{Path: given, Directory: contents || strings.HasSuffix(given, "/"), Contents: contents}
}

// First is the first element of the names in a stream of what is copied from the path.
func (n Named) First() string {
	if n.Contents {
		return Self
	}
	return path.Base(n.Path)
}

// FindSource finds what is copied from a path below root. A symlink at its end is itself what is copied, unless follow is set
// or the path says that it is a directory. The caller closes Dir.
func FindSource(root *os.File, n Named, follow bool) (*Source, fs.FileInfo, error) {
	spot, err := sys.FindSpot(root, n.Path, follow || n.Directory)
	if err != nil {
		return nil, nil, plain(err)
	}
	err = nil
	switch {
	case spot.Info == nil:
		err = syscall.ENOENT
	case n.Directory && !spot.Info.IsDir():
		err = syscall.ENOTDIR
	default:
		err = refuseKernels(spot)
	}
	if err != nil {
		spot.Close()
		return nil, nil, plain(err)
	}
	return &Source{Dir: spot.Dir, Name: spot.Name, As: n.First()}, spot.Info, nil
}

// refuseKernels refuses the files in which the kernel tells of itself: their size says nothing.
func refuseKernels(spot *sys.Spot) error {
	dir, err := spot.Dir.Open(Self)
	if err != nil {
		return err
	}
	defer dir.Close()
	if is, err := sys.OfKernel(dir); err != nil || !is {
		return err
	}
	return errors.New("it is in a file system that shows what the kernel says (/proc, /sys), not in one of files")
}

// FindTarget finds where a stream is unpacked to, as docker cp does: what comes goes into a directory that exists; a file takes
// the place of a file; else what comes gets the last element of the path as its name, in a directory that exists. directory
// says that a directory comes, first is the first element of the stream's names. The caller closes Dir.
func FindTarget(root *os.File, n Named, directory bool, first string) (*Target, error) {
	spot, err := sys.FindSpot(root, n.Path, true)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the directory %q does not exist", path.Dir(strings.TrimRight(n.Path, "/")))
	}
	if err != nil {
		return nil, plain(err)
	}
	t, err := placeAt(spot, n, directory, first)
	if err != nil {
		spot.Close()
	}
	return t, err
}

func placeAt(spot *sys.Spot, n Named, directory bool, first string) (*Target, error) {
	t := &Target{Dir: spot.Dir, First: first, As: spot.Name}
	if spot.Info == nil {
		if n.Directory && !directory {
			return nil, errors.New("there is no such directory")
		}
		return t, nil
	}
	if spot.Info.IsDir() {
		into, err := spot.Dir.OpenRoot(spot.Name)
		if err != nil {
			return nil, plain(err)
		}
		spot.Close()
		t.Dir, t.As = into, first
		return t, nil
	}
	switch {
	case n.Directory:
		return nil, syscall.ENOTDIR
	case directory:
		return nil, errors.New("it is a file, which a directory does not replace")
	case !spot.Info.Mode().IsRegular():
		return nil, errors.New("it is neither a file nor a directory")
	}
	return t, nil
}

// Relay passes a stream on, whose names all begin with first: whoever unpacks it need not look for others. It tells how many
// bytes there were in files.
func Relay(w io.Writer, r *tar.Reader, first string) (bytes int64, err error) {
	out, buf := tar.NewWriter(w), make([]byte, buffer)
	check := &Target{First: first}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return bytes, out.Close()
		}
		if err != nil {
			return bytes, fmt.Errorf("read tar stream: %w", err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := check.check(h); err != nil {
			return bytes, err
		}
		if _, err := inStream(h.Name, first, false); err != nil {
			return bytes, err
		}
		if h.Typeflag == tar.TypeLink {
			if _, err := inStream(h.Linkname, first, false); err != nil {
				return bytes, err
			}
		}
		if err := out.WriteHeader(h); err != nil {
			return bytes, fmt.Errorf("write tar stream: %w", err)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{r}, buf)
		if bytes += n; err != nil {
			return bytes, fmt.Errorf("pass a tar stream on: %w", err)
		}
	}
}
