package mnt

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/testenv"
)

func dirFile(path string) *agentv1.File {
	return &agentv1.File{Path: path, Mode: syscall.S_IFDIR | 0o755, Uid: 7, Gid: 8}
}

func regular(path, content string) *agentv1.File {
	return &agentv1.File{
		Path: path, Mode: syscall.S_IFREG | 0o640, Uid: 7, Gid: 9, Content: []byte(content),
		ModifiedUnixNanos: time.Unix(1000, 5).UnixNano(),
	}
}

func symlink(path, target string) *agentv1.File {
	return &agentv1.File{Path: path, Mode: syscall.S_IFLNK | 0o777, Content: []byte(target)}
}

// version is a directory as the kubelet makes it.
func version(name, content string) []*agentv1.File {
	return []*agentv1.File{
		dirFile("."), dirFile(name), regular(name+"/key", content), symlink("..data", name), symlink("key", "..data/key"),
	}
}

func TestPutFiles(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	dir := filepath.Join(t.TempDir(), "files")
	f := NewFiles(dir)
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	must := func(all []*agentv1.File) {
		t.Helper()
		if err := f.Put("conf", all); err != nil {
			t.Fatal(err)
		}
	}
	must(version("..1", "one"))
	key := filepath.Join(dir, "conf/key")
	content := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(key); err != nil || string(got) != want {
			t.Errorf("key holds %q, %v; want %q", got, err, want)
		}
	}
	content("one")
	info, err := os.Stat(key)
	if err != nil {
		t.Fatal(err)
	}
	if mode, uid, gid := sys.Ownership(info); mode != syscall.S_IFREG|0o640 || uid != 7 || gid != 9 || !info.ModTime().Equal(time.Unix(1000, 5)) {
		t.Errorf("key has mode %o, owner %d, group %d and time %v", mode, uid, gid, info.ModTime())
	}

	root, err := os.Open(filepath.Join(dir, "conf"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	// A change is there as a whole when the first that it changes is told of; the same again is no change.
	seen := make(chan string, 100)
	stop, err := sys.FollowDir(root, func() {
		data, _ := os.ReadFile(key)
		seen <- string(data)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	must(version("..2", "two"))
	if got := <-seen; got != "two" {
		t.Errorf("when the change was told of the key held %q", got)
	}
	content("two")
	entries, _ := os.ReadDir(filepath.Join(dir, "conf"))
	if len(entries) != 3 {
		t.Errorf("left %v, want ..2, ..data and key", entries)
	}
	const quiet = 100 * time.Millisecond // what is told of comes much sooner
	time.Sleep(quiet)
	for len(seen) > 0 {
		<-seen
	}
	must(version("..2", "two"))
	time.Sleep(quiet)
	if len(seen) > 0 {
		t.Error("a change was told of where there was none")
	}

	// Anything may take the place of anything.
	must([]*agentv1.File{dirFile("."), regular("..2", "a file now"), dirFile("key"), regular("key/in", "x"), regular("..data", "y")})
	must([]*agentv1.File{dirFile("."), symlink("..2", "key"), regular("key", "three")})
	content("three")
	must([]*agentv1.File{dirFile("."), regular("key", "four")})
	content("four")
	must([]*agentv1.File{dirFile(".")})
	if _, err := os.Lstat(key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the last file is still there: %v", err)
	}
}

func TestPutFilesInvalid(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	dir := filepath.Join(t.TempDir(), "files")
	f := NewFiles(dir)
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	outside := filepath.Join(filepath.Dir(dir), "outside")
	for name, all := range map[string][]*agentv1.File{
		"nothing": nil, "no directory": {regular("a", "")}, "above": {dirFile("."), regular("../outside", "x")}, "absolute": {dirFile("."), regular(outside, "x")},
		"by a symlink": {dirFile("."), symlink("way", filepath.Dir(dir)), regular("way/outside", "x")},
		"a device":     {dirFile("."), {Path: "null", Mode: syscall.S_IFCHR | 0o666}}, "no parent": {dirFile("."), regular("a/b", "x")},
		"not clean": {dirFile("."), regular("a/../b", "x")}, "too many": make([]*agentv1.File, maxFiles+1),
		"..": {dirFile(".")}, "a/b": {dirFile(".")}, "": {dirFile(".")}, strings.Repeat("n", maxTag+1): {dirFile(".")},
	} {
		if err := f.Put(name, all); err == nil {
			t.Errorf("put %q", name)
		}
	}
	if _, err := os.Lstat(outside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file outside: %v", err)
	}
	// A symlink that is there already leads nowhere either.
	if err := f.Put("later", []*agentv1.File{dirFile("."), symlink("way", filepath.Dir(dir))}); err != nil {
		t.Fatal(err)
	}
	if err := f.Put("later", []*agentv1.File{dirFile("."), symlink("way", filepath.Dir(dir)), regular("way/outside", "x")}); err == nil {
		t.Error("wrote through a symlink")
	}
	if _, err := os.Lstat(outside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file outside: %v", err)
	}
}
