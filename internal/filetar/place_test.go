package filetar

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestName(t *testing.T) {
	for given, want := range map[string]struct {
		directory, contents bool
		first               string
	}{
		"/a/b": {false, false, "b"}, "a": {false, false, "a"}, "/a/b/": {true, false, "b"}, "/a/b//": {true, false, "b"},
		"/a/.": {true, true, Self}, "/a/./": {true, true, Self}, ".": {true, true, Self}, "..": {true, true, Self}, "/a/..": {true, true, Self},
		"/": {true, true, Self}, "//": {true, true, Self}, "/a/.b": {false, false, ".b"}, "/a/b.": {false, false, "b."},
	} {
		n := Name(given)
		if n.Directory != want.directory || n.Contents != want.contents || n.First() != want.first {
			t.Errorf("%q: %+v, first %q, want %+v", given, n, n.First(), want)
		}
	}
}

// machine is a root directory with
//
//	file  dir/  dir/old  link -> dir  flink -> /file  dangling -> dir/new  out -> ../../..  pipe  loop -> loop
func machine(t *testing.T) (root *os.File, path string) {
	t.Helper()
	path = t.TempDir()
	in := func(name string) string { return filepath.Join(path, name) }
	err := errors.Join(os.WriteFile(in("file"), []byte("file"), 0o644), os.Mkdir(in("dir"), 0o755), os.WriteFile(in("dir/old"), []byte("old"), 0o644),
		os.Symlink("dir", in("link")), os.Symlink("/file", in("flink")), os.Symlink("dir/new", in("dangling")), os.Symlink("../../../..", in("out")),
		syscall.Mkfifo(in("pipe"), 0o644), os.Symlink("loop", in("loop")))
	if err != nil {
		t.Fatal(err)
	}
	if root, err = os.Open(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, path
}

// TestTarget checks docker's rules: what is made of a file "f", a directory "d" or its contents, copied to a path.
func TestTarget(t *testing.T) {
	for _, c := range []struct {
		path string
		kind string // file, dir, contents
		want string // what is made of it, or part of the error
	}{
		{"/new", "file", "new"}, {"new", "file", "new"}, {"/dir", "file", "dir/f"}, {"/dir/", "file", "dir/f"}, {"/dir/.", "file", "dir/f"},
		{"/file", "file", "file"}, {"/file/", "file", "!not a directory"}, {"/new/", "file", "!no such directory"}, {"/dir/new", "file", "dir/new"},
		{"/no/new", "file", "!\"/no\" does not exist"}, {"/file/new", "file", "!not a directory"}, {"/", "file", "f"}, {"/dir/..", "file", "f"},
		{"/link", "file", "dir/f"}, {"/link/", "file", "dir/f"}, {"/flink", "file", "file"}, {"/dangling", "file", "dir/new"}, {"/out/new", "file", "new"},
		{"/../../new", "file", "new"}, {"/pipe", "file", "!neither a file"}, {"/loop", "file", "!too many levels"},
		{"/new", "dir", "new/x"}, {"/new/", "dir", "new/x"}, {"/dir", "dir", "dir/d/x"}, {"/link", "dir", "dir/d/x"}, {"/file", "dir", "!which a directory does not replace"},
		{"/no/new", "dir", "!does not exist"}, {"/dir/new", "dir", "dir/new/x"},
		{"/new", "contents", "new/x"}, {"/dir", "contents", "dir/x"}, {"/dir/.", "contents", "dir/x"}, {"/", "contents", "x"},
	} {
		root, path := machine(t)
		first, stream := "f", []entry{file("f", "new")}
		switch c.kind {
		case "dir":
			first, stream = "d", []entry{dir("d"), file("d/x", "new")}
		case "contents":
			first, stream = Self, []entry{dir("./"), file("x", "new")}
		}
		target, err := FindTarget(root, Name(c.path), c.kind != "file", first)
		if err == nil {
			err = target.Read(nil, tar.NewReader(packed(t, stream...)))
			target.Dir.Close()
		}
		if part, fails := strings.CutPrefix(c.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s to %s: %v, want %q", c.kind, c.path, err, part)
			}
			continue
		}
		data, readErr := os.ReadFile(filepath.Join(path, c.want))
		if err != nil || readErr != nil || string(data) != "new" {
			t.Errorf("%s to %s: %v; %s is %q, %v", c.kind, c.path, err, c.want, data, readErr)
		}
	}
}

// TestSource copies from paths: the names in the stream.
func TestSource(t *testing.T) {
	root, _ := machine(t)
	for _, c := range []struct {
		path   string
		follow bool
		want   string // the names, or an error
	}{
		{"/file", false, "file"}, {"file", false, "file"}, {"/dir", false, "dir/ dir/old"}, {"/dir/", false, "dir/ dir/old"}, {"/dir/.", false, "./ old"},
		{"/link", false, "link"}, {"/link", true, "link/ link/old"}, {"/link/", false, "link/ link/old"}, {"/link/.", false, "./ old"},
		{"/flink", true, "flink"}, {"/flink/", false, "!not a directory"}, {"/file/", false, "!not a directory"}, {"/no", false, "!no such file"},
		{"/no/no", false, "!no such file"}, {"/dangling", true, "!no such file"}, {"/dangling", false, "dangling"}, {"/out/dir/old", false, "old"}, {"/pipe", false, "pipe"},
	} {
		var stream bytes.Buffer
		source, _, err := FindSource(root, Name(c.path), c.follow)
		if err == nil {
			err = source.Write(&stream)
			source.Dir.Close()
		}
		if part, fails := strings.CutPrefix(c.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want %q", c.path, err, part)
			}
			continue
		}
		var names []string
		for in := tar.NewReader(&stream); err == nil; {
			var h *tar.Header
			if h, err = in.Next(); err == nil {
				names = append(names, h.Name)
			}
		}
		if !errors.Is(err, io.EOF) || strings.Join(names, " ") != c.want {
			t.Errorf("%s: %v, %q, want %q", c.path, err, names, c.want)
		}
	}
	own, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if _, _, err := FindSource(own, Name("/proc/version"), false); err == nil || !strings.Contains(err.Error(), "/proc") {
		t.Errorf("a file of the kernel's: %v", err)
	}
	if _, _, err := FindSource(own, Name("/proc/self/root/etc"), false); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a magic link was followed: %v", err)
	}
}

// TestThere copies a tree with all kinds of files, and back again.
func TestThere(t *testing.T) {
	root, path := machine(t)
	if err := errors.Join(os.Link(filepath.Join(path, "file"), filepath.Join(path, "dir/hard")), os.Symlink("old", filepath.Join(path, "dir/l"))); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(path, "socket")
	if err := syscall.Mknod(socket, syscall.S_IFSOCK|0o600, 0); err != nil {
		t.Fatal(err)
	}
	source, _, err := FindSource(root, Name("/"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Dir.Close()
	var left []string
	source.Warn = func(text string) { left = append(left, text) }
	var stream bytes.Buffer
	if err := source.Write(&stream); err != nil || len(left) != 1 || !strings.Contains(left[0], "socket") {
		t.Fatalf("%v, left out %q", err, left)
	}
	to := t.TempDir()
	dir, err := os.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	target, err := FindTarget(dir, Name("copy"), true, Self)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Dir.Close()
	target.Fifos = true
	if err := target.Read(nil, tar.NewReader(&stream)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "file", "dir", "dir/old", "dir/hard", "dir/l", "link", "flink", "pipe", "loop"} {
		was, err := os.Lstat(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		is, err := os.Lstat(filepath.Join(to, "copy", name))
		if err != nil || is.Mode() != was.Mode() || !is.ModTime().Equal(was.ModTime()) || !is.IsDir() && is.Size() != was.Size() {
			t.Errorf("%q: %v, %v; was %v", name, is, err, was)
		}
	}
	one, _ := os.Stat(filepath.Join(to, "copy/file"))
	two, _ := os.Stat(filepath.Join(to, "copy/dir/hard"))
	if !os.SameFile(one, two) {
		t.Error("the two names of a file are of two files")
	}
}
