package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestHostileLayers unpacks layers that try to reach out of their directory, beside a canary that they
// know the path of. They may fail or be tamed, but the canary must stay as it is and stay out.
func TestHostileLayers(t *testing.T) {
	outside := t.TempDir()
	canary := filepath.Join(outside, "canary")
	up := strings.Repeat("../", 20)
	reset := func() *syscall.Stat_t {
		if err := os.WriteFile(canary, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		return lstat(t, canary)
	}
	reset()
	for what, entries := range map[string][]entry{
		"path":             {file(up+canary[1:], "evil")},
		"absolute path":    {file(canary, "evil")},
		"link, then in it": {symlink("l", outside), file("l/canary", "evil")},
		"relative link":    {symlink("l", up+outside[1:]), file("l/canary", "evil")},
		"link to link":     {symlink("a", outside), symlink("b", "a"), file("b/canary", "evil")},
		"link for a directory": {dir("d", 0o755), file("d/x", ""), symlink("d", outside),
			file("d/canary", "evil")},
		"hard link":              {hardlink("h", canary)},
		"hard link up":           {hardlink("h", up+canary[1:])},
		"hard link through link": {symlink("l", outside), hardlink("h", "l/canary"), file("h", "evil")},
		"delete":                 {symlink("l", outside), file("l/.wh.canary", "")},
		"delete later":           {dir("l", 0o755), file("l/.wh.canary", ""), symlink("l", outside)},
		"delete up":              {file(".wh..", ""), file("x/.wh...", "")},
		"hide":                   {symlink("l", outside), file("l/.wh..wh..opq", "")},
		"hide later":             {dir("l", 0o755), file("l/.wh..wh..opq", ""), symlink("l", outside)},
		"directory":              {symlink("l", outside), dir("l", 0o777)},
		"device in link": {symlink("l", outside), entry{Header: tar.Header{
			Typeflag: tar.TypeChar, Name: "l/device", Mode: 0o666, Devmajor: 1, Devminor: 1}}},
	} {
		t.Run(what, func(t *testing.T) {
			before := reset()
			s, addr := newStore(t), newRegistry(t)
			push(t, addr+"/evil", imageFrom(t, v1.Config{}, gzipLayer(t, file("base", "")), gzipLayer(t, entries...)))
			img, err := s.Pull(t.Context(), addr+"/evil", PullOptions{})
			t.Logf("pull: %v", err)
			after := lstat(t, canary)
			if mustRead(t, canary) != "secret" || after.Ino != before.Ino || after.Nlink != 1 || after.Mode != before.Mode {
				t.Errorf("the canary was reached")
			}
			if got := names(t, outside); len(got) != 1 {
				t.Errorf("outside holds %q, want the canary alone", got)
			}
			if n, err := syscall.Getxattr(outside, xattrOpaque, nil); err == nil {
				t.Errorf("outside has an attribute of %d bytes", n)
			}
			if err == nil {
				for _, layer := range img.Layers {
					if strings.Contains(mustRead(t, layer), "secret") {
						t.Errorf("the canary is in the image")
					}
				}
			}
			if got := leftovers(t, s); len(got) > 0 {
				t.Errorf("left over: %q", got)
			}
		})
	}
}

// TestTrustedAttributesAreDropped keeps a layer from speaking to overlayfs in its own tongue.
func TestTrustedAttributesAreDropped(t *testing.T) {
	s, addr := newStore(t), newRegistry(t)
	redirect := func(h *tar.Header) {
		h.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.kept": "y"}
	}
	push(t, addr+"/x", imageFrom(t, v1.Config{}, gzipLayer(t, dir(".", 0o755).with(redirect), dir("d", 0o755).with(redirect))))
	v, err := openView(pull(t, s, addr+"/x", PullOptions{}).Layers)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	for _, name := range []string{".", "d"} {
		a, ok := v.lookup(name)
		if len(a.xattrs) != 1 || a.xattrs["user.kept"] != "y" {
			t.Errorf("%s: found %v, attributes %q; want user.kept alone", name, ok, a.xattrs)
		}
	}
}

func TestLimits(t *testing.T) {
	s, addr := newStore(t), newRegistry(t)
	zeros := file("zeros", strings.Repeat("\x00", 8<<20))
	push(t, addr+"/bomb", imageFrom(t, v1.Config{}, gzipLayer(t, zeros)))
	push(t, addr+"/two", imageFrom(t, v1.Config{}, gzipLayer(t, file("a", strings.Repeat("a", 3<<20))), gzipLayer(t, file("b", strings.Repeat("b", 3<<20)))))
	var many []entry
	for i := range 200 {
		many = append(many, dir(fmt.Sprintf("d%d", i), 0o755))
	}
	push(t, addr+"/many", imageFrom(t, v1.Config{}, gzipLayer(t, many...)))
	for _, c := range []struct {
		ref    string
		limits Limits
		want   error
	}{
		{"/bomb", Limits{Bytes: 1 << 20}, ErrTooLarge},
		{"/two", Limits{Bytes: 4 << 20}, ErrTooLarge},
		{"/many", Limits{Entries: 100}, ErrTooLarge},
		{"/bomb", Limits{}, nil}, {"/two", Limits{}, nil}, {"/many", Limits{}, nil},
	} {
		_, err := s.Pull(t.Context(), addr+c.ref, PullOptions{Limits: c.limits})
		if !errors.Is(err, c.want) {
			t.Errorf("pull %s with limits %+v: %v, want %v", c.ref, c.limits, err, c.want)
		}
		if got := leftovers(t, s); len(got) > 0 {
			t.Errorf("left over: %q", got)
		}
	}
}

// TestSparseBomb unpacks a tar of some KiB that holds, by its header, a file of 8 TiB.
func TestSparseBomb(t *testing.T) {
	s := newStore(t)
	data := tarOf(t, file("hole", "").with(func(h *tar.Header) { h.Format = tar.FormatGNU }))
	// The old GNU form: type S, the map of data at 386, the real size at 483; see tar(5).
	hdr := data[:512]
	hdr[156] = 'S'
	const huge = "\x80\x00\x00\x00\x00\x00\x08\x00\x00\x00\x00\x00" // 8 TiB, in base 256: too large for octal
	copy(hdr[386:], huge+"00000000000\x00")
	copy(hdr[483:], huge)
	copy(hdr[148:156], "        ")
	sum := 0
	for _, b := range hdr {
		sum += int(b)
	}
	copy(hdr[148:156], fmt.Sprintf("%06o\x00 ", sum))
	path := filepath.Join(t.TempDir(), "bomb.tar")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Import(t.Context(), path, "bomb", ImportOptions{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("%v, want ErrTooLarge", err)
	}
	if got := append(leftovers(t, s), layerFiles(t, s)...); len(got) > 0 {
		t.Errorf("left over: %q", got)
	}
}
