package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"husk.dev/husk/internal/testenv"
)

var someLimits = Limits{Files: 100, Bytes: 1000}

// told lists files by path and content.
func told(all []File) string {
	var b strings.Builder
	for _, f := range all {
		fmt.Fprintf(&b, "%s=%s ", f.Path, f.Content)
	}
	return b.String()
}

func TestFiles(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	dir := t.TempDir()
	version := func(name, content string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name, "key"), content)
		if err := os.Symlink(name, filepath.Join(dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("..1", "one")
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	changes := make(chan struct{}, 100)
	stop, err := f.Follow(func() { changes <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	all, err := f.Read(someLimits)
	if want := ".= ..1= ..1/key=one ..data=..1 away=/etc/passwd "; err != nil || told(all) != want {
		t.Errorf("read %q, %v; want %q", told(all), err, want)
	}
	if all[2].Mode != syscall.S_IFREG|0o644 || all[0].Mode&syscall.S_IFMT != syscall.S_IFDIR {
		t.Errorf("modes %o of a file and %o of a directory", all[2].Mode, all[0].Mode)
	}
	version("..2", "two")
	<-changes
	if all, err = f.Read(someLimits); err != nil || !strings.Contains(told(all), "..2/key=two ..data=..2") {
		t.Errorf("after a change read %q, %v", told(all), err)
	}
	stop()

	for what, limits := range map[string]Limits{"files": {Files: 3, Bytes: 1000}, "bytes": {Files: 100, Bytes: 5}} {
		if all, err := f.Read(limits); err == nil {
			t.Errorf("with too many %s read %q", what, told(all))
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	if all, err := f.Read(someLimits); err == nil {
		t.Errorf("with a pipe read %q", told(all))
	}
}

// TestFilesLetGo has whoever mounted the directory unmount it while it is open.
func TestFilesLetGo(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stop, err := f.Follow(func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if err := syscall.Unmount(dir, 0); err != nil {
		t.Errorf("unmount: %v", err)
	}
	if _, err := f.Read(someLimits); err != nil {
		t.Errorf("read what is mounted nowhere: %v", err)
	}
	if _, err := OpenFiles(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open what is not there: %v", err)
	}
}
