package image

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

func smallImage(t testing.TB, marker string) v1.Image {
	t.Helper()
	return imageFrom(t, v1.Config{Env: []string{"A=1"}, Cmd: []string{"/bin/sh"}, User: "web", StopSignal: "SIGINT"},
		gzipLayer(t, file("etc/passwd", "web:x:33:44::/srv:/bin/sh\n"), file("etc/group", "extra:x:55:web\n")),
		gzipLayer(t, file("marker", marker)))
}

// content reads a file of an image without mounting it.
func content(t testing.TB, img Image, name string) string {
	t.Helper()
	v, err := openView(img.Layers)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	data, err := v.readFile(name, 1<<20)
	if err != nil {
		t.Fatalf("read %s of the image: %v", name, err)
	}
	return string(data)
}

func TestPullFromRegistry(t *testing.T) {
	s, addr := newStore(t), newRegistry(t)
	made := smallImage(t, "one")
	push(t, addr+"/team/app:v1", made)
	var phases []string
	img := pull(t, s, addr+"/team/app:v1", PullOptions{Progress: func(p Progress) {
		if entry := fmt.Sprintf("%d %s", p.Layer, p.Phase); !slices.Contains(phases, entry) {
			phases = append(phases, entry)
		}
	}})
	id, _ := made.ConfigName()
	digest, _ := made.Digest()
	if img.ID != id.String() || img.Digest != digest.String() {
		t.Errorf("id %s, digest %s; want %s, %s", img.ID, img.Digest, id, digest)
	}
	if want := []string{addr + "/team/app:v1"}; !slices.Equal(img.Names, want) {
		t.Errorf("names %q, want %q", img.Names, want)
	}
	if img.Config.User != "web" || img.Config.StopSignal != "SIGINT" || !slices.Equal(img.Config.Cmd, []string{"/bin/sh"}) {
		t.Errorf("configuration %+v is not that of the image", img.Config)
	}
	if !img.Created.Equal(madeAt) || img.Size == 0 {
		t.Errorf("created %v, size %d", img.Created, img.Size)
	}
	for _, want := range []string{"1 downloading", "1 unpacking", "1 converting", "1 done", "2 done"} {
		if !slices.Contains(phases, want) {
			t.Errorf("progress %q lacks %q", phases, want)
		}
	}
	for _, layer := range img.Layers {
		fi, err := os.Stat(layer)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() == 0 || fi.Size()%layerAlign != 0 || fi.Mode() != 0o644 {
			t.Errorf("%s: %d bytes, mode %v; want a multiple of 2 MiB, -rw-r--r--", layer, fi.Size(), fi.Mode())
		}
		// A monitor opens the file again through a descriptor; nobody else gets to it.
		if dir, err := os.Stat(filepath.Dir(layer)); err != nil || dir.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v; want a directory for root alone", filepath.Dir(layer), dir, err)
		}
		if allocated(fi) > 1<<20 {
			t.Errorf("%s takes %d bytes of disk: its padding is not sparse", layer, allocated(fi))
		}
	}

	phases = nil
	again := pull(t, s, addr+"/team/app:v1", PullOptions{Progress: func(p Progress) { phases = append(phases, string(p.Phase)) }})
	if want := []string{"cached", "cached"}; again.ID != img.ID || !slices.Equal(phases, want) {
		t.Errorf("second pull: id %s, progress %q; want %s, %q", again.ID, phases, img.ID, want)
	}
	for _, ref := range []string{addr + "/team/app:v1", img.ID, img.ShortID(), img.ID[7:13], img.Digest, addr + "/team/app@" + img.Digest} {
		if got, err := s.Get(ref); err != nil || got.ID != img.ID {
			t.Errorf("Get(%q): %s, %v; want %s", ref, got.ID, err, img.ID)
		}
	}
	if got := pull(t, s, addr+"/team/app@"+img.Digest, PullOptions{}); got.ID != img.ID || len(got.Names) != 2 {
		t.Errorf("pull by digest: id %s, names %q; want %s and a second name", got.ID, got.Names, img.ID)
	}
}

// TestSameFile makes one image in two stores: nothing of where, when and how often may show in it. (The
// order of several attributes of one file may: see makeErofs.)
func TestSameFile(t *testing.T) {
	addr := newRegistry(t)
	push(t, addr+"/all", imageFrom(t, v1.Config{}, overlayLayers(t)...))
	a := pull(t, newStore(t), addr+"/all", PullOptions{})
	b := pull(t, newStore(t), addr+"/all", PullOptions{})
	if len(a.Layers) != 3 || len(b.Layers) != 3 {
		t.Fatalf("%d and %d layers, want 3", len(a.Layers), len(b.Layers))
	}
	for i := range a.Layers {
		if mustRead(t, a.Layers[i]) != mustRead(t, b.Layers[i]) {
			t.Errorf("layer %d is another file in another store", i+1)
		}
	}
}

// writeArchives writes the images one and two as an OCI layout, a tar of that, and a docker archive, of
// which there is one with .gz too.
func writeArchives(t *testing.T, tmp string) (oci, ociTar, docker string) {
	t.Helper()
	one, two := smallImage(t, "one"), smallImage(t, "two")
	oci = filepath.Join(tmp, "my-layout")
	path, err := layout.Write(oci, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for tag, img := range map[string]v1.Image{"one": one, "two": two} {
		if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{annotationRefName: tag})); err != nil {
			t.Fatal(err)
		}
	}
	ociTar = filepath.Join(tmp, "images.tar")
	run(t, "tar", "-C", oci, "-cf", ociTar, ".")
	docker = filepath.Join(tmp, "saved.tar")
	refs := map[name.Reference]v1.Image{}
	for tag, img := range map[string]v1.Image{"example.com/one:v1": one, "two": two} {
		ref, err := name.ParseReference(tag)
		if err != nil {
			t.Fatal(err)
		}
		refs[ref] = img
	}
	if err := tarball.MultiRefWriteToFile(docker, refs); err != nil {
		t.Fatal(err)
	}
	run(t, "gzip", "-k", docker)
	return oci, ociTar, docker
}

func TestPullLayoutsAndArchives(t *testing.T) {
	s := newStore(t)
	tmp := t.TempDir()
	oci, ociTar, docker := writeArchives(t, tmp)
	for _, c := range []struct{ ref, name, marker string }{
		{"oci:" + oci + ":one", "localhost/my-layout:one", "one"},
		{"oci:" + oci + ":two", "localhost/my-layout:two", "two"},
		{"oci-archive:" + ociTar + ":two", "localhost/images:latest", "two"},
		{"docker-archive:" + docker + ":two", "docker.io/library/two:latest", "two"},
		{"docker-archive:" + docker + ".gz:example.com/one:v1", "example.com/one:v1", "one"},
	} {
		img, err := s.Pull(t.Context(), c.ref, PullOptions{})
		if err != nil {
			t.Error(err)
			continue
		}
		if !slices.Contains(img.Names, c.name) || content(t, img, "marker") != c.marker {
			t.Errorf("pull %s: names %q, marker %q; want %q, %q", c.ref, img.Names, content(t, img, "marker"), c.name, c.marker)
		}
	}
	for ref, want := range map[string]error{
		"oci:" + oci:                       ErrAmbiguous,
		"oci:" + oci + ":three":            ErrNotFound,
		"oci:" + tmp:                       ErrNotImage,
		"docker-archive:" + docker + ":x":  ErrNotFound,
		"docker-archive:" + docker:         ErrAmbiguous,
		"docker-archive:" + ociTar:         ErrNotImage,
		"oci-archive:" + tmp + "/none.tar": os.ErrNotExist,
		"UPPER/case":                       ErrInvalidReference,
	} {
		if _, err := s.Pull(t.Context(), ref, PullOptions{}); !errors.Is(err, want) {
			t.Errorf("pull %s: %v, want an error that matches %q", ref, err, want)
		}
	}
}

func TestLoad(t *testing.T) {
	newStore(t) // skips where nothing can be unpacked
	_, ociTar, docker := writeArchives(t, t.TempDir())
	for _, archive := range []string{docker, docker + ".gz", ociTar} {
		f, err := os.Open(archive)
		if err != nil {
			t.Fatal(err)
		}
		loaded, err := newStore(t).Load(t.Context(), "", f, PullOptions{})
		_ = f.Close()
		if err != nil || len(loaded) != 2 {
			t.Errorf("load %s from a stream: %d images, %v; want 2", archive, len(loaded), err)
		}
	}
	if loaded, err := newStore(t).Load(t.Context(), ociTar, nil, PullOptions{}); err != nil || len(loaded) != 2 {
		t.Errorf("load %s: %d images, %v; want 2", ociTar, len(loaded), err)
	}
}

func TestPullPlatform(t *testing.T) {
	s, addr := newStore(t), newRegistry(t)
	host, err := parsePlatform("")
	if err != nil {
		t.Fatal(err)
	}
	other := v1.Platform{OS: "linux", Architecture: "riscv64"}
	forOther := smallImage(t, "other")
	c, _ := forOther.ConfigFile()
	c = c.DeepCopy()
	c.Architecture = other.Architecture
	if forOther, err = mutate.ConfigFile(forOther, c); err != nil {
		t.Fatal(err)
	}
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: forOther, Descriptor: v1.Descriptor{Platform: &other}},
		mutate.IndexAddendum{Add: smallImage(t, "host"), Descriptor: v1.Descriptor{Platform: &host}})
	push(t, addr+"/multi", index)
	push(t, addr+"/foreign", forOther)
	if img := pull(t, s, addr+"/multi", PullOptions{}); content(t, img, "marker") != "host" || img.Platform != host.String() {
		t.Errorf("pull of several platforms: marker %q, platform %s", content(t, img, "marker"), img.Platform)
	}
	if img := pull(t, s, addr+"/multi", PullOptions{Platform: "linux/riscv64"}); content(t, img, "marker") != "other" {
		t.Errorf("pull for riscv64: marker %q", content(t, img, "marker"))
	}
	for _, ref := range []string{"/multi", "/foreign"} {
		_, err := s.Pull(t.Context(), addr+ref, PullOptions{Platform: "linux/s390x"})
		if !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "linux/riscv64") {
			t.Errorf("pull %s for s390x: %v; want ErrPlatform and what there is", ref, err)
		}
	}
}

// blobServer is a registry that can be told to treat the blob with some digest in a way of its own.
type blobServer struct {
	registry http.Handler
	gets     atomic.Int32 // of any blob

	mu     sync.Mutex
	digest string                                   // guarded by mu
	treat  func(w http.ResponseWriter, blob []byte) // guarded by mu
}

// set says how the blob with digest is served from now on.
func (b *blobServer) set(digest string, treat func(http.ResponseWriter, []byte)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.digest, b.treat = digest, treat
}

func (b *blobServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
		b.gets.Add(1)
		b.mu.Lock()
		digest, treat := b.digest, b.treat
		b.mu.Unlock()
		if digest != "" && strings.HasSuffix(r.URL.Path, digest) {
			rec := httptest.NewRecorder()
			b.registry.ServeHTTP(rec, r)
			treat(w, rec.Body.Bytes())
			return
		}
	}
	b.registry.ServeHTTP(w, r)
}

func newBlobServer(t *testing.T) (*blobServer, string) {
	t.Helper()
	b := &blobServer{registry: registry.New(registry.Logger(discard))}
	srv := httptest.NewServer(b)
	t.Cleanup(srv.Close)
	return b, strings.TrimPrefix(srv.URL, "http://")
}

func TestPullRefusesDamage(t *testing.T) {
	s := newStore(t)
	b, addr := newBlobServer(t)
	img := smallImage(t, "x")
	push(t, addr+"/app", img)
	layers, _ := img.Layers()
	digest, _ := layers[1].Digest()
	for what, treat := range map[string]func(http.ResponseWriter, []byte){
		"a byte is wrong": func(w http.ResponseWriter, blob []byte) {
			blob = bytes.Clone(blob)
			blob[len(blob)/2] ^= 1
			_, _ = w.Write(blob)
		},
		"it is cut off":   func(w http.ResponseWriter, blob []byte) { _, _ = w.Write(blob[:len(blob)-9]) },
		"it is too long":  func(w http.ResponseWriter, blob []byte) { _, _ = w.Write(append(blob, make([]byte, 99)...)) },
		"it is not there": func(w http.ResponseWriter, _ []byte) { w.WriteHeader(http.StatusNotFound) },
	} {
		t.Run(what, func(t *testing.T) {
			b.set(digest.String(), treat)
			_, err := s.Pull(t.Context(), addr+"/app", PullOptions{})
			var le *LayerError
			if !errors.As(err, &le) || le.Index != 1 || le.Digest != digest.String() {
				t.Fatalf("%v; want an error that names layer 2, %s", err, digest)
			}
			t.Log(err)
			if got := leftovers(t, s); len(got) > 0 {
				t.Errorf("left over: %q", got)
			}
			if _, err := s.Get(addr + "/app"); !errors.Is(err, ErrNotFound) {
				t.Errorf("Get after a failed pull: %v, want ErrNotFound", err)
			}
		})
	}
	b.set("", nil)
	if got := content(t, pull(t, s, addr+"/app", PullOptions{}), "marker"); got != "x" {
		t.Errorf("marker %q after the registry was mended", got)
	}
}

// TestPullTriesAgain cuts the connection once in the middle of a layer.
func TestPullTriesAgain(t *testing.T) {
	s := newStore(t)
	b, addr := newBlobServer(t)
	img := smallImage(t, "x")
	push(t, addr+"/app", img)
	layers, _ := img.Layers()
	digest, _ := layers[0].Digest()
	var cuts atomic.Int32
	b.set(digest.String(), func(w http.ResponseWriter, blob []byte) {
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		if cuts.Add(1) > 1 {
			_, _ = w.Write(blob)
			return
		}
		_, _ = w.Write(blob[:len(blob)/2])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	if got := content(t, pull(t, s, addr+"/app", PullOptions{}), "marker"); got != "x" || cuts.Load() != 2 {
		t.Errorf("marker %q after %d tries, want x after 2", got, cuts.Load())
	}
}

// TestDiffIDMismatch pulls an image whose blobs are sound but not what its configuration promises.
func TestDiffIDMismatch(t *testing.T) {
	s, addr := newStore(t), newRegistry(t)
	img := smallImage(t, "x")
	c, _ := img.ConfigFile()
	c = c.DeepCopy()
	c.RootFS.DiffIDs[1] = c.RootFS.DiffIDs[0]
	img, err := mutate.ConfigFile(img, c)
	if err != nil {
		t.Fatal(err)
	}
	push(t, addr+"/app", img)
	if _, err := s.Pull(t.Context(), addr+"/app", PullOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
}

func TestPullRefusesWhatIsNoImage(t *testing.T) {
	s, addr := newStore(t), newRegistry(t)
	artifact := mutate.ConfigMediaType(imageFrom(t, v1.Config{}, gzipLayer(t, file("a", ""))), "application/vnd.example.chart")
	push(t, addr+"/artifact", artifact)
	push(t, addr+"/wasm", imageFrom(t, v1.Config{}, static.NewLayer([]byte("\x00asm"), "application/wasm")))
	push(t, addr+"/empty", imageFrom(t, v1.Config{}))
	xz := static.NewLayer([]byte("\xfd7zXZ\x00rest"), types.OCILayer)
	push(t, addr+"/xz", imageFrom(t, v1.Config{}, xz))
	for ref, want := range map[string]string{
		"/artifact": "configuration has the type", "/wasm": "layer 1 has the type",
		"/empty": "no layers", "/xz": "only gzip and zstd", "/missing": "NAME_UNKNOWN",
	} {
		if _, err := s.Pull(t.Context(), addr+ref, PullOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("pull %s: %v; want an error with %q", ref, err, want)
		}
	}
	if got := append(leftovers(t, s), layerFiles(t, s)...); len(got) > 0 {
		t.Errorf("left over: %q", got)
	}
}

// TestEmptyLayersAreLeftOut pulls an image in which one layer changes nothing.
func TestEmptyLayersAreLeftOut(t *testing.T) {
	s, addr := newStore(t), newRegistry(t)
	push(t, addr+"/app", imageFrom(t, v1.Config{}, gzipLayer(t, file("a", "a")), gzipLayer(t), layerOf(t, compression.ZStd, file("b", "b"))))
	img := pull(t, s, addr+"/app", PullOptions{})
	if len(img.Layers) != 2 || content(t, img, "a")+content(t, img, "b") != "ab" {
		t.Errorf("%d layers; want 2, which hold a and b", len(img.Layers))
	}
	if again := pull(t, s, addr+"/app", PullOptions{}); !slices.Equal(again.Layers, img.Layers) {
		t.Errorf("layers %q when pulled again, were %q", again.Layers, img.Layers)
	}
}
