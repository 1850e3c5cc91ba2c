// Package filetar copies trees of files as tar streams (archive/tar) between two sides of which neither trusts the other: what
// is read and what is written stays below one open directory.
package filetar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"syscall"

	"husk.dev/husk/internal/sys"
)

const (
	// MaxName bounds a name in a stream and what a symlink says, in bytes: PATH_MAX of Linux.
	MaxName = 4096
	// maxHardLinks bounds the files with several names whose first one is remembered. Further ones are copied again.
	maxHardLinks = 1 << 14
	// batch is how many names of a directory are read at once.
	batch = 256
	// buffer is the size of one read of a file, in bytes.
	buffer = 256 << 10
)

// Self is the name of what a stream holds of which no name is asked for: its entries begin with "./".
const Self = "."

// Source is a file, or a tree of them, to be read.
type Source struct {
	Dir  *os.Root
	Name string // in Dir, a single name or "."
	As   string // the first element of all names in the stream, or Self
	// IDs turn a file's user and group into what the stream says; nil leaves them as they are.
	IDs func(uid, gid int) (int, int)
	// Warn is told what is left out; nil: nobody is.
	Warn func(text string)

	// Bytes is how many there were in files so far.
	Bytes int64

	out   *tar.Writer
	buf   []byte
	links map[inode]string
}

type inode struct{ device, number uint64 }

// Write writes the stream. What goes away meanwhile is left out, and so are sockets and, below the source itself, the files in
// which the kernel tells of itself (/proc, /sys).
func (s *Source) Write(w io.Writer) error {
	s.out, s.buf, s.links = tar.NewWriter(w), make([]byte, buffer), map[inode]string{}
	info, err := s.Dir.Lstat(s.Name)
	if err != nil {
		return err
	}
	if err := s.add(s.Dir, s.Name, s.As, info, deviceOf(info)); err != nil {
		return err
	}
	if err := s.out.Close(); err != nil {
		return fmt.Errorf("write tar stream: %w", err)
	}
	return nil
}

func deviceOf(info fs.FileInfo) uint64 { return uint64(info.Sys().(*syscall.Stat_t).Dev) }

// add writes what name stands for in dir, as a name of the stream. above is the device of its directory.
func (s *Source) add(dir *os.Root, name, as string, info fs.FileInfo, above uint64) error {
	if len(as) > MaxName {
		return fmt.Errorf("%.64q...: name is longer than %d bytes", as, MaxName)
	}
	header, err := s.header(dir, name, as, info)
	if err != nil {
		return err
	}
	if header == nil {
		s.warn(fmt.Sprintf("%q is a socket: left out", as))
		return nil
	}
	stat := info.Sys().(*syscall.Stat_t)
	switch header.Typeflag {
	case tar.TypeDir:
		return s.addDirectory(dir, name, as, header, above)
	case tar.TypeReg:
		id := inode{uint64(stat.Dev), stat.Ino}
		if first, found := s.links[id]; found {
			header.Typeflag, header.Linkname, header.Size = tar.TypeLink, first, 0
			return s.begin(header)
		}
		if stat.Nlink > 1 && len(s.links) < maxHardLinks {
			s.links[id] = as
		}
		return s.addFile(dir, name, header, info)
	}
	return s.begin(header)
}

// header describes a file; nil is for one that a stream cannot hold.
func (s *Source) header(dir *os.Root, name, as string, info fs.FileInfo) (*tar.Header, error) {
	stat := info.Sys().(*syscall.Stat_t)
	h := &tar.Header{
		Name: as, Mode: int64(stat.Mode & 0o7777), ModTime: info.ModTime(), Uid: int(stat.Uid), Gid: int(stat.Gid),
		Format: tar.FormatPAX, // whose times have nanoseconds
	}
	if s.IDs != nil {
		h.Uid, h.Gid = s.IDs(h.Uid, h.Gid)
	}
	switch stat.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, info.Size()
	case syscall.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, as+"/"
	case syscall.S_IFLNK:
		link, err := dir.Readlink(name)
		if err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, link
	case syscall.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case syscall.S_IFCHR, syscall.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if stat.Mode&syscall.S_IFMT == syscall.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = sys.DeviceNumber(uint64(stat.Rdev))
	default:
		return nil, nil
	}
	return h, nil
}

func (s *Source) begin(h *tar.Header) error {
	if err := s.out.WriteHeader(h); err != nil {
		return fmt.Errorf("write tar stream: %w", err)
	}
	return nil
}

func (s *Source) warn(text string) {
	if s.Warn != nil {
		s.Warn(text)
	}
}

// addFile writes a regular file: as many bytes as its header says, whoever writes to it meanwhile.
func (s *Source) addFile(dir *os.Root, name string, header *tar.Header, info fs.FileInfo) error {
	// What is a pipe by now must not hold us up, and is refused.
	f, err := dir.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil {
		return err
	}
	if !os.SameFile(info, now) {
		return fmt.Errorf("%q was replaced while it was copied", header.Name)
	}
	header.Size = now.Size()
	if err := s.begin(header); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{s.out}, io.LimitReader(f, header.Size), s.buf)
	s.Bytes += n
	if err == nil && n < header.Size {
		err = errors.New("it has become shorter while it was copied")
	}
	if err != nil {
		return fmt.Errorf("copy %q: %w", header.Name, err)
	}
	return nil
}

// addDirectory writes a directory and what is in it.
func (s *Source) addDirectory(above *os.Root, name, as string, header *tar.Header, device uint64) error {
	dir, err := above.OpenRoot(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	list, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer list.Close()
	info, err := list.Stat()
	if err != nil {
		return err
	}
	if err := s.begin(header); err != nil {
		return err
	}
	if here := deviceOf(info); here != device {
		if kernels, err := sys.OfKernel(list); err != nil || kernels {
			return err
		}
		device = here
	}
	for {
		names, err := list.Readdirnames(batch)
		for _, n := range names {
			if err := s.addChild(dir, n, path.Join(as, n), device); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list %q: %w", as, err)
		}
	}
}

// addChild adds what is in a directory, unless it is gone.
func (s *Source) addChild(dir *os.Root, name, as string, device uint64) error {
	info, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = s.add(dir, name, as, info, device)
	}
	if errors.Is(err, fs.ErrNotExist) { // it went before anything of it was written
		return nil
	}
	return err
}
