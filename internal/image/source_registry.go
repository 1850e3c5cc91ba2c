package image

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// registryHeaderTimeout bounds the wait for the header of a registry's answer.
const registryHeaderTimeout = time.Minute

// registryRepo is a repository in a registry. Credentials come from docker's and podman's files and their
// credential helpers.
type registryRepo struct {
	repo   name.Repository
	puller *remote.Puller
}

// fromRegistry finds an image in its registry.
func fromRegistry(ctx context.Context, ref string, platform v1.Platform, insecure bool) (*sourceImage, error) {
	parsed, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	if insecure {
		if parsed, err = name.ParseReference(ref, name.Insecure); err != nil {
			return nil, fmt.Errorf("%w %q: %w", ErrInvalidReference, ref, err)
		}
	}
	puller, err := remote.NewPuller(
		remote.WithContext(ctx),
		remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithTransport(registryTransport(insecure)),
		remote.WithUserAgent("husk"),
		remote.WithPlatform(platform))
	if err != nil {
		return nil, fmt.Errorf("reach registry of %s: %w", ref, err)
	}
	desc, err := puller.Get(ctx, parsed)
	if err != nil {
		return nil, fmt.Errorf("find %s in its registry: %w", canonical(parsed), err)
	}
	r := &registryRepo{repo: parsed.Context(), puller: puller}
	img, err := imageOf(ctx, r, desc.Manifest, platform)
	if err != nil {
		return nil, err
	}
	img.names = []string{canonical(parsed)}
	return img, nil
}

func (r *registryRepo) remote() bool { return true }

func (r *registryRepo) manifest(ctx context.Context, d v1.Hash) ([]byte, error) {
	desc, err := r.puller.Get(ctx, r.repo.Digest(d.String()))
	if err != nil {
		return nil, err
	}
	return desc.Manifest, nil
}

func (r *registryRepo) blob(ctx context.Context, d v1.Hash) (io.ReadCloser, error) {
	layer, err := r.puller.Layer(ctx, r.repo.Digest(d.String()))
	if err != nil {
		return nil, err
	}
	return layer.Compressed()
}

// registryTransport is the way to registries: HTTPS, and plain HTTP to this host only unless insecure.
func registryTransport(insecure bool) http.RoundTripper {
	t := remote.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = registryHeaderTimeout
	if insecure {
		t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
		return t
	}
	return &httpsOnly{next: t}
}

// httpsOnly refuses plain HTTP to other hosts, which the registry client would fall back to for private
// addresses, with the credentials in clear.
type httpsOnly struct{ next http.RoundTripper }

func (h *httpsOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && !isLoopback(req.URL.Host) {
		return nil, fmt.Errorf("plain HTTP to %s is refused", req.URL.Host)
	}
	return h.next.RoundTrip(req)
}
