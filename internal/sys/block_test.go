package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
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
	// A node that is none of the device's is not taken for it.
	for _, other := range []string{"/dev/null", t.TempDir()} {
		if f, err := openBlockNode(other, 7<<8, true); err == nil {
			f.Close()
			t.Errorf("%s passed for a block device", other)
		}
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
