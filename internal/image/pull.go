package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// PullOptions say how Pull, Load and Import bring images in. The zero value is usable.
type PullOptions struct {
	// Platform is "linux/ARCHITECTURE[/VARIANT]"; empty is the host's.
	Platform string
	// Name is the name an image from a file or directory gets; empty is what the source says, else a
	// name in localhost/ made of the file's.
	Name string
	// Insecure allows registries plain HTTP and certificates that nobody vouches for.
	Insecure bool
	// MaxLayers is how many layer files an image may have at most: a guest has room for so many disks.
	// The lowest layers of an image with more are merged into one. 0 is DefaultMaxLayers.
	MaxLayers int
	// Limits bound what an image may unpack to.
	Limits Limits
	// Progress is told how far each layer is, one call at a time, from several goroutines.
	Progress func(Progress)
}

// DefaultMaxLayers is PullOptions.MaxLayers where it is 0.
const DefaultMaxLayers = 16

// maxAccountFile bounds /etc/passwd and /etc/group of an image, in bytes.
const maxAccountFile = 1 << 20

// Pull brings an image into the store, or what it lacks of it, and returns it. ref is one of
//
//	oci:DIR[:TAG]              an OCI image layout
//	oci-archive:FILE[:TAG]     the same in a tar
//	docker-archive:FILE[:REF]  what docker save writes
//	[REGISTRY/]NAME[:TAG|@DIGEST]
func (s *Store) Pull(ctx context.Context, ref string, opts PullOptions) (Image, error) {
	var pulled Image
	err := s.withWork(ctx, func(w *work) error {
		platform, err := parsePlatform(opts.Platform)
		if err != nil {
			return err
		}
		src, done, err := resolve(ctx, w, ref, platform, opts)
		if err != nil {
			return err
		}
		defer done()
		pulled, err = s.add(ctx, w, src, platform, opts)
		return err
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", ref, err)
	}
	return pulled, nil
}

// Load brings all images of an archive in: a tar made by docker save, or of an OCI image layout, also
// compressed. It is read from the file at path, or from r if path is empty.
func (s *Store) Load(ctx context.Context, path string, r io.Reader, opts PullOptions) ([]Image, error) {
	var loaded []Image
	err := s.withWork(ctx, func(w *work) error {
		platform, err := parsePlatform(opts.Platform)
		if err != nil {
			return err
		}
		t, err := openArchive(w, path, r, opts.Limits.withDefaults().Bytes)
		if err != nil {
			return err
		}
		defer t.close()
		var found []*sourceImage
		if t.has("manifest.json") {
			found, err = dockerImages(t, "")
		} else {
			found, err = ociLayout{t}.images(ctx, platform)
		}
		if err != nil {
			return err
		}
		for _, src := range found {
			if opts.Name != "" && len(found) > 1 {
				return fmt.Errorf("the archive holds %d images, so they cannot all be named %s", len(found), opts.Name)
			}
			if err := nameIt(src, opts.Name, path, ""); err != nil {
				return err
			}
			img, err := s.add(ctx, w, src, platform, opts)
			if err != nil {
				return err
			}
			loaded = append(loaded, img)
		}
		return nil
	})
	if err != nil {
		return loaded, fmt.Errorf("load images: %w", err)
	}
	return loaded, nil
}

// withWork runs f with a temporary directory, and keeps layers from being collected meanwhile.
func (s *Store) withWork(ctx context.Context, f func(*work) error) error {
	if os.Geteuid() != 0 {
		return ErrNeedsRoot
	}
	if _, err := findMkfs(); err != nil {
		return err
	}
	if err := s.sweep(); err != nil {
		return fmt.Errorf("sweep %s: %w", s.dir, err)
	}
	pulling, err := s.lock(ctx, pullLock, shared)
	if err != nil {
		return s.spaceError(err)
	}
	defer s.collectIfAsked()
	defer pulling.Close()
	w, err := s.newWork(ctx)
	if err != nil {
		return s.spaceError(err)
	}
	if err = checkXattrs(w.dir); err == nil {
		err = f(w)
	}
	return joinErrors(s.spaceError(err), w.close())
}

// resolve finds the image that ref names. The function it returns frees what reading the image needs.
func resolve(ctx context.Context, w *work, ref string, platform v1.Platform, opts PullOptions) (*sourceImage, func(), error) {
	nothing := func() {}
	transport, arg, _ := strings.Cut(ref, ":")
	switch transport + ":" {
	case transportOCI:
		dir, tag := splitLayout(arg)
		src, err := ociLayout{dirFiles(dir)}.image(ctx, tag, platform)
		if err != nil {
			return nil, nil, err
		}
		return src, nothing, nameIt(src, opts.Name, dir, tag)
	case transportOCIArchive, transportDockerArchive:
		file, tag := splitArchive(arg, func(p string) bool { _, err := os.Stat(p); return err == nil })
		t, err := openArchive(w, file, nil, opts.Limits.withDefaults().Bytes)
		if err != nil {
			return nil, nil, err
		}
		src, err := imageInArchive(ctx, t, transport+":", tag, platform)
		if err == nil {
			err = nameIt(src, opts.Name, file, "")
		}
		if err != nil {
			_ = t.close()
			return nil, nil, err
		}
		return src, func() { _ = t.close() }, nil
	}
	src, err := fromRegistry(ctx, ref, platform, opts.Insecure)
	return src, nothing, err
}

func imageInArchive(ctx context.Context, t *tarFiles, transport, tag string, platform v1.Platform) (*sourceImage, error) {
	if transport == transportOCIArchive {
		return ociLayout{t}.image(ctx, tag, platform)
	}
	found, err := dockerImages(t, tag)
	if err != nil {
		return nil, err
	}
	if len(found) > 1 {
		return nil, fmt.Errorf("%w: the archive holds %d images, name one", ErrAmbiguous, len(found))
	}
	return found[0], nil
}

// nameIt names an image that came from path by name, else as the source does, else by the path.
func nameIt(src *sourceImage, name, path, tag string) error {
	if name != "" {
		full, err := localName(name)
		if err != nil {
			return err
		}
		src.names = []string{full}
		return nil
	}
	if len(src.names) > 0 || path == "" {
		return nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if full := nameFromPath(abs, tag); full != "" {
		src.names = []string{full}
	}
	return nil
}

// add brings the layers of src in and records the image.
func (s *Store) add(ctx context.Context, w *work, src *sourceImage, platform v1.Platform, opts PullOptions) (Image, error) {
	config, err := checkConfig(src, platform)
	if err != nil {
		return Image{}, err
	}
	b := newBuild(s, w, src, config.RootFS.DiffIDs, opts)
	if err := b.run(ctx); err != nil {
		return Image{}, err
	}
	r := record{
		ID: digestOf(src.config), Names: src.names, Digest: src.digest,
		Platform: platformOf(config.Platform, platform),
		Pulled:   time.Now().UTC().Round(0), Config: config.Config, Layers: b.keys(),
	}
	if config.Created != nil {
		r.Created = config.Created.UTC()
	}
	return s.commit(ctx, r)
}

// commit completes a record whose layers are in place, and writes it.
func (s *Store) commit(ctx context.Context, r record) (Image, error) {
	var err error
	if r.Passwd, r.Group, err = s.accounts(r.Layers); err != nil {
		return Image{}, err
	}
	if err := s.putRecord(ctx, r); err != nil {
		return Image{}, err
	}
	return s.Get(r.ID)
}

// accounts reads /etc/passwd and /etc/group of stacked layers.
func (s *Store) accounts(keys []string) (passwd, group []byte, err error) {
	v, err := s.view(keys)
	if err != nil {
		return nil, nil, err
	}
	defer v.close()
	read := func(name string) []byte {
		data, rerr := v.readFile(name, maxAccountFile)
		if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = joinErrors(err, fmt.Errorf("read /%s of the image: %w", name, rerr))
		}
		return data
	}
	passwd, group = read("etc/passwd"), read("etc/group")
	return passwd, group, err
}

// view opens layers by their keys, the lowest first.
func (s *Store) view(keys []string) (*view, error) {
	paths := make([]string, len(keys))
	for i, key := range keys {
		paths[i] = s.layerPath(key)
	}
	return openView(paths)
}

// checkConfig reads an image's configuration and refuses what cannot be run on platform.
func checkConfig(src *sourceImage, platform v1.Platform) (*ociv1.Image, error) {
	var c ociv1.Image
	if err := json.Unmarshal(src.config, &c); err != nil {
		return nil, fmt.Errorf("%w: read its configuration: %w", ErrNotImage, err)
	}
	if len(c.RootFS.DiffIDs) != len(src.layers) {
		return nil, fmt.Errorf("%w: its configuration has %d layers, its manifest %d",
			ErrNotImage, len(c.RootFS.DiffIDs), len(src.layers))
	}
	if len(src.layers) == 0 {
		return nil, fmt.Errorf("%w: it has no layers", ErrNotImage)
	}
	if len(src.layers) > maxLayerCount {
		return nil, fmt.Errorf("%w: it has %d layers (%d are allowed)", ErrTooLarge, len(src.layers), maxLayerCount)
	}
	for _, id := range c.RootFS.DiffIDs {
		if id.Validate() != nil || id.Algorithm() != digest.SHA256 {
			return nil, fmt.Errorf("%w: layer id %q is not a SHA-256 digest", ErrNotImage, id)
		}
	}
	there := v1.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}
	if c.OS != "" && c.Architecture != "" && !fits(&there, platform) {
		return nil, fmt.Errorf("%w %s: the image is for %s", ErrPlatform, platform, there)
	}
	return &c, nil
}

func platformOf(p ociv1.Platform, wanted v1.Platform) string {
	if p.OS == "" || p.Architecture == "" {
		return wanted.String()
	}
	return v1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}.String()
}

// unit is what becomes one layer file: the layers from first to last, more than one only in a merge.
type unit struct {
	key         string
	first, last int
}

const mergedSuffix = "-merged"

// plan says which layers become which files: each its own, but for the lowest, which are merged as far as
// it takes to have no more than most.
func plan(diffIDs []digest.Digest, most int) []unit {
	if most <= 0 {
		most = DefaultMaxLayers
	}
	chain := identity.ChainIDs(append([]digest.Digest(nil), diffIDs...))
	merged := max(0, len(chain)-most)
	var units []unit
	for i := merged; i < len(chain); i++ {
		u := unit{key: chain[i].Encoded(), first: i, last: i}
		if i == merged && merged > 0 {
			u.first, u.key = 0, u.key+mergedSuffix
		}
		units = append(units, u)
	}
	return units
}

// isKey says whether s may be the key of a layer.
func isKey(s string) bool {
	s = strings.TrimSuffix(s, mergedSuffix)
	return len(s) == 64 && isHex(s)
}
