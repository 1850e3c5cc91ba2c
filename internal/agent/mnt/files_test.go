package mnt

import (
	"encoding/binary"
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
	number := uint64(0)
	must := func(all []*agentv1.File) {
		t.Helper()
		number++
		if err := f.Put("conf", number, all); err != nil {
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
	// Who hears of names in the order in which they come finds what is new complete by the time of "..data".
	events, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(events)
	if _, err := syscall.InotifyAddWatch(events, root.Name(), syscall.IN_CREATE|syscall.IN_MOVED_TO|syscall.IN_DELETE); err != nil {
		t.Fatal(err)
	}
	must(version("..2", "two"))
	if got, want := names(t, events), "create ..2, create ..data_tmp, move ..data, delete ..1"; got != want {
		t.Errorf("told of %s, want %s", got, want)
	}
	content("two")
	entries, _ := os.ReadDir(filepath.Join(dir, "conf"))
	if len(entries) != 3 {
		t.Errorf("left %v, want ..2, ..data and key", entries)
	}
	must(version("..2", "two"))
	if got := names(t, events); got != "" {
		t.Errorf("told of %s where there was no change", got)
	}
	if err := f.Put("conf", number-1, version("..3", "overtaken")); err != nil {
		t.Error(err)
	}
	content("two")

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

// names reads what inotify(7) tells of.
func names(t *testing.T, events int) string {
	t.Helper()
	buffer := make([]byte, 4096)
	n, err := syscall.Read(events, buffer)
	if errors.Is(err, syscall.EAGAIN) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for at := 0; at < n; {
		mask, length := binary.NativeEndian.Uint32(buffer[at+4:]), int(binary.NativeEndian.Uint32(buffer[at+12:]))
		what := map[uint32]string{syscall.IN_CREATE: "create", syscall.IN_MOVED_TO: "move", syscall.IN_DELETE: "delete"}[mask&syscall.IN_ALL_EVENTS]
		name, _, _ := strings.Cut(string(buffer[at+16:at+16+length]), "\x00")
		all = append(all, what+" "+name)
		at += 16 + length
	}
	return strings.Join(all, ", ")
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
		if err := f.Put(name, 1, all); err == nil {
			t.Errorf("put %q", name)
		}
	}
	if _, err := os.Lstat(outside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file outside: %v", err)
	}
	// A symlink that is there already leads nowhere either.
	if err := f.Put("later", 1, []*agentv1.File{dirFile("."), symlink("way", filepath.Dir(dir))}); err != nil {
		t.Fatal(err)
	}
	if err := f.Put("later", 1, []*agentv1.File{dirFile("."), symlink("way", filepath.Dir(dir)), regular("way/outside", "x")}); err == nil {
		t.Error("wrote through a symlink")
	}
	if _, err := os.Lstat(outside); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file outside: %v", err)
	}
}
