// Package image_test tests how the guest image is put together.
package image_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// build makes an image of a stand-in agent in a new directory, with modules, and returns its bytes. The
// kernel's modules and the agent get the time of the call, which must not show.
func build(t *testing.T, umask string) []byte {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	agent := write("agent", "an agent", 0o700)
	write("kernel/modules/b.ko", "module b", 0o644)
	write("kernel/modules/husk-modules", "/lib/modules/b.ko\n", 0o644)
	out := filepath.Join(dir, "out")
	script := fmt.Sprintf("umask %s; exec ./build.sh %s '' %s %s", umask, agent, filepath.Join(dir, "kernel"), out)
	cmd := exec.Command("bash", "-c", script)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the image: %v\n%s", err, text)
	}
	data, err := os.ReadFile(filepath.Join(out, "initrd.img"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// need skips the test where a program that `make setup` installs is missing.
func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("needs %s: make setup installs it", program)
	}
}

func TestSameBytes(t *testing.T) {
	need(t, "crun")
	need(t, "cpio")
	first := build(t, "022")
	time.Sleep(1100 * time.Millisecond) // times in an archive are whole seconds
	if second := build(t, "077"); !bytes.Equal(first, second) {
		t.Errorf("two builds of the same inputs differ: %d and %d bytes", len(first), len(second))
	}
}

func TestContents(t *testing.T) {
	need(t, "crun")
	need(t, "cpio")
	entries := archive(t, build(t, "077"))
	var names []string
	for _, e := range entries {
		names = append(names, e.name)
		if e.uid != 0 || e.gid != 0 || e.mtime != 0 {
			t.Errorf("%s: owner %d:%d, time %d, want 0", e.name, e.uid, e.gid, e.mtime)
		}
	}
	// The device node is an archive of its own at the end.
	if files := names[:len(names)-1]; !slices.IsSorted(files) {
		t.Errorf("the files are not in order: %q", files)
	}
	for _, want := range []struct {
		name string
		mode uint64
		text string
	}{
		{"init", 0o100755, "an agent"},
		{"usr/bin/crun", 0o100755, ""},
		{"lib/modules/b.ko", 0o100644, "module b"},
		{"lib/modules/husk-modules", 0o100644, "/lib/modules/b.ko\n"},
		{"proc", 0o40755, ""},
		{"tmp", 0o41777, ""},
		{"dev/null", 0o20666, ""},
	} {
		at := slices.Index(names, want.name)
		if at < 0 {
			t.Errorf("%s is missing in %q", want.name, names)
			continue
		}
		e := entries[at]
		if e.mode != want.mode || want.text != "" && e.text != want.text {
			t.Errorf("%s: mode %o, text %.20q, want %o, %q", e.name, e.mode, e.text, want.mode, want.text)
		}
		if e.name == "dev/null" && (e.major != 1 || e.minor != 3) {
			t.Errorf("dev/null is device %d:%d, want 1:3", e.major, e.minor)
		}
	}
}

type entry struct {
	name, text                          string
	mode, uid, gid, mtime, major, minor uint64
}

// archive reads concatenated cpio archives of format newc, as the kernel does: a header of 6 bytes and 13
// hexadecimal numbers, the name, the content, each padded to a multiple of four bytes.
func archive(t *testing.T, data []byte) []entry {
	t.Helper()
	var entries []entry
	in := bytes.NewReader(data)
	take := func(n uint64) []byte {
		b := make([]byte, n)
		if _, err := io.ReadFull(in, b); err != nil {
			t.Fatalf("the archive ends too early: %v", err)
		}
		return b
	}
	align := func() { take(uint64(in.Len()) % 4) }
	if len(data)%4 != 0 {
		t.Fatalf("the archive has %d bytes, not a multiple of 4", len(data))
	}
	for in.Len() > 0 {
		if b := take(4); bytes.Equal(b, []byte{0, 0, 0, 0}) {
			continue // between archives
		} else if string(b) != "0707" {
			t.Fatalf("a header begins with %q", b)
		}
		if b := take(2); string(b) != "01" {
			t.Fatalf("the format is %q, not newc", b)
		}
		var n [13]uint64
		for i := range n {
			v, err := strconv.ParseUint(string(take(8)), 16, 32)
			if err != nil {
				t.Fatalf("header: %v", err)
			}
			n[i] = v
		}
		name := strings.TrimSuffix(string(take(n[11])), "\x00")
		align()
		text := string(take(n[6]))
		align()
		if name != "TRAILER!!!" {
			entries = append(entries, entry{name, text, n[1], n[2], n[3], n[5], n[9], n[10]})
		}
	}
	return entries
}
