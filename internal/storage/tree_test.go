package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"husk.dev/husk/internal/child"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/testenv"
)

// newTree makes a tree in a mount namespace that the test alone has.
func newTree(t *testing.T) *Tree {
	t.Helper()
	tree, err := NewTree(filepath.Join(t.TempDir(), "share"), Host{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	return tree
}

// lend puts a file into a tree as Lend does.
func lend(tree *Tree, path string, readOnly, recursive bool) (string, error) {
	c, err := CopyOf(path, How{ReadOnly: readOnly, Recursive: recursive})
	if err != nil {
		return "", err
	}
	defer c.Close()
	return tree.Lend(c)
}

// mustLend is lend where it has to succeed; it returns where the file is in the tree.
func mustLend(t *testing.T, tree *Tree, path string, readOnly, recursive bool) string {
	t.Helper()
	name, err := lend(tree, path, readOnly, recursive)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(tree.Path(), name)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v; want %q", path, got, err, want)
	}
}

func TestLend(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	tree := newTree(t)
	src := t.TempDir()
	file := filepath.Join(src, "file")
	write(t, file, "content")
	var names []string
	for _, c := range []struct {
		path     string
		readOnly bool
	}{{src, true}, {src, false}, {file, true}, {file, false}} {
		at := mustLend(t, tree, c.path, c.readOnly, true)
		names = append(names, filepath.Base(at))
		if c.path == src {
			at = filepath.Join(at, "file")
		}
		holds(t, at, "content")
		err := os.WriteFile(at, []byte("content"), 0)
		if c.readOnly != errors.Is(err, syscall.EROFS) || !c.readOnly && err != nil {
			t.Errorf("%s: write: %v", c.path, err)
		}
	}
	again := filepath.Base(mustLend(t, tree, src, false, true))
	if again != names[1] {
		t.Errorf("the same directory again is %q, want its name %q", again, names[1])
	}
	for i, name := range []string{again, names[0], names[2], names[2], "none"} {
		if err := tree.Give(name); err != nil {
			t.Errorf("Give %d: %v", i, err)
		}
	}
	entries, _ := os.ReadDir(tree.Path())
	if len(entries) != 2 {
		t.Errorf("after Give the tree holds %v", entries)
	}
	holds(t, filepath.Join(tree.Path(), names[1], "file"), "content") // has a user yet
	if now := filepath.Base(mustLend(t, tree, src, true, false)); slices.Contains(names, now) {
		t.Errorf("the name %q is used again", now)
	}
	// Another file under the path of one that is lent is no user of that one.
	if err := errors.Join(os.Remove(file), os.WriteFile(file, []byte("other"), 0o600)); err != nil {
		t.Fatal(err)
	}
	holds(t, mustLend(t, tree, file, false, true), "other")
}

func TestReadOnlyHoldsForSubmounts(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	tree := newTree(t)
	src := t.TempDir()
	sub := filepath.Join(src, "sub")
	if err := errors.Join(os.Mkdir(sub, 0o755), syscall.Mount("sub", sub, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(sub, "file"), "below")
	all := mustLend(t, tree, src, true, true)
	holds(t, filepath.Join(all, "sub/file"), "below")
	if err := os.WriteFile(filepath.Join(all, "sub/file"), nil, 0); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write below a read-only share: %v", err)
	}
	write(t, filepath.Join(sub, "file"), "still writable on the host")
	top := mustLend(t, tree, src, true, false)
	if _, err := os.Stat(filepath.Join(top, "sub/file")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a share that is not recursive shows a submount: %v", err)
	}
	// What is mounted on the host later must not show, least of all writable.
	late := filepath.Join(src, "late")
	if err := errors.Join(os.Mkdir(late, 0o755), syscall.Mount("late", late, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(late, "file"), "")
	if _, err := os.Stat(filepath.Join(all, "late/file")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a later mount of the host shows: %v", err)
	}
	if err := errors.Join(sys.Unmount(sub), sys.Unmount(late)); err != nil {
		t.Error(err)
	}
}

func TestHostFlags(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	tree := newTree(t)
	src := t.TempDir()
	if err := syscall.Mknod(filepath.Join(src, "null"), syscall.S_IFCHR|0o666, 1<<8|3); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(src, "program"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := mustLend(t, tree, src, false, true)
	if _, err := os.Open(filepath.Join(dir, "null")); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("open a device through a share: %v", err)
	}
	if err := exec.Command(filepath.Join(dir, "program")).Run(); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("run a program through a share: %v", err)
	}
}

func TestCopyOfRefuses(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	tree := newTree(t)
	src := t.TempDir()
	link := filepath.Join(src, "link")
	if err := os.Symlink("/etc", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, link + "/ssl", filepath.Join(src, "none"), "etc", ""} {
		if _, err := lend(tree, path, false, true); err == nil {
			t.Errorf("took %q", path)
		}
	}
	if entries, err := os.ReadDir(tree.Path()); err != nil || len(entries) != 0 {
		t.Errorf("left %v, %v", entries, err)
	}
}

// TestLaterBindsReachCopies copies the mount namespace, as the file service does, and then adds a share.
func TestLaterBindsReachCopies(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	if err := sys.PrivateMounts(); err != nil {
		t.Fatal(err)
	}
	tree := newTree(t)
	src := t.TempDir()
	write(t, filepath.Join(src, "file"), "late")
	// Like the file service: slave, then the tree bound on itself.
	cmd := exec.Command("/bin/sh", "-c", `mount --make-rslave / && mount --rbind "$0" "$0" && cd "$0" && echo ready && read line && cat 1/file && read line && ls && echo end`, tree.Path())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	if err := errors.Join(err1, err2, child.Start(cmd)); err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		buf := make([]byte, 64)
		n, err := out.Read(buf)
		if got := string(buf[:n]); got != want {
			t.Errorf("the copy said %q, %v; want %q", got, err, want)
		}
	}
	expect("ready\n")
	late := filepath.Base(mustLend(t, tree, src, true, true))
	fmt.Fprintln(in)
	expect("late")
	if err := tree.Give(late); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in)
	expect("end\n")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestCloseUndoesEverything(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	src := t.TempDir()
	write(t, filepath.Join(src, "file"), "mine")
	dir := filepath.Join(t.TempDir(), "share")
	tree, err := NewTree(dir, Host{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		mustLend(t, tree, src, i%2 == 0, true)
	}
	busy, err := os.Open(filepath.Join(dir, "1/file")) // must not stop Close
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for range 2 {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	}
	after, _ := os.ReadFile("/proc/self/mountinfo")
	if string(after) != string(before) {
		t.Errorf("mounts before:\n%s\nafter:\n%s", before, after)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the tree is still there: %v", err)
	}
	holds(t, filepath.Join(src, "file"), "mine")
	if _, err := lend(tree, src, false, false); err == nil {
		t.Error("added to a closed tree")
	}
}

func TestNewTreeNeedsOwnMounts(t *testing.T) {
	testenv.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "share")
	tree, err := NewTree(dir, Host{})
	if err == nil {
		tree.Close()
		t.Fatal("made a tree in the mount namespace of the parent")
	}
	if !strings.Contains(err.Error(), "shares its mount namespace") {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left %v", err)
	}
}
