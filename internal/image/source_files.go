package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Annotations that name the images of an index.
const (
	annotationRefName = "org.opencontainers.image.ref.name" // OCI image specification: a tag, or any name
	annotationName    = "io.containerd.image.name"          // what docker and containerd save: a full name
)

// files opens the files of an image layout or archive by slash-separated path.
type files interface {
	open(name string) (io.ReadCloser, error)
}

// dirFiles are files in a directory.
type dirFiles string

func (d dirFiles) open(name string) (io.ReadCloser, error) {
	return openRegular(filepath.Join(string(d), filepath.FromSlash(name)))
}

// openRegular opens a regular file; a pipe or device would block or worse.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// ociLayout is an OCI image layout, in a directory or an archive.
type ociLayout struct{ files files }

func (l ociLayout) remote() bool { return false }

func (l ociLayout) blob(_ context.Context, d v1.Hash) (io.ReadCloser, error) {
	if !isHex(d.Hex) {
		return nil, fmt.Errorf("%w: digest %q", ErrNotImage, d)
	}
	return l.files.open("blobs/" + d.Algorithm + "/" + d.Hex)
}

func (l ociLayout) manifest(ctx context.Context, d v1.Hash) ([]byte, error) {
	return readBlob(ctx, l, d)
}

// index reads the layout's list of images.
func (l ociLayout) index() ([]v1.Descriptor, error) {
	r, err := l.files.open("index.json")
	if err != nil {
		return nil, fmt.Errorf("%w: open OCI image layout: %w", ErrNotImage, err)
	}
	defer r.Close()
	index, err := v1.ParseIndexManifest(io.LimitReader(r, maxDocument))
	if err != nil {
		return nil, fmt.Errorf("%w: read index.json: %w", ErrNotImage, err)
	}
	return index.Manifests, nil
}

// image finds the image with a tag in the layout; an empty tag is the only one there.
func (l ociLayout) image(ctx context.Context, tag string, platform v1.Platform) (*sourceImage, error) {
	all, err := l.index()
	if err != nil {
		return nil, err
	}
	var found []v1.Descriptor
	var tags []string
	for _, d := range all {
		if tag == "" || hasTag(d, tag) {
			found = append(found, d)
			tags = appendNew(tags, tagOf(d))
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("%w: the layout holds nothing tagged %q", ErrNotFound, tag)
	case len(tags) > 1:
		return nil, fmt.Errorf("%w: the layout holds several images, name one of: %s", ErrAmbiguous, strings.Join(tags, ", "))
	}
	d, err := choose(found, platform)
	if err != nil && len(found) == 1 {
		// The platform of a lone image is checked against its configuration later.
		d, err = found[0], nil
	}
	if err != nil {
		return nil, err
	}
	return l.imageAt(ctx, d, platform)
}

func (l ociLayout) imageAt(ctx context.Context, d v1.Descriptor, platform v1.Platform) (*sourceImage, error) {
	raw, err := readManifest(ctx, l, d)
	if err != nil {
		return nil, err
	}
	img, err := imageOf(ctx, l, raw, platform)
	if err != nil {
		return nil, err
	}
	img.names = annotatedNames(d)
	return img, nil
}

// images finds all images for platform in the layout, each once.
func (l ociLayout) images(ctx context.Context, platform v1.Platform) ([]*sourceImage, error) {
	all, err := l.index()
	if err != nil {
		return nil, err
	}
	var found []*sourceImage
	byDigest := map[string]*sourceImage{}
	for _, d := range all {
		if len(all) > 1 && d.Platform != nil && !fits(d.Platform, platform) {
			continue
		}
		img, err := l.imageAt(ctx, d, platform)
		if err != nil {
			return nil, err
		}
		if same := byDigest[img.digest]; same != nil {
			same.names = append(same.names, img.names...)
			continue
		}
		byDigest[img.digest] = img
		found = append(found, img)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w %s in the archive", ErrPlatform, platform)
	}
	return found, nil
}

// tagOf is what tells an index entry from those of other images: its full name, else its tag.
func tagOf(d v1.Descriptor) string {
	if full := d.Annotations[annotationName]; full != "" {
		return full
	}
	return d.Annotations[annotationRefName]
}

// hasTag says whether an index entry is tagged so, by either annotation.
func hasTag(d v1.Descriptor, tag string) bool {
	if d.Annotations[annotationRefName] == tag {
		return true
	}
	want := lookupNames(tag)
	return slices.ContainsFunc(annotatedNames(d), func(n string) bool { return contains(want, n) })
}

// annotatedNames are the full names an index entry carries. A ref.name that is a mere tag is none.
func annotatedNames(d v1.Descriptor) []string {
	if full, err := Canonical(d.Annotations[annotationName]); err == nil {
		return []string{full}
	}
	if ref := d.Annotations[annotationRefName]; strings.ContainsAny(ref, ":/") {
		if full, err := Canonical(ref); err == nil {
			return []string{full}
		}
	}
	return nil
}

// dockerEntry is one image in the manifest.json of an archive made by docker save; the format is that
// of moby's image/spec, version 1.2.
type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerImages finds the images of a docker-archive: those that have the name ref, or all if it is empty.
func dockerImages(f *tarFiles, ref string) ([]*sourceImage, error) {
	entries, err := dockerEntries(f)
	if err != nil {
		return nil, err
	}
	want := lookupNames(ref)
	var found []*sourceImage
	for _, e := range entries {
		img := &sourceImage{}
		for _, tag := range e.RepoTags {
			if full, err := Canonical(tag); err == nil {
				img.names = appendNew(img.names, full)
			}
		}
		if ref != "" && !slices.ContainsFunc(img.names, func(n string) bool { return contains(want, n) }) {
			continue
		}
		if img.config, err = readFile(f, e.Config, maxDocument); err != nil {
			return nil, fmt.Errorf("read image configuration from archive: %w", err)
		}
		for _, layer := range e.Layers {
			img.layers = append(img.layers, sourceLayer{
				size: f.size(layer),
				open: func(context.Context) (io.ReadCloser, error) { return f.open(layer) },
			})
		}
		found = append(found, img)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: %q in the archive", ErrNotFound, ref)
	}
	return found, nil
}

func dockerEntries(f files) ([]dockerEntry, error) {
	raw, err := readFile(f, "manifest.json", maxDocument)
	if err != nil {
		return nil, fmt.Errorf("%w: read docker archive: %w", ErrNotImage, err)
	}
	var entries []dockerEntry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("%w: read manifest.json: %w", ErrNotImage, err)
	}
	return entries, nil
}

func readFile(f files, name string, limit int64) ([]byte, error) {
	r, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return readBounded(r, limit)
}
