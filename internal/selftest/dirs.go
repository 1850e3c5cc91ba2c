package selftest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

// dirs are a self-test's directories below the user's. Their name is no container's id, so husk does not see one in them.
type dirs struct {
	run, data string
	work      string   // with all else, in data
	lock      *os.File // of work, held for as long as this process lives
}

// mark is what the names of a self-test's directories begin with.
const mark = "selftest~"

// Files in work.
const (
	configFile = "config.toml"
	coldFile   = "cold.toml" // the same without templates
	lockFile   = "lock"
)

func (d *dirs) path(name string) string { return filepath.Join(d.work, name) }

// places are where the directories are made.
func (at Setting) places() (data, run string) {
	if at.Dir != "" {
		return at.Dir, at.Dir
	}
	return at.Config.DataDir, at.Config.RunDir
}

// makeDirs makes the directories and the configurations, after it has removed what self-tests that were killed left.
func (s *session) makeDirs(ctx context.Context) error {
	data, run := s.at.places()
	for _, dir := range []string{data, run} {
		missing := dir
		for !exists(filepath.Dir(missing)) {
			missing = filepath.Dir(missing)
		}
		if exists(missing) {
			continue
		}
		for made := dir; made != filepath.Dir(missing); made = filepath.Dir(made) {
			s.made = append(s.made, made)
		}
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	if err := s.sweep(ctx, data, run); err != nil {
		return err
	}
	work, err := os.MkdirTemp(data, mark)
	if err != nil {
		return err
	}
	d := &dirs{work: work, data: filepath.Join(work, "data"), run: filepath.Join(run, filepath.Base(work), "run")}
	s.dirs = d
	if err := d.take(); err != nil {
		return err
	}
	for _, dir := range []string{d.data, d.run, d.path("out"), d.path("rootfs"), d.path("volume"), d.path("read-only")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	if err := os.Chmod(work, 0o711); err != nil { // monitors are other users
		return err
	}
	c := s.at.Config
	c.DataDir, c.RunDir = d.data, d.run
	if c.Template == "on" {
		c.Template = "ready" // nothing is built in the background that would be in the way of the end
	}
	if err := writeConfig(d.path(configFile), c); err != nil {
		return err
	}
	c.Template = "off"
	return writeConfig(d.path(coldFile), c)
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

func writeConfig(name string, c config.Config) error {
	data, err := c.Encode()
	if err != nil {
		return err
	}
	return os.WriteFile(name, data, 0o600)
}

// take locks the directories for as long as this process lives.
func (d *dirs) take() (err error) {
	if d.lock, err = os.OpenFile(d.path(lockFile), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	taken, err := sys.TryLock(d.lock)
	if err == nil && !taken {
		err = fmt.Errorf("%s is locked", d.lock.Name())
	}
	return err
}

// remove removes the directories. The one with the lock goes last, so that another self-test can go on where this is
// cut short.
func (d *dirs) remove() error {
	err := errors.Join(os.RemoveAll(filepath.Dir(d.run)), os.RemoveAll(d.work))
	if d.lock != nil {
		d.lock.Close()
	}
	return err
}

// unlocked is for how long a self-test that lives may have a directory without a lock, with much to spare.
const unlocked = time.Hour

// ours tells whether a directory was made by this user and nobody else can write to it: whoever can make a container's
// state can name programs, which its deletion runs.
func ours(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() || info.Mode().Perm()&0o022 != 0 {
		return false
	}
	_, uid, _ := sys.Ownership(info)
	return int(uid) == os.Geteuid()
}

// sweep removes what self-tests that were killed left: their containers, which may still run, and their files.
func (s *session) sweep(ctx context.Context, data, run string) error {
	found, err := filepath.Glob(filepath.Join(data, mark+"*"))
	if err != nil {
		return err
	}
	for _, work := range found {
		d := &dirs{work: work, data: filepath.Join(work, "data"), run: filepath.Join(run, filepath.Base(work), "run")}
		if !ours(work) || exists(filepath.Dir(d.run)) && !ours(filepath.Dir(d.run)) {
			continue
		}
		f, err := os.OpenFile(d.path(lockFile), os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) {
			if info, err := os.Stat(work); err == nil && time.Since(info.ModTime()) > unlocked {
				_ = os.RemoveAll(work) // else another sweeps it
			}
			continue
		}
		if err != nil {
			return err
		}
		d.lock = f
		if taken, err := sys.TryLock(f); err != nil || !taken {
			f.Close()
			continue // that one lives
		}
		s.dirs = d
		s.deleteAll(ctx)
		s.dirs = nil
		if err := d.remove(); err != nil {
			return fmt.Errorf("remove what an earlier self-test left: %w", err)
		}
	}
	return nil
}

// deleteAll deletes every container in the directories. What cannot be deleted is seen later.
func (s *session) deleteAll(ctx context.Context) {
	ids, _ := state.List(s.dirs.run)
	for _, id := range ids {
		_, _ = s.husk(ctx, "delete", "--force", id)
	}
}

// close removes everything.
func (s *session) close() error {
	err := s.endAll()
	if s.dirs != nil {
		err = errors.Join(err, s.dirs.remove())
	}
	slices.SortFunc(s.made, func(a, b string) int { return len(b) - len(a) })
	for _, dir := range s.made {
		_ = os.Remove(dir) // somebody else may have come to use it
	}
	s.reaper.close()
	return err
}

// tryImage makes the directories and an image of husk itself.
func tryImage(ctx context.Context, s *session) error {
	if err := s.makeDirs(ctx); err != nil {
		return err
	}
	root := s.dirs.path("rootfs")
	for _, dir := range []string{"dev", "proc", "sys", "tmp", "v", "ro", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(root, program), s.at.Binary); err != nil {
		return err
	}
	if _, err := s.husk(ctx, "import", root, image); err != nil {
		return err
	}
	out, err := s.husk(ctx, "images")
	if err == nil && !strings.Contains(out, image) {
		err = fmt.Errorf("husk images does not list the image that was made: %q", out)
	}
	return err
}

// copyFile makes an executable copy.
func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
