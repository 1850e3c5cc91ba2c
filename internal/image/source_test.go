package image

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestCredentials pulls from a registry that wants the password in docker's configuration file.
func TestCredentials(t *testing.T) {
	s := newStore(t)
	inner := registry.New(registry.Logger(discard))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer srv.Close()
	addr := strings.TrimPrefix(srv.URL, "http://")
	ref, err := name.ParseReference(addr + "/private")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, smallImage(t, "x"), remote.WithAuth(&authn.Basic{Username: "me", Password: "secret"})); err != nil {
		t.Fatal(err)
	}
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	t.Setenv("HOME", config)
	t.Setenv("XDG_RUNTIME_DIR", config)
	if _, err := s.Pull(t.Context(), addr+"/private", PullOptions{}); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("pull without credentials: %v, want a 401", err)
	}
	auth := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	if err := os.WriteFile(filepath.Join(config, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, addr, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	pull(t, s, addr+"/private", PullOptions{})
}

// TestPlainHTTP asks for plain HTTP to other hosts, which must not leave this one.
func TestPlainHTTP(t *testing.T) {
	var sent atomic.Int32
	h := &httpsOnly{next: roundTripper(func(*http.Request) (*http.Response, error) {
		sent.Add(1)
		return nil, errors.New("sent")
	})}
	for url, want := range map[string]bool{
		"http://192.168.1.1:5000/v2/": false, "http://registry.local/v2/": false, "http://10.0.0.1/": false,
		"http://127.0.0.1:5000/v2/": true, "http://localhost/v2/": true, "https://192.168.1.1/v2/": true,
	} {
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		sent.Store(0)
		_, err = h.RoundTrip(req)
		if (sent.Load() == 1) != want {
			t.Errorf("%s: sent %v (%v), want %v", url, sent.Load() == 1, err, want)
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// FuzzArchive reads archives that anybody may have made: it must end, without a panic.
func FuzzArchive(f *testing.F) {
	config := file("config.json", `{"rootfs":{"type":"layers","diff_ids":[]}}`)
	f.Add(tarOf(f, file("manifest.json", `[{"Config":"config.json","RepoTags":["a:b"],"Layers":["l"]}]`), config, symlink("l", "m"), symlink("m", "l")))
	f.Add(tarOf(f, file("index.json", `{"schemaVersion":2,"manifests":[{"digest":"sha256:`+strings.Repeat("0", 64)+`","size":1}]}`)))
	f.Add([]byte("\x1f\x8b\x08"))
	f.Fuzz(func(t *testing.T, data []byte) {
		w := &work{dir: t.TempDir()}
		a, err := openArchive(w, "", bytes.NewReader(data), 1<<20)
		if err != nil {
			return
		}
		defer a.close()
		platform := v1.Platform{OS: "linux", Architecture: "amd64"}
		found, _ := dockerImages(a, "")
		more, _ := ociLayout{a}.images(t.Context(), platform)
		for _, img := range append(found, more...) {
			_, _ = checkConfig(img, platform)
			for _, l := range img.layers {
				if r, err := l.open(t.Context()); err == nil {
					_ = r.Close()
				}
			}
		}
	})
}
