package mnt

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys"
)

const (
	// maxCopies bounds the directories of files, maxFiles what one has.
	maxCopies = 256
	maxFiles  = 1024
	// filesOptions are those of the file system that they are in.
	filesOptions = "mode=0711,size=64m"
)

// Files are the directories that the owner keeps copies of files in.
type Files struct {
	dir string

	mu      sync.Mutex // held over every change; guards the fields below
	mounted bool
	names   map[string]uint64 // the number of the last Put
}

// NewFiles makes directories below dir, which it mounts when there is something to put there.
func NewFiles(dir string) *Files {
	return &Files{dir: dir, names: map[string]uint64{}}
}

// Put makes the directory called name what all says, in an order in which nobody sees a part of a change: new files, then each
// symlink by renaming, and then what is gone goes. One with a lower number than an earlier one does nothing.
func (f *Files) Put(name string, number uint64, all []*agentv1.File) error {
	if !fileName(name) {
		return fmt.Errorf("directory of files %q: %w", name, ErrInvalid)
	}
	if len(all) == 0 || len(all) > maxFiles || all[0].GetPath() != "." {
		return fmt.Errorf("directory of files %q has %d files: %w", name, len(all), ErrInvalid)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(name); err != nil {
		return fmt.Errorf("directory of files %q: %w", name, err)
	}
	if number < f.names[name] {
		return nil
	}
	f.names[name] = number
	root, err := os.OpenRoot(filepath.Join(f.dir, name))
	if err != nil {
		return fmt.Errorf("directory of files %q: %w", name, err)
	}
	defer root.Close()
	if err := put(root, all); err != nil {
		return fmt.Errorf("directory of files %q: %w", name, err)
	}
	return nil
}

// begin makes an empty directory where there is none yet.
func (f *Files) begin(name string) error {
	if _, made := f.names[name]; made {
		return nil
	}
	if len(f.names) == maxCopies {
		return fmt.Errorf("there are %d already: %w", maxCopies, ErrInvalid)
	}
	if !f.mounted {
		if err := os.MkdirAll(f.dir, 0o711); err != nil {
			return err
		}
		if err := syscall.Mount("files", f.dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, filesOptions); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
		f.mounted = true
	}
	if err := os.Mkdir(filepath.Join(f.dir, name), 0o700); err != nil {
		return err
	}
	f.names[name] = 0
	return nil
}

func put(root *os.Root, all []*agentv1.File) error {
	wanted := map[string]bool{}
	for _, file := range all {
		if !filepath.IsLocal(file.GetPath()) || path.Clean(file.GetPath()) != file.GetPath() {
			return fmt.Errorf("file %q: %w", file.GetPath(), ErrInvalid)
		}
		wanted[file.GetPath()] = true
	}
	links := func(file *agentv1.File) bool { return file.GetMode()&syscall.S_IFMT == syscall.S_IFLNK }
	for _, file := range all {
		if !links(file) {
			if err := putFile(root, file); err != nil {
				return err
			}
		}
	}
	for _, file := range all {
		if links(file) {
			if err := putLink(root, file); err != nil {
				return err
			}
		}
	}
	var gone []string
	err := fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || wanted[name] {
			return err
		}
		gone = append(gone, name)
		if e.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	for _, name := range gone {
		err = errors.Join(err, root.RemoveAll(name))
	}
	return err
}

// putFile makes a directory, or a regular file by renaming where there is another one.
func putFile(root *os.Root, file *agentv1.File) error {
	name, mode := file.GetPath(), fs.FileMode(file.GetMode()&0o777)
	info, err := root.Lstat(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	missing := err != nil
	switch file.GetMode() & syscall.S_IFMT {
	case syscall.S_IFDIR:
		if !missing && !info.IsDir() {
			missing = true
			err = root.Remove(name)
		}
		if missing {
			err = root.Mkdir(name, 0o700)
		}
		if err != nil {
			return err
		}
		return own(root, name, file, mode)
	case syscall.S_IFREG:
	default:
		return fmt.Errorf("file %q of mode %o: %w", name, file.GetMode(), ErrInvalid)
	}
	if !missing && info.IsDir() {
		if err := root.RemoveAll(name); err != nil {
			return err
		}
		missing = true
	}
	if !missing && info.Mode().IsRegular() {
		if old, err := root.ReadFile(name); err == nil && bytes.Equal(old, file.GetContent()) {
			return own(root, name, file, mode)
		}
	}
	made := name
	if !missing {
		made += temporary
		_ = root.Remove(made) // of a Put that failed
	}
	if err := root.WriteFile(made, file.GetContent(), 0o600); err != nil {
		return err
	}
	if err := own(root, made, file, mode); err != nil {
		return err
	}
	modified := time.Unix(0, file.GetModifiedUnixNanos())
	if err := root.Chtimes(made, modified, modified); err != nil || made == name {
		return err
	}
	return root.Rename(made, name)
}

// temporary ends the names of files that are about to replace others.
const temporary = "_tmp"

// own gives a file its owner and mode where it has others.
func own(root *os.Root, name string, file *agentv1.File, mode fs.FileMode) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if _, uid, gid := sys.Ownership(info); uid != file.GetUid() || gid != file.GetGid() {
		if err := root.Lchown(name, int(file.GetUid()), int(file.GetGid())); err != nil {
			return err
		}
	}
	if info.IsDir() { // a group's volumes have the bit
		mode |= bit(file, syscall.S_ISGID, fs.ModeSetgid) | bit(file, syscall.S_ISVTX, fs.ModeSticky)
	}
	if info.Mode()&(fs.ModePerm|fs.ModeSetgid|fs.ModeSticky) == mode {
		return nil
	}
	return root.Chmod(name, mode)
}

func bit(file *agentv1.File, kernel uint32, ours fs.FileMode) fs.FileMode {
	if file.GetMode()&kernel != 0 {
		return ours
	}
	return 0
}

// putLink makes a symlink, by renaming where there is another one.
func putLink(root *os.Root, file *agentv1.File) error {
	name, target := file.GetPath(), string(file.GetContent())
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return link(root, name, target, file)
	case err != nil:
		return err
	case info.Mode().Type() == fs.ModeSymlink:
		if old, err := root.Readlink(name); err == nil && old == target {
			return nil
		}
	case info.IsDir():
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	made := name + temporary
	_ = root.Remove(made) // of a Put that failed
	if err := link(root, made, target, file); err != nil {
		return err
	}
	return root.Rename(made, name)
}

func link(root *os.Root, name, target string, file *agentv1.File) error {
	if err := root.Symlink(target, name); err != nil {
		return err
	}
	return root.Lchown(name, int(file.GetUid()), int(file.GetGid()))
}
