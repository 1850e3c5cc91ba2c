package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenBlock(t *testing.T) {
	if f, _, err := OpenBlock(511, 1<<19, true, "/dev/null"); !errors.Is(err, ErrNotBlock) {
		t.Errorf("a number without a device: %v, %v", f, err)
	}
	all, err := filepath.Glob("/sys/dev/block/*")
	if err != nil || len(all) == 0 {
		t.Skip("this machine has no block device")
	}
	var major, minor int64
	if _, err := fmt.Sscanf(filepath.Base(all[0]), "%d:%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	f, onlyRead, err := OpenBlock(major, minor, true)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, ErrNotBlock) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !onlyRead {
		t.Error("opened for reading, and not told so")
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Error("it can be written to")
	}
}

// TestOpenBlockNode opens nothing but the device: not what is in its place, which a socket would refuse in other words,
// and not what a link leads to.
func TestOpenBlockNode(t *testing.T) {
	dir := t.TempDir()
	socket, link := filepath.Join(dir, "socket"), filepath.Join(dir, "link")
	node, missing := filepath.Join(dir, "node"), filepath.Join(dir, "missing")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Symlink(node, link); err != nil {
		t.Fatal(err)
	}
	const number = 7 << 8                                       // the first loop device
	made := unix.Mknod(node, unix.S_IFBLK|0o600, number) == nil // for root
	for _, other := range []string{"/dev/null", dir, socket, link} {
		f, err := openFirst([]string{missing, other, node}, number, true)
		if err == nil || !strings.Contains(err.Error(), other+" is another device") {
			t.Errorf("%s for a block device: %v, %v", other, f, err)
		}
	}
	if f, err := openFirst([]string{missing}, number, true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a node that is missing: %v, %v", f, err)
	}
	if !made {
		t.Skip("may not make device nodes")
	}
	if f, err := openBlockNode(node, number+1, true); err == nil {
		f.Close()
		t.Error("one device passed for another")
	}
	f, err := openFirst([]string{missing, node}, number, true)
	if err != nil {
		t.Skip(err) // no such device, or not for us
	}
	defer f.Close()
	if f.Name() != node {
		t.Errorf("%s is named %s", node, f.Name())
	}
}

func TestCopyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	other, err := CopyFile(f)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := errors.Join(f.Close(), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 7)
	if _, err := other.ReadAt(text, 0); err != nil || string(text) != "content" {
		t.Errorf("read %q, %v", text, err)
	}
}

func TestMarkFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if Marked(f.Name(), "husk.test") {
		t.Error("marked from the start")
	}
	for _, want := range []bool{true, false} {
		fresh, err := MarkFile(f, "husk.test")
		if err != nil {
			t.Skip(err) // not root, or a file system without such attributes
		}
		if fresh != want {
			t.Errorf("marking it is new: %v, want %v", fresh, want)
		}
	}
	if !Marked(f.Name(), "husk.test") || Marked(f.Name(), "husk.other") {
		t.Error("the mark is not found, or another is")
	}
	if err := UnmarkFile(f, "husk.test"); err != nil || Marked(f.Name(), "husk.test") {
		t.Errorf("the mark is still there: %v", err)
	}
}
