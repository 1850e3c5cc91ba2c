package image

import (
	"archive/tar"
	"bytes"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"husk.dev/husk/internal/testenv"
)

// madeAt is the time of all entries that name no other.
var madeAt = time.Unix(1_600_000_000, 0)

// entry is one entry of a layer made by a test.
type entry struct {
	tar.Header
	data string
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}}
}

func file(name, data string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}, data: data}
}

func symlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func hardlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

func (e entry) with(change func(*tar.Header)) entry {
	change(&e.Header)
	return e
}

// tarOf makes an uncompressed layer.
func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if e.ModTime.IsZero() {
			e.ModTime = madeAt
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("write header of %q: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatalf("write %q: %v", e.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// layerOf makes a layer compressed in one of the ways that images allow.
func layerOf(t testing.TB, c compression.Compression, entries ...entry) v1.Layer {
	t.Helper()
	data := tarOf(t, entries...)
	opener := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	opts := []tarball.LayerOption{tarball.WithCompression(c), tarball.WithMediaType(types.OCILayer)}
	if c == compression.ZStd {
		opts = append(opts, tarball.WithMediaType(types.OCILayerZStd))
	}
	l, err := tarball.LayerFromOpener(opener, opts...)
	if err != nil {
		t.Fatalf("make layer: %v", err)
	}
	return l
}

func gzipLayer(t testing.TB, entries ...entry) v1.Layer {
	t.Helper()
	return layerOf(t, compression.GZip, entries...)
}

// imageFrom makes an image of layers for this host.
func imageFrom(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		t.Fatalf("append layers: %v", err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	platform, err := parsePlatform("")
	if err != nil {
		t.Fatal(err)
	}
	c.OS, c.Architecture, c.Config = platform.OS, platform.Architecture, config
	c.Created = v1.Time{Time: madeAt}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatalf("set configuration: %v", err)
	}
	return img
}

// newRegistry runs a registry on loopback and returns its address.
func newRegistry(t testing.TB) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(discard)))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// push puts an image or index into a registry.
func push(t testing.TB, ref string, what any) {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(parsed, what)
	case v1.ImageIndex:
		err = remote.WriteIndex(parsed, what)
	default:
		t.Fatalf("push %T", what)
	}
	if err != nil {
		t.Fatalf("push %s: %v", ref, err)
	}
}

// newStore makes a store for a test that unpacks, which needs root and mkfs.erofs.
func newStore(t testing.TB) *Store {
	t.Helper()
	testenv.NeedRoot(t)
	if _, err := findMkfs(); err != nil {
		t.Skip("needs mkfs.erofs (erofs-utils)")
	}
	s, err := Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func pull(t testing.TB, s *Store, ref string, opts PullOptions) Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref, opts)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// mountImage mounts the layers of an image as a guest does, and returns where. It must run in a mount
// namespace of its own.
func mountImage(t *testing.T, img Image) string {
	t.Helper()
	var lower []string
	for _, layer := range img.Layers {
		at := t.TempDir()
		mount(t, "-t", "erofs", "-o", "loop,ro", layer, at)
		lower = append([]string{at}, lower...) // overlayfs wants the topmost first
	}
	if len(lower) == 1 {
		return lower[0]
	}
	root := t.TempDir()
	mount(t, "-t", "overlay", "-o", "ro,lowerdir="+strings.Join(lower, ":"), "overlay", root)
	return root
}

func mount(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Fatalf("mount %q: %v: %s", args, err, out)
	}
	at := args[len(args)-1]
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", at).CombinedOutput(); err != nil {
			t.Errorf("unmount %s: %v: %s", at, err, out)
		}
	})
}

// leftovers are the files of a store that no complete image accounts for.
func leftovers(t testing.TB, s *Store) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"tmp/*", "images/.tmp-*", "locks/" + strings.Repeat("[0-9a-f]", 8) + "*"} {
		names, err := filepath.Glob(filepath.Join(s.Dir(), pattern))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, names...)
	}
	return found
}

func layerFiles(t testing.TB, s *Store) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(s.Dir(), "layers/*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func mustRead(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}
