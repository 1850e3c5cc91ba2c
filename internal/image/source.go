package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Bounds on what a source says before any of it is believed.
const (
	maxDocument   = 8 << 20 // bytes of a manifest, index or configuration
	maxIndexDepth = 4       // of an index in an index
	maxLayerCount = 512
)

// sourceImage is an image where it comes from: its configuration and its layers, not yet read.
type sourceImage struct {
	config []byte
	digest string // of the manifest; empty where there is none
	layers []sourceLayer
	names  []string // full names that the source gives it
}

// sourceLayer is one layer of a sourceImage.
type sourceLayer struct {
	digest v1.Hash // of the blob; zero where the source does not say
	size   int64   // of the blob in bytes; -1 where the source does not say
	remote bool    // behind a network: worth fetching before it is its turn
	open   func(ctx context.Context) (io.ReadCloser, error)
}

// repository is what holds the manifests and blobs of OCI images: a registry, a directory, an archive.
type repository interface {
	manifest(ctx context.Context, d v1.Hash) ([]byte, error)
	blob(ctx context.Context, d v1.Hash) (io.ReadCloser, error)
	// remote says whether reading blobs goes over a network.
	remote() bool
}

// imageOf turns the manifest or index in raw into the image for platform.
func imageOf(ctx context.Context, repo repository, raw []byte, platform v1.Platform) (*sourceImage, error) {
	for range maxIndexDepth {
		kind, err := documentKind(raw)
		if err != nil {
			return nil, err
		}
		if !kind.IsIndex() {
			return imageOfManifest(ctx, repo, raw)
		}
		index, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("read image index: %w", err)
		}
		d, err := choose(index.Manifests, platform)
		if err != nil {
			return nil, err
		}
		if raw, err = readManifest(ctx, repo, d); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: image indexes are nested more than %d deep", ErrNotImage, maxIndexDepth)
}

// documentKind says what a document is, by what it holds: the media type is optional in OCI documents.
func documentKind(raw []byte) (types.MediaType, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return "", fmt.Errorf("%w: read manifest: %w", ErrNotImage, err)
	}
	switch {
	case m.SchemaVersion == 1:
		return "", fmt.Errorf("%w: its manifest has the old schema 1: push it again with a newer tool", ErrNotImage)
	case m.SchemaVersion != 2:
		return "", fmt.Errorf("%w: manifest with schema version %d", ErrNotImage, m.SchemaVersion)
	case m.MediaType.IsIndex(), m.MediaType.IsImage():
		return m.MediaType, nil
	case m.MediaType != "":
		return "", fmt.Errorf("%w: manifest of type %q", ErrNotImage, m.MediaType)
	case m.Config.Digest.Hex == "":
		return types.OCIImageIndex, nil
	}
	return types.OCIManifestSchema1, nil
}

func imageOfManifest(ctx context.Context, repo repository, raw []byte) (*sourceImage, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if !m.Config.MediaType.IsConfig() && m.Config.MediaType != "" {
		return nil, fmt.Errorf("%w: its configuration has the type %q", ErrNotImage, m.Config.MediaType)
	}
	config, err := readBlob(ctx, repo, m.Config.Digest)
	if err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	img := &sourceImage{config: config, digest: digestOf(raw)}
	for i, l := range m.Layers {
		if !l.MediaType.IsLayer() && l.MediaType != "" {
			return nil, fmt.Errorf("%w: layer %d has the type %q", ErrNotImage, i+1, l.MediaType)
		}
		if !l.MediaType.IsDistributable() {
			return nil, fmt.Errorf("%w: layer %d may not be distributed (%s)", ErrNotImage, i+1, l.MediaType)
		}
		img.layers = append(img.layers, sourceLayer{
			digest: l.Digest, size: l.Size, remote: repo.remote(),
			open: func(ctx context.Context) (io.ReadCloser, error) { return repo.blob(ctx, l.Digest) },
		})
	}
	return img, nil
}

// choose picks the manifest for platform. A lone manifest that names no platform fits all.
func choose(manifests []v1.Descriptor, platform v1.Platform) (v1.Descriptor, error) {
	if len(manifests) == 1 && manifests[0].Platform == nil {
		return manifests[0], nil
	}
	var there []string
	for _, d := range manifests {
		if fits(d.Platform, platform) {
			return d, nil
		}
		if d.Platform != nil && d.Platform.OS != "unknown" {
			there = append(there, d.Platform.String())
		}
	}
	slices.Sort(there)
	return v1.Descriptor{}, fmt.Errorf("%w %s: there is %s", ErrPlatform, platform, orNone(slices.Compact(there)))
}

// fits says whether what is there runs on want. Variants matter only where they are asked for.
func fits(there *v1.Platform, want v1.Platform) bool {
	return there != nil && there.OS == want.OS && there.Architecture == want.Architecture &&
		(want.Variant == "" || there.Variant == "" || there.Variant == want.Variant)
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none that says its platform"
	}
	return strings.Join(list, ", ")
}

// parsePlatform reads "os/arch[/variant]"; empty is this host's.
func parsePlatform(s string) (v1.Platform, error) {
	if s == "" {
		return v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, nil
	}
	p, err := v1.ParsePlatform(s)
	if err != nil {
		return v1.Platform{}, fmt.Errorf("platform %q: %w", s, err)
	}
	if p.OS != "linux" || p.Architecture == "" {
		return v1.Platform{}, fmt.Errorf("platform %q: must be linux/ARCHITECTURE[/VARIANT]", s)
	}
	return *p, nil
}

// readManifest reads a manifest whole and checks its digest.
func readManifest(ctx context.Context, repo repository, d v1.Descriptor) ([]byte, error) {
	if !d.MediaType.IsImage() && !d.MediaType.IsIndex() && d.MediaType != "" {
		return nil, fmt.Errorf("%w: it has the type %q", ErrNotImage, d.MediaType)
	}
	raw, err := repo.manifest(ctx, d.Digest)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", shortDigest(d.Digest.String()), err)
	}
	if got := digestOf(raw); got != d.Digest.String() {
		return nil, fmt.Errorf("manifest %s: %w: it is %s", d.Digest, ErrCorrupt, got)
	}
	return raw, nil
}

// readBlob reads a small blob whole and checks its digest.
func readBlob(ctx context.Context, repo repository, d v1.Hash) ([]byte, error) {
	r, err := repo.blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	raw, err := readBounded(r, maxDocument)
	if err != nil {
		return nil, err
	}
	if got := digestOf(raw); got != d.String() {
		return nil, fmt.Errorf("blob %s: %w: it is %s", d, ErrCorrupt, got)
	}
	return raw, nil
}

// readBounded reads r to its end, which must come within limit bytes.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: a document has more than %s", ErrTooLarge, FormatBytes(limit))
	}
	return data, nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
