// Package disk makes the disks that take what containers write: sparse image files with an empty ext4.
package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"husk.dev/husk/internal/sys"
)

const (
	// MinMiB and MaxMiB are the smallest and the largest disk.
	MinMiB = 8
	MaxMiB = 1 << 30

	lockFile = "lock"
	// makeWait bounds making a blank file system: milliseconds, on a loaded machine seconds.
	makeWait = time.Minute
	// form is part of a blank's name: it changes with the options below.
	form = 2
)

// mkfsOptions make a file system whose metadata is next to nothing until it is used. It has no journal:
// after a crash of the host nobody mounts it again. The image is all zeros, so no table needs clearing,
// now or in the guest, and it never grows, so it needs no room for that.
var mkfsOptions = []string{
	"-q", "-F", "-m", "0", "-L", "husk", "-O", "^has_journal,^resize_inode", "-E", "assume_storage_prezeroed=1",
}

// oldMkfsOptions are for e2fsprogs before 1.47.
var oldMkfsOptions = []string{
	"-q", "-F", "-m", "0", "-L", "husk", "-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1",
}

// journal turns options for a blank into those for one that is mounted again after its guest was killed.
func journal(options []string) (with []string) {
	for _, o := range options {
		switch {
		case o == "^has_journal,^resize_inode":
			o = "^resize_inode"
		case strings.HasPrefix(o, "assume_storage_prezeroed"), strings.HasPrefix(o, "lazy_itable_init"):
			o += ",lazy_journal_init=1"
		}
		with = append(with, o)
	}
	return with
}

// Names of blanks, without and with a journal.
const (
	plainBlank   = "ext4"
	lastingBlank = "ext4-journal"
)

// directories are in a blank, for whoever puts an overlay on it: making them takes an emulated guest 20 ms.
var directories = []string{"upper", "work"}

// Create makes the disk path, a new file, with an empty ext4 of size MiB. It copies a blank file system
// that is made once for each size in cacheDir. On an error nothing of path is left; one for want of room
// matches syscall.ENOSPC.
func Create(ctx context.Context, cacheDir, path string, size int) error {
	return create(ctx, plainBlank, cacheDir, path, size)
}

// CreateLasting is Create of a disk that several guests mount, one after the other.
func CreateLasting(ctx context.Context, cacheDir, path string, size int) error {
	return create(ctx, lastingBlank, cacheDir, path, size)
}

func create(ctx context.Context, kind, cacheDir, path string, size int) error {
	if size < MinMiB || size > MaxMiB {
		return fmt.Errorf("make disk %s: %d MiB, want from %d to %d", path, size, MinMiB, MaxMiB)
	}
	blank, err := openBlank(ctx, kind, cacheDir, size)
	if err == nil {
		defer blank.Close()
		err = copySparse(path, blank)
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("make disk %s: no space left for it: %w", path, err)
	}
	if err != nil {
		return fmt.Errorf("make disk %s: %w", path, err)
	}
	return nil
}

// openBlank opens the blank file system of size MiB, and makes it first where there is none.
func openBlank(ctx context.Context, kind, dir string, size int) (*os.File, error) {
	mkfs, version, err := findMkfs()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, fmt.Sprintf("%s-%d-%s.img", kind, size, version))
	blank, err := os.Open(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return blank, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, filepath.Join(dir, lockFile))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if blank, err := os.Open(path); !errors.Is(err, fs.ErrNotExist) {
		return blank, err // somebody else was faster
	}
	removeStale(kind, dir, size)
	if err := makeBlank(ctx, kind, mkfs, path, size); err != nil {
		return nil, err
	}
	return os.Open(path)
}

// findMkfs finds mkfs.ext4 and names its version by its size and age: running it to ask takes longer
// than copying a blank.
func findMkfs() (path, version string, err error) {
	for _, candidate := range []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		path, err := exec.LookPath(candidate)
		if err != nil {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return "", "", err
		}
		return path, fmt.Sprintf("%d-%x-%x", form, info.Size(), info.ModTime().UnixNano()), nil
	}
	return "", "", errors.New("mkfs.ext4 is missing: install e2fsprogs")
}

// makeBlank makes the file system under a name of its own, so that path is there whole or not at all.
// Preconditions: the directory's lock is held.
func makeBlank(ctx context.Context, kind, mkfs, path string, size int) (err error) {
	ctx, cancel := context.WithTimeout(ctx, makeWait)
	defer cancel()
	tmp, err := os.CreateTemp(filepath.Dir(path), tmpPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		tmp.Close()
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	content, err := os.MkdirTemp(filepath.Dir(path), tmpPrefix+"*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(content)
	for _, name := range directories {
		dir := filepath.Join(content, name)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(dir, 0o755)); err != nil { // whatever the umask is
			return err
		}
	}
	for _, options := range [][]string{mkfsOptions, oldMkfsOptions} {
		if kind == lastingBlank {
			options = journal(options)
		}
		if err = errors.Join(tmp.Truncate(0), tmp.Truncate(int64(size)<<20)); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, mkfs, append(options[:len(options):len(options)], "-d", content, tmp.Name())...)
		cmd.Env = []string{"LC_ALL=C"}
		var output []byte
		if output, err = cmd.CombinedOutput(); err == nil {
			return os.Rename(tmp.Name(), path)
		}
		err = mkfsError(ctx, err, output)
	}
	return err
}

func mkfsError(ctx context.Context, err error, output []byte) error {
	if ctx.Err() != nil {
		return fmt.Errorf("run mkfs.ext4: %w", ctx.Err())
	}
	lines := strings.Split(strings.TrimSpace(string(output)), "\n")
	line := lines[len(lines)-1]
	for _, l := range lines {
		if strings.Contains(l, "No space left on device") {
			return fmt.Errorf("run mkfs.ext4: %s: %w", strings.TrimSpace(l), syscall.ENOSPC)
		}
	}
	return fmt.Errorf("run mkfs.ext4: %w: %s", err, line)
}

// tmpPrefix begins the names of unfinished blanks.
const tmpPrefix = ".new-"

// removeStale removes what a maker that was killed left, and blanks of this size by another mkfs. Disks
// copied from them do not need them. Preconditions: the directory's lock is held.
func removeStale(kind, dir string, size int) {
	for _, pattern := range []string{tmpPrefix + "*", fmt.Sprintf("%s-%d-*.img", kind, size)} {
		stale, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			continue
		}
		for _, path := range stale {
			os.RemoveAll(path) // what stays costs room, nothing else
		}
	}
}

// lock takes the lock file path, for as long as ctx lets it wait.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, makeWait)
	defer cancel()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := sys.Lock(ctx, file); err != nil {
		file.Close()
		return nil, err
	}
	return func() { file.Close() }, nil
}

// copySparse copies blank to the new file path: by sharing its blocks where the file system can, else
// its data and not its holes.
func copySparse(path string, blank *os.File) (err error) {
	target, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closed := target.Close(); err == nil {
			err = closed
		}
		if err != nil {
			os.Remove(path)
		}
	}()
	if sys.CloneFile(target, blank) == nil {
		return nil
	}
	return sys.CopySparse(target, blank)
}
