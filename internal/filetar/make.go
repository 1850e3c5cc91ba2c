package filetar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"syscall"

	"husk.dev/husk/internal/sys"
)

// make makes what a header describes: name is its name in Dir, whose last element is in dir.
func (t *Target) make(dir *os.Root, name string, h *tar.Header, r io.Reader) error {
	base := path.Base(name)
	info, err := dir.Lstat(base)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return t.makeDirectory(dir, name, info, h)
	}
	if info != nil && info.IsDir() {
		return errors.New("there is a directory, which a file does not replace")
	}
	if info != nil && !info.Mode().IsRegular() && info.Mode()&fs.ModeSymlink == 0 {
		return errors.New("there is a device, a pipe or a socket, which is not replaced")
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		return t.makeFile(dir, base, h, r)
	case tar.TypeSymlink:
		return t.replace(dir, base, func(temp string) error {
			if err := dir.Symlink(h.Linkname, temp); err != nil {
				return err
			}
			return t.finish(dir, temp, h)
		})
	case tar.TypeLink:
		return t.makeLink(name, h)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return t.makeNode(dir, base, h)
	}
	return fmt.Errorf("%w: %q is of the unknown kind %q", ErrRefused, h.Name, h.Typeflag)
}

func (t *Target) makeDirectory(dir *os.Root, name string, info fs.FileInfo, h *tar.Header) error {
	base := path.Base(name)
	if info != nil {
		if info.Mode()&fs.ModeSymlink != 0 && t.Any {
			if to, err := dir.Stat(base); err == nil {
				info = to
			}
		}
		if !info.IsDir() {
			return errors.New("there is a file, which a directory does not replace")
		}
		return nil
	}
	if err := dir.Mkdir(base, 0o700); err != nil {
		return err
	}
	info, err := dir.Lstat(base)
	if err != nil {
		return err
	}
	t.open = append(t.open, opened{name, info, h})
	return nil
}

// leave gives their attributes to the directories that name is not in: whatever is written into one changes its time.
func (t *Target) leave(name string) error {
	for len(t.open) > 0 {
		last := t.open[len(t.open)-1]
		if name != "" && strings.HasPrefix(name, last.name+"/") {
			return nil
		}
		t.open = t.open[:len(t.open)-1]
		if err := t.close(last); err != nil {
			return fmt.Errorf("set attributes of %q: %w", last.name, plain(err))
		}
	}
	return nil
}

func (t *Target) close(d opened) error {
	parent, err := t.enter(path.Dir(d.name))
	if err != nil {
		return err
	}
	f, err := parent.Open(path.Base(d.name))
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !os.SameFile(info, d.info) {
		return errors.Join(err, errors.New("replaced meanwhile"))
	}
	if err := t.own(f.Chown, d.header.Uid, d.header.Gid); err != nil {
		return err
	}
	if err := f.Chmod(t.mode(d.header)); err != nil {
		return err
	}
	return sys.SetModified(f, Self, d.header.ModTime)
}

// makeFile makes a regular file, under no name first, or where the file system has no such files under another one: nothing
// half has its name, and mostly nothing is left of it when this process is killed.
func (t *Target) makeFile(dir *os.Root, base string, h *tar.Header, r io.Reader) error {
	d, err := dir.Open(Self)
	if err != nil {
		return err
	}
	defer d.Close()
	return t.replace(dir, base, func(temp string) error {
		f, err := sys.OpenUnnamed(d)
		unnamed := err == nil
		if !unnamed {
			f, err = dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		}
		if err != nil {
			return err
		}
		err = t.fill(f, h, r)
		if err == nil && unnamed {
			err = sys.NameFile(f, d, temp)
		}
		if closed := f.Close(); err == nil { // what a full disk of another machine refuses is told here
			err = closed
		}
		if err == nil {
			err = sys.SetModified(d, temp, h.ModTime)
		}
		return err
	})
}

// fill writes a file and gives it to whom it belongs.
func (t *Target) fill(f *os.File, h *tar.Header, r io.Reader) error {
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, r, t.buf)
	t.Bytes += n
	if err != nil {
		return err
	}
	if err := t.own(f.Chown, h.Uid, h.Gid); err != nil {
		return err
	}
	return f.Chmod(t.mode(h)) // after that, which takes bits away
}

// finish gives what cannot be opened to whom it belongs, and sets its time.
func (t *Target) finish(dir *os.Root, name string, h *tar.Header) error {
	if err := t.own(func(uid, gid int) error { return dir.Lchown(name, uid, gid) }, h.Uid, h.Gid); err != nil {
		return err
	}
	return t.modified(dir, name, h)
}

func (t *Target) modified(dir *os.Root, name string, h *tar.Header) error {
	d, err := dir.Open(Self)
	if err != nil {
		return err
	}
	defer d.Close()
	return sys.SetModified(d, name, h.ModTime)
}

// replace has something made under another name and gives it its own. What has the name is replaced at once; of what fails,
// nothing is left.
func (t *Target) replace(dir *os.Root, base string, create func(temp string) error) error {
	temp := fmt.Sprintf(".husk-cp-%012x", rand.Uint64()>>16)
	err := create(temp)
	if err == nil {
		err = dir.Rename(temp, base)
		if errors.Is(err, syscall.EBUSY) { // something is mounted there, as engines do with /etc/hosts
			err = overwrite(dir, temp, base)
		}
		if err == nil {
			return nil
		}
	}
	_ = dir.Remove(temp) // it may not be there
	return err
}

// overwrite copies a file's content into another one, and removes it.
func overwrite(dir *os.Root, from, to string) error {
	src, err := dir.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := dir.OpenFile(to, os.O_WRONLY|os.O_TRUNC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if closed := dst.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return dir.Remove(from)
}

// makeLink makes another name of a file that came before.
func (t *Target) makeLink(name string, h *tar.Header) error {
	first, err := t.name(h.Linkname)
	if err != nil || first == name {
		return err
	}
	from, err := t.enter(path.Dir(first)) // no symlink is on the way
	if err != nil {
		return err
	}
	info, err := from.Lstat(path.Base(first))
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: %q is to be another name of what is no file", ErrRefused, h.Name)
	}
	if err := t.Dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return t.Dir.Link(first, name)
}

// makeNode makes a fifo or a device, where that is asked for.
func (t *Target) makeNode(dir *os.Root, base string, h *tar.Header) error {
	kinds := map[byte]uint32{tar.TypeFifo: syscall.S_IFIFO, tar.TypeChar: syscall.S_IFCHR, tar.TypeBlock: syscall.S_IFBLK}
	if h.Typeflag == tar.TypeFifo && !t.Fifos || h.Typeflag != tar.TypeFifo && !t.Devices {
		if t.Warn != nil {
			t.Warn(fmt.Sprintf("%q is a device or a pipe: left out", h.Name))
		}
		return nil
	}
	return t.replace(dir, base, func(temp string) error {
		d, err := dir.Open(Self)
		if err != nil {
			return err
		}
		defer d.Close()
		if err := sys.MakeNode(d, temp, kinds[h.Typeflag]|0o600, h.Devmajor, h.Devminor); err != nil {
			return err
		}
		if err := dir.Chmod(temp, t.mode(h)&fs.ModePerm); err != nil {
			return err
		}
		return t.finish(dir, temp, h)
	})
}
