package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	erofs "github.com/erofs/go-erofs"
)

// maxSymlinks bounds the symbolic links that reading one file may follow, as the kernel does.
const maxSymlinks = 40

// view reads the files of stacked layers as overlayfs would show them, without mounting them. A nil view
// is empty.
type view struct {
	layers []fs.ReadLinkFS // the topmost first
	files  []*os.File
}

// openView opens EROFS files, the lowest first. Files of no length are layers that change nothing.
func openView(paths []string) (*view, error) {
	v := &view{}
	for i := len(paths) - 1; i >= 0; i-- {
		f, err := os.Open(paths[i])
		if err != nil {
			_ = v.close()
			return nil, fmt.Errorf("open layer: %w", err)
		}
		v.files = append(v.files, f)
		if fi, err := f.Stat(); err == nil && fi.Size() == 0 {
			continue
		}
		img, err := erofs.Open(f)
		if err != nil {
			_ = v.close()
			return nil, fmt.Errorf("%w: open layer %s: %w", ErrDamaged, paths[i], err)
		}
		layer, ok := img.(fs.ReadLinkFS)
		if !ok {
			_ = v.close()
			return nil, fmt.Errorf("open layer %s: its reader shows no symbolic links", paths[i])
		}
		v.layers = append(v.layers, layer)
	}
	return v, nil
}

func (v *view) close() error {
	var errs error
	for _, f := range v.files {
		errs = joinErrors(errs, f.Close())
	}
	v.files, v.layers = nil, nil
	return errs
}

// lookup returns what is at a path relative to "/". It follows no symbolic link.
func (v *view) lookup(rel string) (attributes, bool) {
	a, _, ok := v.find(rel)
	return a, ok
}

// find is lookup, with the layer in which the topmost of what is there lies.
func (v *view) find(rel string) (attributes, fs.ReadLinkFS, bool) {
	if v == nil || len(v.layers) == 0 {
		return attributes{}, nil, false
	}
	stack := v.layers // the layers in which the directory reached so far can be seen
	name := "."
	a, layer, stack := topmost(stack, name)
	if rel == "." {
		return a, layer, layer != nil
	}
	for part := range strings.SplitSeq(rel, "/") {
		if layer == nil || !a.isDir() {
			return attributes{}, nil, false
		}
		name = path.Join(name, part)
		a, layer, stack = topmost(stack, name)
	}
	return a, layer, layer != nil
}

// topmost finds name in the first layer that has it or hides it, and the layers that are merged there
// if it is a directory. The parent of name is a directory in all layers of the stack.
func topmost(stack []fs.ReadLinkFS, name string) (top attributes, in fs.ReadLinkFS, merged []fs.ReadLinkFS) {
	for _, layer := range stack {
		a, err := stat(layer, name)
		if err != nil {
			continue
		}
		if in != nil && !a.isDir() {
			break // hidden by the directory above
		}
		if a.isWhiteout() {
			break
		}
		if in == nil {
			top, in = a, layer
		}
		if !a.isDir() {
			break
		}
		merged = append(merged, layer)
		if a.xattrs[xattrOpaque] == "y" {
			break
		}
	}
	return top, in, merged
}

// stat reads the attributes of name in one layer.
func stat(layer fs.ReadLinkFS, name string) (attributes, error) {
	fi, err := layer.Lstat(name)
	if err != nil {
		return attributes{}, err
	}
	st, ok := fi.Sys().(*erofs.Stat)
	if !ok {
		return attributes{}, errors.New("no attributes")
	}
	return attributes{
		mode: unixMode(fi.Mode()), uid: int(st.UID), gid: int(st.GID),
		mtime: fi.ModTime(), xattrs: st.Xattrs, rdev: st.Rdev,
	}, nil
}

// unixMode is st_mode of a file mode.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, unix := range map[fs.FileMode]uint32{
		fs.ModeSetuid: syscall.S_ISUID, fs.ModeSetgid: syscall.S_ISGID, fs.ModeSticky: syscall.S_ISVTX,
	} {
		if m&bit != 0 {
			mode |= unix
		}
	}
	switch m.Type() {
	case 0:
		return mode | syscall.S_IFREG
	case fs.ModeDir:
		return mode | syscall.S_IFDIR
	case fs.ModeSymlink:
		return mode | syscall.S_IFLNK
	case fs.ModeDevice | fs.ModeCharDevice:
		return mode | syscall.S_IFCHR
	case fs.ModeDevice:
		return mode | syscall.S_IFBLK
	case fs.ModeNamedPipe:
		return mode | syscall.S_IFIFO
	case fs.ModeSocket:
		return mode | syscall.S_IFSOCK
	}
	return mode
}

// readFile reads a regular file, following symbolic links inside the view, up to limit bytes. The error
// matches fs.ErrNotExist where there is none.
func (v *view) readFile(name string, limit int64) ([]byte, error) {
	rest := strings.Split(path.Clean("/" + name)[1:], "/")
	at := "."
	for links := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		if rest[0] == ".." {
			next = path.Dir(at)
		}
		a, layer, ok := v.find(next)
		if !ok {
			return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
		}
		if a.mode&syscall.S_IFMT != syscall.S_IFLNK {
			at, rest = next, rest[1:]
			continue
		}
		if links++; links > maxSymlinks {
			return nil, &fs.PathError{Op: "read", Path: name, Err: syscall.ELOOP}
		}
		target, err := layer.ReadLink(next)
		if err != nil {
			return nil, err
		}
		if path.IsAbs(target) {
			at = "."
		}
		rest = append(components(target), rest[1:]...)
	}
	return v.readAt(at, limit)
}

// components splits a path; ".." is kept, since what it means depends on symbolic links.
func components(p string) []string {
	var parts []string
	for part := range strings.SplitSeq(p, "/") {
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	return parts
}

func (v *view) readAt(name string, limit int64) ([]byte, error) {
	a, layer, ok := v.find(name)
	if !ok || a.mode&syscall.S_IFMT != syscall.S_IFREG {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	f, err := layer.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readBounded(io.Reader(f), limit)
}
