package storage

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"
	"time"

	"husk.dev/husk/internal/sys"
)

// File is a regular file, a directory or a symlink of the directory that Files is about.
type File struct {
	Path     string // below it; of the directory itself "."
	Mode     uint32 // st_mode of stat(2)
	UID, GID uint32
	Modified time.Time
	Content  []byte // of a regular file; of a symlink its target
}

// Limits bound what is read.
type Limits struct {
	Files int
	Bytes int // of content
}

// Files is an open directory.
type Files struct {
	mount *os.File
	root  *os.Root
	dir   *os.File
}

// OpenFiles opens the directory dir, an absolute path without symlinks, of this thread's mount namespace. It does so in a mount
// of its own: nobody is kept from unmounting what is there. Close closes it.
func OpenFiles(dir string) (*Files, error) {
	mount, err := sys.CloneMount(dir, false, sys.MountFlags{ReadOnly: true, NoExec: true, NoDev: true, NoSUID: true})
	if err != nil {
		return nil, fmt.Errorf("open files for the guest: %w", err)
	}
	f := &Files{mount: mount}
	if f.root, err = os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", mount.Fd())); err == nil {
		f.dir, err = f.root.Open(".")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open files for the guest: %w", err)
	}
	return f, nil
}

// Close closes the directory, after whatever Follow returned has been called.
func (f *Files) Close() {
	if f.dir != nil {
		f.dir.Close()
	}
	if f.root != nil {
		f.root.Close()
	}
	f.mount.Close()
}

// Follow calls changed, from one goroutine, after names in the directory have changed, until stop is called, which waits for it.
// Several changes at once may be one call.
func (f *Files) Follow(changed func()) (stop func(), err error) { return sys.FollowDir(f.dir, changed) }

// readTries is how often Read begins anew where what it reads is replaced meanwhile.
const readTries = 5

// Read reads all that is in the directory, parents before what is in them. No symlink is followed.
func (f *Files) Read(limits Limits) (all []File, err error) {
	for range readTries {
		if all, err = f.readOnce(limits); err == nil && f.whole(all) {
			return all, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err == nil {
		err = errors.New("they change all the time")
	}
	return nil, fmt.Errorf("read files for the guest: %w", err)
}

// current is the symlink to the directory of all files by which the kubelet replaces them at once.
const current = "..data"

// whole tells whether what was read is of one time.
func (f *Files) whole(all []File) bool {
	i := slices.IndexFunc(all, func(file File) bool { return file.Path == current })
	if i < 0 {
		return true
	}
	target := string(all[i].Content)
	now, err := f.root.Readlink(current)
	return err == nil && now == target && slices.ContainsFunc(all, func(file File) bool { return file.Path == target })
}

func (f *Files) readOnce(limits Limits) (all []File, err error) {
	left := limits.Bytes
	err = fs.WalkDir(f.root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if len(all) == limits.Files {
			return fmt.Errorf("more than %d files", limits.Files)
		}
		file, err := f.read(name, left)
		if err != nil {
			return err
		}
		left -= len(file.Content)
		all = append(all, file)
		return nil
	})
	return all, err
}

func (f *Files) read(name string, most int) (File, error) {
	info, err := f.root.Lstat(name)
	if err != nil {
		return File{}, err
	}
	mode, uid, gid := sys.Ownership(info)
	file := File{Path: path.Clean(name), Mode: mode, UID: uid, GID: gid, Modified: info.ModTime()}
	switch info.Mode().Type() {
	case fs.ModeDir:
	case fs.ModeSymlink:
		target, err := f.root.Readlink(name)
		if err != nil {
			return file, err
		}
		file.Content = []byte(target)
	case 0:
		if file.Content, err = f.content(name, most); err != nil {
			return file, err
		}
	default:
		return file, fmt.Errorf("%s is neither a regular file, a directory nor a symlink", name)
	}
	return file, nil
}

func (f *Files) content(name string, most int) ([]byte, error) {
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // somebody may put a pipe there
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, int64(most)+1))
	if err == nil && len(data) > most {
		err = fmt.Errorf("%s and what comes before it have more bytes than the guest takes", name)
	}
	return data, err
}
