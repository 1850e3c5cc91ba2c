package filetar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// ErrRefused is matched by the refusal of what a stream may not hold.
var ErrRefused = errors.New("refused")

// Target is where a stream is unpacked to.
type Target struct {
	Dir   *os.Root // nothing is made outside of it
	First string   // the first element that every name of the stream has, or Self
	As    string   // what has that name in Dir: a single name, or Self for Dir itself, which then stays as it is
	// Any takes what tar programs make: absolute names stand below As, and symlinks that are there already are followed in Dir.
	// Without it no directory is a symlink, and sparse files are refused, whose size nothing but a number tells.
	Any bool
	// IDs tell who a file of the stream belongs to; nil: whoever unpacks it.
	IDs func(uid, gid int) (int, int, error)
	// SetID keeps the set-user-ID and set-group-ID bits.
	SetID bool
	// Fifos and Devices are made; without, they are left out.
	Fifos, Devices bool
	// Warn is told what is left out; nil: nobody is.
	Warn func(text string)

	// Bytes is how many there were in files so far.
	Bytes int64

	buf     []byte
	parent  *os.Root // of the last entry, open
	parents string   // its name; "" before the first
	open    []opened // directories that are being filled, each below the one before
}

// opened is a directory that gets its attributes once nothing more is written into it.
type opened struct {
	name   string
	info   fs.FileInfo
	header *tar.Header
}

// Read unpacks a stream. first is its first header where that was read already, else nil. What was there before stays as it is,
// but for files and symlinks of the names that come: each is replaced at once, when it is there as a whole.
func (t *Target) Read(first *tar.Header, r *tar.Reader) (err error) {
	t.buf = make([]byte, buffer)
	defer func() {
		if t.parent != nil {
			t.parent.Close()
			t.parent = nil
		}
	}()
	for {
		header := first
		if first = nil; header == nil {
			header, err = r.Next()
			if errors.Is(err, io.EOF) {
				return t.leave("")
			}
			if err != nil {
				return fmt.Errorf("read tar stream: %w", err)
			}
		}
		if err := t.take(header, r); err != nil {
			return err
		}
	}
}

// take unpacks one entry.
func (t *Target) take(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := t.check(h); err != nil {
		return err
	}
	name, err := t.name(h.Name)
	if err != nil {
		return err
	}
	if err := t.leave(name); err != nil {
		return err
	}
	if name == Self {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the stream has no directory where a directory's contents were asked for", ErrRefused)
		}
		return nil
	}
	dir, err := t.enter(path.Dir(name))
	if err != nil {
		return err
	}
	err = t.make(dir, name, h, r)
	if err != nil && !errors.Is(err, ErrRefused) {
		return fmt.Errorf("make %q: %w", name, plain(err))
	}
	return err
}

// plain is the cause of an error about a name that its caller names.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	var l *os.LinkError
	if errors.As(err, &l) {
		return l.Err
	}
	return err
}

// check refuses headers that ask for too much.
func (t *Target) check(h *tar.Header) error {
	if len(h.Name) > MaxName || len(h.Linkname) > MaxName {
		return fmt.Errorf("%w: the stream has a name of more than %d bytes", ErrRefused, MaxName)
	}
	if t.Any {
		return nil
	}
	sparse := h.Typeflag == tar.TypeGNUSparse
	for key := range h.PAXRecords {
		sparse = sparse || strings.HasPrefix(key, "GNU.sparse.")
	}
	if sparse {
		return fmt.Errorf("%w: %q is a sparse file, which no side of this sends", ErrRefused, h.Name)
	}
	return nil
}

// name turns a name of the stream into one in Dir.
func (t *Target) name(given string) (string, error) {
	rest, err := inStream(given, t.First, t.Any)
	if err != nil {
		return "", err
	}
	return path.Join(t.As, rest), nil
}

// inStream is a name of a stream without its first element.
func inStream(given, first string, slash bool) (string, error) {
	if slash {
		given = strings.TrimLeft(given, "/")
	}
	if strings.HasPrefix(given, "/") || slices.Contains(strings.Split(given, "/"), "..") || strings.Contains(given, "\x00") {
		return "", fmt.Errorf("%w: the stream has the name %q, which leads out of where it belongs", ErrRefused, given)
	}
	clean := path.Clean(given)
	if first == Self {
		return clean, nil
	}
	if clean == first {
		return Self, nil
	}
	if rest, ok := strings.CutPrefix(clean, first+"/"); ok {
		return rest, nil
	}
	return "", fmt.Errorf("%w: the stream has the name %q where only %q was asked for", ErrRefused, given, first)
}

// enter opens a directory below Dir, and makes it where the stream has left it out.
func (t *Target) enter(name string) (*os.Root, error) {
	if t.parent != nil && t.parents == name {
		return t.parent, nil
	}
	dir, err := t.Dir.OpenRoot(Self)
	if err != nil {
		return nil, err
	}
	for _, element := range strings.Split(name, "/") {
		if element == Self {
			continue
		}
		var next *os.Root
		next, err = t.step(dir, element)
		dir.Close()
		if err != nil {
			return nil, fmt.Errorf("enter %q: %w", name, err)
		}
		dir = next
	}
	if t.parent != nil {
		t.parent.Close()
	}
	t.parent, t.parents = dir, name
	return dir, nil
}

// step opens a directory in another one.
func (t *Target) step(dir *os.Root, name string) (*os.Root, error) {
	info, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		if err = dir.Mkdir(name, 0o755); err == nil {
			err = t.own(func(uid, gid int) error { return dir.Lchown(name, uid, gid) }, 0, 0)
		}
		if err == nil {
			return dir.OpenRoot(name)
		}
	}
	if err != nil {
		return nil, plain(err)
	}
	if !info.IsDir() && !t.Any {
		return nil, fmt.Errorf("%q: %w", name, syscall.ENOTDIR)
	}
	next, err := dir.OpenRoot(name)
	if err == nil && !t.Any {
		var is fs.FileInfo
		if is, err = next.Lstat(Self); err == nil && !os.SameFile(info, is) {
			err = errors.New("replaced meanwhile")
		}
		if err != nil {
			next.Close()
		}
	}
	if err != nil {
		return nil, plain(err)
	}
	return next, nil
}

// own gives a file to whom it belongs.
func (t *Target) own(chown func(uid, gid int) error, uid, gid int) error {
	if t.IDs == nil {
		return nil
	}
	uid, gid, err := t.IDs(uid, gid)
	if err != nil {
		return err
	}
	return chown(uid, gid)
}

// mode is that of a file of the stream.
func (t *Target) mode(h *tar.Header) fs.FileMode {
	mode := fs.FileMode(h.Mode & 0o777)
	for bit, is := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if h.Mode&bit != 0 && (t.SetID || is == fs.ModeSticky) {
			mode |= is
		}
	}
	return mode
}
