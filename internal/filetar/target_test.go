package filetar

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// entry is one of a stream: a header, and what follows it.
type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}, data}
}

func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}

func link(kind byte, name, to string) entry {
	return entry{tar.Header{Typeflag: kind, Name: name, Linkname: to, Mode: 0o777}, ""}
}

func packed(t *testing.T, entries ...entry) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

// host is a directory of a machine with something outside of where a stream is unpacked.
type host struct {
	t    *testing.T
	base string // holds secret and in
	in   string // holds what the test puts there; streams come to here
}

func newHost(t *testing.T) *host {
	h := &host{t: t, base: t.TempDir()}
	h.in = filepath.Join(h.base, "in")
	h.write("secret", "untouched")
	if err := os.Mkdir(h.in, 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *host) write(name, data string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.base, name), []byte(data), 0o600); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) symlink(to, name string) {
	h.t.Helper()
	if err := os.Symlink(to, filepath.Join(h.base, name)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) read(name string) string {
	h.t.Helper()
	data, err := os.ReadFile(filepath.Join(h.base, name))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(data)
}

// unpack has a stream come as "got", and change the target first where change is given.
func (h *host) unpack(stream io.Reader, change func(*Target)) error {
	h.t.Helper()
	root, err := os.OpenRoot(h.in)
	if err != nil {
		h.t.Fatal(err)
	}
	defer root.Close()
	target := &Target{Dir: root, First: "name", As: "got"}
	if change != nil {
		change(target)
	}
	return target.Read(nil, tar.NewReader(stream))
}

// clean checks that nothing has come out of in, and that nothing half is in it.
func (h *host) clean() {
	h.t.Helper()
	if got := h.read("secret"); got != "untouched" {
		h.t.Errorf("what is outside says %q", got)
	}
	outside, err := os.ReadDir(h.base)
	if err != nil || len(outside) != 2 {
		h.t.Errorf("outside are %v, %v", outside, err)
	}
	_ = filepath.WalkDir(h.in, func(path string, _ fs.DirEntry, _ error) error {
		if strings.Contains(path, ".husk-cp-") {
			h.t.Errorf("%s is left", path)
		}
		return nil
	})
}

// TestHostile unpacks what a guest may send that is not the agent's any more.
func TestHostile(t *testing.T) {
	long := strings.Repeat("n/", MaxName/2) + "n"
	for name, c := range map[string]struct {
		entries []entry
		want    string // part of the error
	}{
		"another name":             {[]entry{file("other", "x")}, "only \"name\" was asked for"},
		"another name that begins": {[]entry{dir("name"), file("names", "x")}, "only \"name\""},
		"an absolute name":         {[]entry{file("/name", "x")}, "leads out"},
		"an absolute name outside": {[]entry{file("/etc/passwd", "x")}, "leads out"},
		"a parent":                 {[]entry{dir("name"), file("name/../../secret", "x")}, "leads out"},
		"a parent at the end":      {[]entry{dir("name"), dir("name/..")}, "leads out"},
		"below a symlink":          {[]entry{dir("name"), link(tar.TypeSymlink, "name/l", "../.."), file("name/l/secret", "x")}, "not a directory"},
		"below an absolute one":    {[]entry{dir("name"), link(tar.TypeSymlink, "name/l", "/"), file("name/l/tmp/x", "x")}, "not a directory"},
		"below one to itself":      {[]entry{link(tar.TypeSymlink, "name", "."), file("name/x", "x")}, "not a directory"},
		"a directory for a link":   {[]entry{dir("name"), link(tar.TypeSymlink, "name/l", "../.."), dir("name/l")}, "a file, which a directory does not replace"},
		"a link out":               {[]entry{dir("name"), link(tar.TypeLink, "name/h", "name/../../secret")}, "leads out"},
		"an absolute link":         {[]entry{dir("name"), link(tar.TypeLink, "name/h", "/secret")}, "leads out"},
		"a link to another name":   {[]entry{dir("name"), link(tar.TypeLink, "name/h", "mine")}, "only \"name\""},
		"a link below a symlink":   {[]entry{dir("name"), link(tar.TypeSymlink, "name/l", "../.."), link(tar.TypeLink, "name/h", "name/l/secret")}, "not a directory"},
		"a link to a symlink":      {[]entry{dir("name"), link(tar.TypeSymlink, "name/l", "../../secret"), link(tar.TypeLink, "name/h", "name/l")}, "no file"},
		"a link to a directory":    {[]entry{dir("name"), dir("name/d"), link(tar.TypeLink, "name/h", "name/d")}, "no file"},
		"a file for a directory":   {[]entry{dir("name"), file("name", "x")}, "which a file does not replace"},
		"an unknown kind":          {[]entry{{tar.Header{Typeflag: 'Z', Name: "name"}, ""}}, "unknown kind"},
		"a long name":              {[]entry{file("name/"+long, "x")}, "more than 4096 bytes"},
		"a long link":              {[]entry{link(tar.TypeSymlink, "name", long)}, "more than 4096 bytes"},
		"an unreal time":           {[]entry{{tar.Header{Typeflag: tar.TypeDir, Name: "name", ModTime: time.Unix(1<<62, 0), Format: tar.FormatPAX}, ""}}, ""},
		"a sparse file":            {nil, "sparse"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			h.write("in/mine", "mine")
			stream := packed(t, c.entries...)
			if c.entries == nil { // the writer makes none
				stream = sparseStream(t)
			}
			err := h.unpack(stream, nil)
			if err == nil && c.want != "" || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			h.clean()
			if got := h.read("in/mine"); got != "mine" {
				t.Errorf("the user's file says %q", got)
			}
		})
	}
}

// sparseStream has a file of 1 EiB of nothing, in the old form of GNU tar.
func sparseStream(t *testing.T) *bytes.Buffer {
	t.Helper()
	stream := packed(t, entry{tar.Header{Typeflag: tar.TypeReg, Name: "name", Mode: 0o644, Format: tar.FormatGNU}, ""})
	b := stream.Bytes()
	b[156] = tar.TypeGNUSparse
	copy(b[386:], "00000000000\x0000000000000\x00")                 // one part, of no bytes
	copy(b[483:], []byte{0x80, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0}) // its size, base 256
	sum := 0
	copy(b[148:156], "        ")
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], []byte(octal(sum)))
	return stream
}

func octal(n int) string {
	const digits = "01234567"
	out := []byte("000000\x00 ")
	for i := 5; i >= 0; i-- {
		out[i], n = digits[n&7], n>>3
	}
	return string(out)
}

func TestTruncated(t *testing.T) {
	h := newHost(t)
	h.write("in/got", "before")
	stream := packed(t, file("name", strings.Repeat("x", 100_000)))
	err := h.unpack(io.LimitReader(stream, 50_000), nil)
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
	if got := h.read("in/got"); got != "before" {
		t.Errorf("the file that was there says %.20q", got)
	}
	h.clean()
}

// TestUserSymlinks: what is copied does not go through symlinks that the user has below the destination.
func TestUserSymlinks(t *testing.T) {
	h := newHost(t)
	if err := os.Mkdir(filepath.Join(h.in, "got"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.symlink("../../secret", "in/got/l")
	if err := h.unpack(packed(t, dir("name"), file("name/l", "mine")), nil); err != nil {
		t.Fatal(err)
	}
	h.clean()
	info, err := os.Lstat(filepath.Join(h.in, "got/l"))
	if err != nil || !info.Mode().IsRegular() || h.read("in/got/l") != "mine" {
		t.Errorf("%v, %v: want a file in the symlink's place", info, err)
	}
	if info, err := os.Stat(filepath.Join(h.in, "got")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v: a directory that was there has changed", info, err)
	}
}

func TestAttributes(t *testing.T) {
	then := time.Date(2020, 1, 2, 3, 4, 5, 6_000_000, time.UTC)
	at := func(e entry, mode int64) entry {
		e.ModTime, e.Mode, e.Format = then, mode, tar.FormatPAX
		return e
	}
	entries := []entry{
		at(dir("name"), 0o500), at(dir("name/d"), 0o2755), at(file("name/d/f", ""), 0o4751), at(link(tar.TypeSymlink, "name/l", "/nowhere"), 0o777),
		link(tar.TypeLink, "name/h", "name/d/f"),
	}
	for _, keep := range []bool{false, true} {
		h := newHost(t)
		if err := h.unpack(packed(t, entries...), func(t *Target) { t.SetID = keep }); err != nil {
			t.Fatal(err)
		}
		want := map[string]fs.FileMode{"": 0o500 | fs.ModeDir, "d": 0o755 | fs.ModeDir, "d/f": 0o751, "h": 0o751, "l": 0o777 | fs.ModeSymlink}
		if keep {
			want["d"], want["d/f"], want["h"] = want["d"]|fs.ModeSetgid, want["d/f"]|fs.ModeSetuid, want["h"]|fs.ModeSetuid
		}
		for name, mode := range want {
			info, err := os.Lstat(filepath.Join(h.in, "got", name))
			if err != nil || info.Mode() != mode || !info.ModTime().Equal(then) {
				t.Errorf("set-id kept %v: %q is %v of %v, %v; want %v of %v", keep, name, info.Mode(), info.ModTime(), err, mode, then)
			}
		}
		h.clean()
	}
}

// TestSpecial: devices and pipes come only where they are asked for.
func TestSpecial(t *testing.T) {
	entries := []entry{dir("name"), {tar.Header{Typeflag: tar.TypeFifo, Name: "name/p", Mode: 0o640}, ""},
		{tar.Header{Typeflag: tar.TypeChar, Name: "name/c", Mode: 0o666, Devmajor: 1, Devminor: 3}, ""},
		{tar.Header{Typeflag: tar.TypeBlock, Name: "name/b", Mode: 0o666, Devmajor: 8}, ""}}
	h := newHost(t)
	var left []string
	err := h.unpack(packed(t, entries...), func(t *Target) {
		t.Fifos, t.Warn = true, func(text string) { left = append(left, text) }
	})
	if err != nil || len(left) != 2 || !strings.Contains(left[0], `"name/c"`) || !strings.Contains(left[1], `"name/b"`) {
		t.Errorf("%v, left out %q", err, left)
	}
	info, err := os.Lstat(filepath.Join(h.in, "got/p"))
	if err != nil || info.Mode() != fs.ModeNamedPipe|0o640 {
		t.Errorf("%v, %v: want a pipe", info, err)
	}
	for _, name := range []string{"c", "b"} {
		if _, err := os.Lstat(filepath.Join(h.in, "got", name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := h.unpack(packed(t, file("name", "x")), func(t *Target) { t.As = "got/p" }); err == nil || !strings.Contains(err.Error(), "not replaced") {
		t.Errorf("a file for a pipe: %v", err)
	}
}

// TestAny unpacks what tar programs make.
func TestAny(t *testing.T) {
	h := newHost(t)
	if err := os.Mkdir(filepath.Join(h.in, "usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.symlink("usr", "in/bin")
	h.symlink("/", "in/out")
	all := func(t *Target) { t.First, t.As, t.Any = Self, Self, true }
	err := h.unpack(packed(t, dir("./"), file("./a", "1"), file("/b/c", "2"), dir("bin"), file("bin/d", "3")), all)
	if err != nil || h.read("in/a")+h.read("in/b/c")+h.read("in/usr/d") != "123" {
		t.Error(err)
	}
	for _, name := range []string{"../x", "a/../../x", "out/x"} {
		if err := h.unpack(packed(t, file(name, "x")), all); err == nil {
			t.Errorf("%s was unpacked", name)
		}
	}
	h.clean()
}

func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a small file system")
	}
	h := newHost(t)
	if err := syscall.Mount("husk", h.in, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Unmount(h.in, 0); err != nil {
			t.Error(err)
		}
	}()
	err := h.unpack(packed(t, file("name", strings.Repeat("x", 1<<20))), nil)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v", err)
	}
	if all, err := os.ReadDir(h.in); err != nil || len(all) > 0 {
		t.Errorf("%v, %v are left", all, err)
	}
}

func TestRelay(t *testing.T) {
	var out bytes.Buffer
	n, err := Relay(&out, tar.NewReader(packed(t, dir("name"), file("name/a", "12345"), link(tar.TypeLink, "name/b", "name/a"))), "name")
	if err != nil || n != 5 {
		t.Errorf("%d bytes, %v", n, err)
	}
	h := newHost(t)
	if err := h.unpack(&out, nil); err != nil || h.read("in/got/b") != "12345" {
		t.Error(err)
	}
	for _, bad := range []entry{file("/name", ""), file("name/../x", ""), file("x", ""), link(tar.TypeLink, "name/l", "/x")} {
		if _, err := Relay(io.Discard, tar.NewReader(packed(t, dir("name"), bad)), "name"); !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", bad.Name, err)
		}
	}
}
