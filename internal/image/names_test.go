package image

import (
	"errors"
	"slices"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
)

func TestNames(t *testing.T) {
	sum := "sha256:" + strings.Repeat("ab", 32)
	for ref, want := range map[string]string{
		"busybox":              "docker.io/library/busybox:latest",
		"busybox:1.36":         "docker.io/library/busybox:1.36",
		"user/app":             "docker.io/user/app:latest",
		"docker.io/busybox":    "docker.io/library/busybox:latest",
		"localhost:5000/a":     "localhost:5000/a:latest",
		"ghcr.io/a/b@" + sum:   "ghcr.io/a/b@" + sum,
		"busybox:1.36@" + sum:  "docker.io/library/busybox@" + sum,
		"localhost/husk-demo":  "localhost/husk-demo:latest",
		"[::1]:5000/a/b:c":     "[::1]:5000/a/b:c",
		"registry.example/A":   "",
		"":                     "",
		"a b":                  "",
		"busybox@sha256:short": "",
	} {
		got, err := Canonical(ref)
		if got != want || (want == "") != errors.Is(err, ErrInvalidReference) {
			t.Errorf("Canonical(%q) = %q, %v; want %q", ref, got, err, want)
		}
	}
	for full, want := range map[string]string{
		"docker.io/library/busybox:latest": "busybox:latest",
		"docker.io/user/app:1":             "user/app:1",
		"localhost/husk-demo:latest":       "localhost/husk-demo:latest",
	} {
		if got := Familiar(full); got != want {
			t.Errorf("Familiar(%q) = %q, want %q", full, got, want)
		}
	}
	if got, want := lookupNames("husk-demo"), []string{"docker.io/library/husk-demo:latest", "localhost/husk-demo:latest"}; !slices.Equal(got, want) {
		t.Errorf("lookupNames(husk-demo) = %q, want %q", got, want)
	}
}

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:80": true, "127.9.9.9": true, "[::1]:443": true,
		"192.168.1.1:5000": false, "localhost.evil.example": false, "127.0.0.1.example": false, "10.0.0.1": false,
	} {
		if got := isLoopback(host); got != want {
			t.Errorf("isLoopback(%q) = %v", host, got)
		}
	}
}

func TestPlan(t *testing.T) {
	var ids []digest.Digest
	for i := range 5 {
		ids = append(ids, digest.FromString(string(rune('a'+i))))
	}
	all := plan(ids, 9)
	if len(all) != 5 || all[0].key != ids[0].Encoded() || all[4].first != 4 {
		t.Errorf("plan for 9: %+v", all)
	}
	some := plan(ids, 3)
	if len(some) != 3 || some[0].first != 0 || some[0].last != 2 || some[0].key != all[2].key+mergedSuffix || some[1].key != all[3].key {
		t.Errorf("plan for 3: %+v", some)
	}
	for _, u := range some {
		if !isKey(u.key) {
			t.Errorf("%q is no key", u.key)
		}
	}
	if isKey("../../etc/passwd") || isKey(strings.Repeat("a", 63)) || isKey("-merged") {
		t.Error("a key may be anything")
	}
}

func TestProgressLines(t *testing.T) {
	var out strings.Builder
	p := NewProgress(&out, false)
	for _, u := range []Progress{
		{Layer: 1, Layers: 2, Digest: "sha256:0123456789abcdef", Phase: PhaseCached, Total: 1 << 20},
		{Layer: 2, Layers: 2, Digest: "sha256:fedcba9876543210", Phase: PhaseDownloading, Done: 1, Total: 3 << 20},
		{Layer: 2, Layers: 2, Digest: "sha256:fedcba9876543210", Phase: PhaseDownloading, Done: 2, Total: 3 << 20},
		{Layer: 2, Layers: 2, Digest: "sha256:fedcba9876543210", Phase: PhaseDone},
		{Layer: 9, Layers: 2, Phase: PhaseDone},
	} {
		p.Update(u)
	}
	p.Close()
	want := "layer 1/2 0123456789ab: cached\nlayer 2/2 fedcba987654: downloading (3.0 MiB)\nlayer 2/2 fedcba987654: done\n"
	if out.String() != want {
		t.Errorf("lines\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	p = NewProgress(&out, true)
	p.Update(Progress{Layer: 1, Layers: 3, Phase: PhaseCached})
	p.Update(Progress{Layer: 2, Layers: 3, Digest: "sha256:fedcba9876543210", Phase: PhaseUnpacking, Done: 1 << 20, Total: 4 << 20})
	p.Update(Progress{Layer: 3, Layers: 3, Phase: PhaseDownloading, Done: 1 << 20, Total: 2 << 20})
	p.Close()
	lines := strings.Split(out.String(), "\r")
	if got, want := lines[len(lines)-2], "layers 1/3  downloading 1.0 MiB / 2.0 MiB  unpacking fedcba987654 25%\x1b[K"; got != want {
		t.Errorf("last line %q, want %q", got, want)
	}
	if strings.Contains(out.String(), "\n") || !strings.HasSuffix(out.String(), "\r\x1b[K") {
		t.Errorf("the terminal is not left clean: %q", out.String())
	}
}
