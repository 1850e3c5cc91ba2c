package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"husk.dev/husk/internal/testenv"
)

var discard = log.New(io.Discard, "", 0)

// capNetRaw is a security.capability attribute: cap_net_raw=ep.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// overlayLayers are layers that use all of what a layer may hold.
func overlayLayers(t *testing.T) []v1.Layer {
	owner := func(uid, gid int) func(*tar.Header) {
		return func(h *tar.Header) { h.Uid, h.Gid = uid, gid }
	}
	note := func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "hello"} }
	base := gzipLayer(t,
		dir(".", 0o751).with(owner(3, 4)),
		dir("etc", 0o755), file("etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:33:44::/srv:/bin/sh\n"),
		file("etc/group", "root:x:0:\nweb:x:44:\nextra:x:55:web\n"),
		dir("tmp", 0o1777), dir("shared", 0o2775).with(owner(0, 50)),
		file("bin/su", "su").with(func(h *tar.Header) { h.Mode = 0o4755 }),
		file("bin/ping", "ping").with(func(h *tar.Header) {
			h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capNetRaw}
		}),
		file("data/owned", "mine").with(owner(12345, 70000)).with(note),
		file("data/a", "linked"), hardlink("data/b", "data/a"),
		symlink("data/abs", "/etc/passwd"), symlink("data/dangling", "../../nowhere"),
		entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
		entry{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "dev/disk", Mode: 0o600, Devmajor: 300, Devminor: 70000}},
		entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "dev/pipe", Mode: 0o600}},
		dir("opt/app", 0o710).with(owner(7, 8)).with(func(h *tar.Header) { h.ModTime = time.Unix(1_500_000_000, 0) }),
		file("opt/app/old", "old"),
		file("gone", "x"), file("full/1", "1"), file("full/2", "2"),
		dir("remade", 0o700), file("remade/before", "x"),
		file("was-dir/x", "x"), file("was-file", "x"),
		file("odd\nname", "newline"), file("odd name\xff", "not UTF-8"),
		file("big", strings.Repeat("0123456789abcdef", 20_000)),
	)
	changes := layerOf(t, compression.ZStd,
		file("opt/app/new", "new"), // its parents are implied
		file(".wh.gone", ""),
		file("full/3", "3"), file("full/.wh..wh..opq", ""), // the mark comes after the content
		file(".wh.remade", ""), dir("remade", 0o750), file("remade/after", "y"),
		file(".wh.was-dir", ""), file("was-dir", "a file now"),
		dir("was-file", 0o755), file("was-file/x", "a directory now"),
		file("etc/.wh..wh.aufs", "aufs"), file(".wh..wh.plnk/1.2", "aufs"),
	)
	top := layerOf(t, compression.None, file("top", "uncompressed"), file("opt/app/.wh.old", ""))
	return []v1.Layer{base, changes, top}
}

// TestLayersMount mounts what was pulled with the kernel's EROFS and overlayfs, and looks.
func TestLayersMount(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	for _, most := range []int{0, 2, 1} { // layers as they are; the two lowest merged; all merged
		t.Run(fmt.Sprintf("at most %d files", most), func(t *testing.T) {
			s := newStore(t)
			addr := newRegistry(t)
			push(t, addr+"/all:1", imageFrom(t, v1.Config{}, overlayLayers(t)...))
			img := pull(t, s, addr+"/all:1", PullOptions{MaxLayers: most})
			if want := map[int]int{0: 3, 2: 2, 1: 1}[most]; len(img.Layers) != want {
				t.Fatalf("%d layer files, want %d", len(img.Layers), want)
			}
			checkTree(t, mountImage(t, img))
			if got := leftovers(t, s); len(got) > 0 {
				t.Errorf("left over: %q", got)
			}
		})
	}
}

// checkTree checks the tree that overlayLayers make.
func checkTree(t *testing.T, root string) {
	t.Helper()
	for name, want := range map[string]string{
		"":            "drwxr-x--x 3:4 1600000000",
		"etc":         "drwxr-xr-x 0:0 1600000000",
		"tmp":         "dtrwxrwxrwx 0:0 1600000000",
		"shared":      "dgrwxrwxr-x 0:50 1600000000",
		"bin":         "drwxr-xr-x 0:0 0",
		"bin/su":      "urwxr-xr-x 0:0 1600000000",
		"data/owned":  "-rw-r--r-- 12345:70000 1600000000",
		"dev/null":    "Dcrw-rw-rw- 0:0 1600000000 1:3",
		"dev/disk":    "Drw------- 0:0 1600000000 300:70000",
		"dev/pipe":    "prw------- 0:0 1600000000",
		"opt/app":     "drwx--x--- 7:8 1500000000",
		"opt/app/new": "-rw-r--r-- 0:0 1600000000",
		"remade":      "drwxr-x--- 0:0 1600000000",
		"was-dir":     "-rw-r--r-- 0:0 1600000000",
		"was-file":    "drwxr-xr-x 0:0 1600000000",
		"gone":        "absent", "opt/app/old": "absent", "remade/before": "absent",
		"full/1": "absent", "etc/.wh..wh.aufs": "absent", ".wh..wh.plnk": "absent",
	} {
		if got := describe(t, filepath.Join(root, name)); got != want {
			t.Errorf("/%s is %q, want %q", name, got, want)
		}
	}
	for name, want := range map[string]string{
		"full/3": "3", "remade/after": "y", "was-dir": "a file now", "was-file/x": "a directory now",
		"data/b": "linked", "top": "uncompressed", "odd\nname": "newline", "odd name\xff": "not UTF-8",
		"big": strings.Repeat("0123456789abcdef", 20_000),
	} {
		if got := mustRead(t, filepath.Join(root, name)); got != want {
			t.Errorf("/%s holds %.40q, want %.40q", name, got, want)
		}
	}
	for name, want := range map[string][]string{"full": {"3"}, "remade": {"after"}, "opt/app": {"new"}} {
		if got := names(t, filepath.Join(root, name)); !slices.Equal(got, want) {
			t.Errorf("/%s holds %q, want %q", name, got, want)
		}
	}
	for _, c := range []struct{ name, attr, want string }{
		{"bin/ping", "security.capability", capNetRaw}, {"data/owned", "user.note", "hello"},
	} {
		value := make([]byte, 64)
		n, err := syscall.Getxattr(filepath.Join(root, c.name), c.attr, value)
		if err != nil || string(value[:max(n, 0)]) != c.want {
			t.Errorf("attribute %s of /%s is %q (%v), want %q", c.attr, c.name, value[:max(n, 0)], err, c.want)
		}
	}
	a, b := lstat(t, filepath.Join(root, "data/a")), lstat(t, filepath.Join(root, "data/b"))
	if a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("/data/a and /data/b: inodes %d and %d, %d links; want one inode with 2", a.Ino, b.Ino, a.Nlink)
	}
	if target, err := os.Readlink(filepath.Join(root, "data/abs")); target != "/etc/passwd" {
		t.Errorf("/data/abs leads to %q (%v)", target, err)
	}
}

// describe is type, mode, owner, time and device of a file in one line.
func describe(t *testing.T, path string) string {
	t.Helper()
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "absent"
	}
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	line := fmt.Sprintf("%v %d:%d %d", fi.Mode(), st.Uid, st.Gid, st.Mtim.Sec)
	if fi.Mode()&fs.ModeDevice != 0 {
		line += fmt.Sprintf(" %d:%d", st.Rdev>>8&0xfff, st.Rdev&0xff|st.Rdev>>12&0xfff00)
	}
	return line
}

func lstat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t)
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}
