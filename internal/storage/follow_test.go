package storage

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/testenv"
)

// TestFollow brings mounts of the host to a guest, and does not keep the host from unmounting them.
func TestFollow(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	for name, c := range map[string]struct {
		how    How
		before bool // what is mounted before the directory is lent shows
	}{
		"recursive": {How{Recursive: true, Follow: true}, true}, "alone": {How{Follow: true}, false},
		"back": {How{Recursive: true, Follow: true, Return: true, ReadOnly: true}, true},
	} {
		t.Run(name, func(t *testing.T) {
			host := []string{"", "/proc/self/ns/mnt"}[len(name)%2]
			dir := t.TempDir()
			tree, err := NewTree(filepath.Join(t.TempDir(), "share"), Host{Mounts: host, Warn: func(err error) { t.Error(err) }})
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			memory := func(name string) {
				t.Helper()
				point := filepath.Join(dir, name)
				err := os.MkdirAll(point, 0o755)
				if err == nil {
					err = syscall.Mount("none", point, "tmpfs", 0, "")
				}
				if err != nil {
					t.Fatal(err)
				}
				write(t, filepath.Join(point, "file"), name)
			}
			unmount := func(name string) {
				t.Helper()
				if err := syscall.Unmount(filepath.Join(dir, name), 0); err != nil {
					t.Errorf("unmount %s: %v", name, err)
				}
			}
			memory("before")
			one, err := CopyOf(dir, c.how)
			if err != nil {
				t.Fatal(err)
			}
			defer one.Close()
			memory("between")
			part, err := tree.Lend(one)
			if err != nil {
				t.Fatal(err)
			}
			there := func(name string, want bool) {
				t.Helper()
				path := filepath.Join(tree.Path(), part, name, "file")
				for end := time.Now().Add(10 * time.Second); exists(path) != want; time.Sleep(5 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("in the tree %s is there: %v, want %v", name, !want, want)
					}
				}
			}
			there("before", c.before)
			if c.how.Recursive { // else it may have come before the host's mounts were followed
				there("between", true)
			}
			memory("after")
			there("after", true)
			memory("after/below")
			there("after/below", true)
			if err := os.WriteFile(filepath.Join(tree.Path(), part, "after/new"), nil, 0o644); (err == nil) == c.how.ReadOnly {
				t.Errorf("write to a mount that was brought, read-only %v: %v", c.how.ReadOnly, err)
			}
			open, err := os.Open(filepath.Join(tree.Path(), part, "after/below/file"))
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close() // as the file service has it for as long as the guest remembers it
			unmount("after/below")
			there("after/below", false)
			unmount("after")
			memory("after") // another one
			there("after", true)
			for _, name := range []string{"after", "between", "before"} {
				unmount(name)
				there(name, false)
			}
			if err := tree.Give(part); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFollowAll lends a directory that has the tree itself in it.
func TestFollowAll(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	for _, host := range []string{"", "/proc/self/ns/mnt"} {
		dir := t.TempDir()
		tree, err := NewTree(filepath.Join(dir, "share"), Host{Mounts: host, Warn: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		part, err := lendFollowed(tree, dir)
		if err != nil {
			t.Fatal(err)
		}
		point := filepath.Join(dir, "point")
		if err := os.Mkdir(point, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("none", point, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(point, "file"), "")
		for end := time.Now().Add(10 * time.Second); !exists(filepath.Join(tree.Path(), part, "point/file")); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("a mount of the host did not come")
			}
		}
		time.Sleep(3 * followPace) // what came makes changes, too
		table, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(table), "/share/"+part+"/"); n > 3 { // point, and the tree as it was when it was lent
			t.Errorf("the tree has %d mounts in itself:\n%s", n, table)
		}
		if err := errors.Join(tree.Close(), syscall.Unmount(point, 0)); err != nil {
			t.Error(err)
		}
	}
}

// TestFollowEnds follows nothing any more once the tree is closed.
func TestFollowEnds(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	tree, err := NewTree(filepath.Join(t.TempDir(), "share"), Host{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lendFollowed(tree, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	if err := tree.Close(); err != nil {
		t.Error(err)
	}
	if tree.unfollow != nil {
		t.Error("the host's mounts are still followed")
	}
	if _, err := lendFollowed(tree, t.TempDir()); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("lent by a closed tree: %v", err)
	}
}

func lendFollowed(tree *Tree, dir string) (string, error) {
	c, err := CopyOf(dir, How{Recursive: true, Follow: true})
	if err != nil {
		return "", err
	}
	defer c.Close()
	return tree.Lend(c)
}

// TestChanges has what is on a mount end and come with it.
func TestChanges(t *testing.T) {
	before := map[string]string{"a": "1", "a/b": "2", "ab": "3", "c": "4", "c/d/e": "5"}
	now := map[string]string{"a": "9", "a/b": "2", "ab": "3", "f": "6"}
	gone, come := changes(before, now)
	if got, want := strings.Join(gone, " "), "a a/b c c/d/e"; got != want {
		t.Errorf("gone are %s, want %s", got, want)
	}
	if got, want := strings.Join(come, " "), "a a/b f"; got != want {
		t.Errorf("come have %s, want %s", got, want)
	}
}
