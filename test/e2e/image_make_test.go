package e2e

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	reference "github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// madeAt is the time of everything in the images of these tests.
var madeAt = time.Unix(1_700_000_000, 0)

// entry is one entry of a layer.
type entry struct {
	tar.Header
	data string
}

func directory(name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}}
}

func regular(name, data string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data))}, data: data}
}

func (e entry) with(change func(*tar.Header)) entry {
	change(&e.Header)
	return e
}

// layerOf makes a layer of entries.
func layerOf(t *testing.T, entries ...entry) v1.Layer {
	t.Helper()
	var all bytes.Buffer
	w := tar.NewWriter(&all)
	for _, e := range entries {
		e.ModTime = madeAt
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
	return layerFrom(t, all.Bytes())
}

func layerFrom(t *testing.T, uncompressed []byte) v1.Layer {
	t.Helper()
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(uncompressed)), nil }
	l, err := tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatalf("make layer: %v", err)
	}
	return l
}

// busyboxTar is the busybox root as a tar, made once.
var busyboxTar = sync.OnceValues(func() ([]byte, error) {
	var all bytes.Buffer
	w := tar.NewWriter(&all)
	err := filepath.WalkDir(env.rootfs, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == env.rootfs {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, target)
		if err != nil {
			return err
		}
		header.Name, header.ModTime = strings.TrimPrefix(path, env.rootfs+"/"), madeAt
		if err := w.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all.Bytes(), w.Close()
})

func busyboxLayer(t *testing.T) v1.Layer {
	t.Helper()
	data, err := busyboxTar()
	if err != nil {
		t.Fatal(err)
	}
	return layerFrom(t, data)
}

// imageOf makes an image for this machine.
func imageOf(t *testing.T, config v1.Config, layers ...v1.Layer) v1.Image {
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
	c.OS, c.Architecture, c.Config, c.Created = "linux", runtime.GOARCH, config, v1.Time{Time: madeAt}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatalf("set configuration: %v", err)
	}
	return img
}

// plainImage is busybox with a file /marker that holds the given line.
func plainImage(t *testing.T, marker string) v1.Image {
	t.Helper()
	return imageOf(t, v1.Config{Cmd: []string{"cat", "/marker"}}, busyboxLayer(t), layerOf(t, regular("marker", marker+"\n")))
}

// ociLayout writes an image as an OCI layout and returns its directory.
func ociLayout(t *testing.T, img v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ociArchive writes an image as a tar of an OCI layout.
func ociArchive(t *testing.T, img v1.Image) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(ociLayout(t, img))); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return file
}

// dockerArchive writes an image as `docker save` does.
func dockerArchive(t *testing.T, tag string, img v1.Image) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	ref, err := reference.NewTag(tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(file, ref, img); err != nil {
		t.Fatal(err)
	}
	return file
}

// pushed puts an image into a new registry on loopback and returns its name there.
func pushed(t *testing.T, repository string, img v1.Image) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	return pushTo(t, server, repository, img)
}

// pushTo puts an image into a registry and returns its name there.
func pushTo(t *testing.T, server *httptest.Server, repository string, img v1.Image) string {
	t.Helper()
	full := strings.TrimPrefix(server.URL, "http://") + "/" + repository
	ref, err := reference.ParseReference(full)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	return full
}

// load brings an image into husk's store under a name and takes it away at the end of the test.
func load(t *testing.T, tag string, img v1.Image) string {
	t.Helper()
	forget(t, tag)
	husk(t, "load", "--input", dockerArchive(t, tag, img)).ok()
	return tag
}

// forget removes an image at the end of the test where it is still there.
func forget(t *testing.T, name string) {
	t.Cleanup(func() {
		if r := husk(t, "rmi", "--force", name).run(); r.code != 0 && !strings.Contains(r.stderr, "no such image") {
			t.Errorf("remove image %s: exit code %d, stderr %q", name, r.code, r.stderr)
		}
	})
}
