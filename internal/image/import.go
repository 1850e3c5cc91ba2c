package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	digest "github.com/opencontainers/go-digest"
	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImportOptions say what Import makes of a root file system. The zero value is usable.
type ImportOptions struct {
	// Config is how the image is run.
	Config ociv1.ImageConfig
	// Platform is "linux/ARCHITECTURE[/VARIANT]"; empty is the host's.
	Platform string
	// Created is written into the image; zero is now. The same content with the same time makes an image
	// with the same id.
	Created time.Time
	// Limits bound what a tar may unpack to.
	Limits Limits
}

// Import makes an image of one layer from a root file system: a directory, or a tar, also compressed.
// A name without a registry is in localhost/.
func (s *Store) Import(ctx context.Context, rootfs, name string, opts ImportOptions) (Image, error) {
	full, err := localName(name)
	if err != nil {
		return Image{}, fmt.Errorf("import %s: %w", rootfs, err)
	}
	var imported Image
	err = s.withWork(ctx, func(w *work) error {
		r, err := openRootfs(ctx, rootfs)
		if err != nil {
			return err
		}
		defer r.Close()
		id, err := s.importLayer(ctx, w, r, opts.Limits)
		if err != nil {
			return err
		}
		imported, err = s.recordImport(ctx, id, full, opts)
		return err
	})
	if err != nil {
		return Image{}, fmt.Errorf("import %s: %w", rootfs, err)
	}
	return imported, nil
}

// openRootfs reads a root file system as a tar.
func openRootfs(ctx context.Context, path string) (io.ReadCloser, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.IsDir() {
		dir, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		return archive.Diff(quiet(ctx), "", dir), nil
	}
	return openRegular(path)
}

// importLayer makes the layer file of a tar and returns the digest of its content, which is the key too.
func (s *Store) importLayer(ctx context.Context, w *work, r io.Reader, limits Limits) (string, error) {
	tree, skel := w.path("tree"), w.path("parents")
	for _, dir := range []string{tree, skel} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return "", err
		}
	}
	u := newUnpacker(tree, skel, nil, false, newBudget(limits))
	id, err := unpackStream(ctx, u, r)
	if err != nil {
		return "", err
	}
	lock, err := s.lock(ctx, hexOf(id), exclusive)
	if err != nil {
		return "", err
	}
	defer unlockAndDelete(lock)
	if s.hasLayer(hexOf(id)) {
		return id, nil
	}
	return id, s.install(ctx, w, u, hexOf(id), false)
}

// recordImport writes the record of an image with one layer.
func (s *Store) recordImport(ctx context.Context, layer, name string, opts ImportOptions) (Image, error) {
	platform, err := parsePlatform(opts.Platform)
	if err != nil {
		return Image{}, err
	}
	now := time.Now().UTC().Round(0)
	created := opts.Created.UTC()
	if opts.Created.IsZero() {
		created = now
	}
	config, err := json.Marshal(ociv1.Image{
		Created:  &created,
		Platform: ociv1.Platform{OS: platform.OS, Architecture: platform.Architecture, Variant: platform.Variant},
		Config:   opts.Config,
		RootFS:   ociv1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.Digest(layer)}},
	})
	if err != nil {
		return Image{}, fmt.Errorf("encode image configuration: %w", err)
	}
	return s.commit(ctx, record{
		ID: digestOf(config), Names: []string{name}, Platform: platform.String(),
		Created: created, Pulled: now, Config: opts.Config, Layers: []string{hexOf(layer)},
	})
}
