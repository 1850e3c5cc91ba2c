// Package image is husk's image store: it pulls container images and keeps every layer as a read-only
// EROFS file that a virtual machine mounts.
//
// A store is a directory:
//
//	layers/KEY.erofs   one file a layer; KEY is the chain id of the OCI image specification in hex, with
//	                   "-merged" where the file holds the layers up to and including that one
//	images/ID.json     one record an image; ID is the digest of its configuration in hex
//	locks/             flock(2) files: one a layer being made, one an image being used
//	tmp/               one directory a running pull, locked by it; the next Open sweeps the dead ones
//
// Any number of processes may use one store at a time. Layers are content: they are written once, renamed
// into place when complete, and deleted when no record names them.
package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Store is an image store in a directory. Its methods may be called from several goroutines.
type Store struct {
	dir string
}

// Image is an image in a store.
type Image struct {
	// ID is the digest of the image's configuration ("sha256:…"), as docker means it.
	ID string `json:"id"`
	// Names are the full references the image is known by ("docker.io/library/busybox:latest").
	Names []string `json:"names"`
	// Digest is that of the manifest the image was last pulled by; empty where there was none
	// (docker-archive, Import).
	Digest string `json:"digest,omitempty"`
	// Platform is "os/architecture[/variant]".
	Platform string `json:"platform"`
	// Created is when the image was built, as it says of itself; zero if it does not.
	Created time.Time `json:"created,omitzero"`
	// Pulled is when the image came into the store.
	Pulled time.Time `json:"pulled"`
	// Config is what the image says about how to run it.
	Config ociv1.ImageConfig `json:"config"`
	// Layers are absolute paths of EROFS files, the lowest first, each a multiple of 2 MiB long. Layers
	// that change nothing are left out. Only root may read them.
	Layers []string `json:"layers"`
	// Size is the disk space of the layers in bytes, those shared with other images counted in full.
	Size int64 `json:"size"`
	// Passwd and Group are /etc/passwd and /etc/group of the image, empty where it has none.
	Passwd []byte `json:"-"`
	Group  []byte `json:"-"`
}

// ShortID is the first twelve hex digits of the ID.
func (i Image) ShortID() string { return shortDigest(i.ID) }

const (
	layersDir = "layers"
	imagesDir = "images"
	locksDir  = "locks"
	tmpDir    = "tmp"
)

// Open opens the store in dir, which it makes if need be, and removes what dead processes left
// unfinished there.
func Open(dir string) (*Store, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("open image store %q: the path must be absolute", dir)
	}
	s := &Store{dir: filepath.Clean(dir)}
	if err := os.MkdirAll(s.dir, 0o711); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	for _, sub := range []string{layersDir, imagesDir, locksDir, tmpDir} {
		if err := os.Mkdir(filepath.Join(s.dir, sub), 0o700); err != nil && !os.IsExist(err) {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("open image store %s: sweep: %w", s.dir, err)
	}
	return s, nil
}

// Dir is the store's directory.
func (s *Store) Dir() string { return s.dir }

func (s *Store) layerPath(key string) string {
	return filepath.Join(s.dir, layersDir, key+".erofs")
}

// Get finds an image by name ("busybox", "docker.io/library/busybox:1.36"), by id, by a unique start of
// its id, or by manifest digest. It returns an error that matches ErrNotFound where there is none, and
// one that matches ErrAmbiguous where several images fit.
func (s *Store) Get(ref string) (Image, error) {
	records, damaged := s.records()
	r, err := find(records, ref)
	if err != nil {
		if damaged != nil {
			return Image{}, fmt.Errorf("%w (%w)", err, damaged)
		}
		return Image{}, err
	}
	img, err := s.image(r)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", ref, err)
	}
	return img, nil
}

// List returns all images, the last pulled first. Damaged records are left out and named by the error,
// which comes with the images that are sound.
func (s *Store) List() ([]Image, error) {
	records, damaged := s.records()
	images := make([]Image, 0, len(records))
	for _, r := range records {
		img, err := s.image(r)
		if err != nil {
			damaged = joinErrors(damaged, fmt.Errorf("image %s: %w", shortDigest(r.ID), err))
			continue
		}
		images = append(images, img)
	}
	return images, damaged
}

// find resolves ref among records: a name goes before an id.
func find(records []record, ref string) (record, error) {
	if ref == "" {
		return record{}, fmt.Errorf("find image: %w: the reference is empty", ErrInvalidReference)
	}
	names := lookupNames(ref)
	for _, name := range names {
		for _, r := range records {
			if contains(r.Names, name) {
				return r, nil
			}
		}
	}
	var found []record
	for _, r := range records {
		if matchesID(r, ref) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return record{}, &NotFoundError{Ref: ref}
	case 1:
		return found[0], nil
	}
	return record{}, fmt.Errorf("image %s: %w: %d images have an id that starts so", ref, ErrAmbiguous, len(found))
}

// matchesID says whether ref is an id or manifest digest of r, or a start of its id of at least 4 digits.
func matchesID(r record, ref string) bool {
	if ref == r.ID || (r.Digest != "" && ref == r.Digest) {
		return true
	}
	if _, digest, ok := strings.Cut(ref, "@"); ok {
		return r.Digest != "" && digest == r.Digest
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	return len(hex) >= 4 && isHex(hex) && strings.HasPrefix(strings.TrimPrefix(r.ID, "sha256:"), hex)
}

// Lease keeps an image and its layers from being removed.
type Lease struct {
	// Layers are the image's layers, open for reading, in the order of Image.Layers. A process that
	// inherits one keeps that layer's file from being deleted for as long as it lives.
	Layers []*os.File

	image *os.File
}

// Use opens the layers of img and keeps it from being removed until the lease is closed. If the process
// dies the lease ends.
func (s *Store) Use(ctx context.Context, img Image) (*Lease, error) {
	l := &Lease{}
	var err error
	if l.image, err = lockFile(ctx, s.imageLock(img.ID), shared); err != nil {
		return nil, fmt.Errorf("use image %s: %w", img.ShortID(), err)
	}
	for _, path := range img.Layers {
		f, err := lockExisting(path, shared)
		if err != nil {
			_ = l.Close()
			return nil, fmt.Errorf("use image %s: open layer: %w", img.ShortID(), err)
		}
		l.Layers = append(l.Layers, f)
	}
	return l, nil
}

// Close ends the lease. It is idempotent.
func (l *Lease) Close() error {
	var errs error
	for _, f := range append(l.Layers, l.image) {
		if f != nil {
			errs = joinErrors(errs, f.Close())
		}
	}
	l.Layers, l.image = nil, nil
	return errs
}

func (s *Store) imageLock(id string) string {
	return filepath.Join(s.dir, locksDir, "image-"+hexOf(id))
}
