package ocispec

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestPlanCopied tells the kubelet's volumes that change from all else.
func TestPlanCopied(t *testing.T) {
	dir := func(name string, files map[string]string) string {
		t.Helper()
		dir := filepath.Join(t.TempDir(), name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for file, content := range files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	few := map[string]string{"key": "value"}
	const secret = "pods/1/volumes/kubernetes.io~secret/token"
	pipe := dir(secret, few)
	if err := syscall.Mkfifo(filepath.Join(pipe, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	readOnly := []string{"rbind", "rprivate", "ro"}
	for name, c := range map[string]struct {
		source  string
		options []string
		want    bool
	}{
		"secret":           {dir(secret, few), readOnly, true},
		"config map":       {dir("pods/1/volumes/kubernetes.io~configmap/c", nil), readOnly, true},
		"projected":        {dir("pods/1/volumes/kubernetes.io~projected/c", few), readOnly, true},
		"downward API":     {dir("pods/1/volumes/kubernetes.io~downward-api/c", few), readOnly, true},
		"writable":         {dir(secret, few), []string{"rbind"}, false},
		"followed":         {dir(secret, few), []string{"rbind", "rslave", "ro"}, false},
		"emptyDir":         {dir("pods/1/volumes/kubernetes.io~empty-dir/c", few), readOnly, false},
		"subPath":          {dir("pods/1/volume-subpaths/c/main/0", few), readOnly, false},
		"a part of one":    {dir(secret+"/..data", few), readOnly, false},
		"of nobody":        {dir("kubernetes.io~secret/token", few), readOnly, false},
		"one file":         {filepath.Join(dir(secret, few), "key"), readOnly, false},
		"large":            {dir(secret, map[string]string{"key": strings.Repeat("x", MaxFilesBytes/2+1)}), readOnly, false},
		"with a pipe":      {pipe, readOnly, false},
		"a host directory": {dir("secrets", few), readOnly, false},
	} {
		p, _ := mustPlan(t, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: c.source, Destination: "/conf", Options: c.options})
		})
		m := p.Spec.Mounts[len(p.Spec.Mounts)-1]
		copied := strings.HasPrefix(m.Source, "/guest/files/")
		if copied != c.want || len(p.Files) == 1 != c.want {
			t.Errorf("%s: the guest has it from %s, copies %v; want a copy: %v", name, m.Source, p.Files, c.want)
		}
		if copied && (p.Files[0].HostPath != c.source || "/guest/files/"+p.Files[0].GuestName != m.Source || !has(m.Options, "ro")) {
			t.Errorf("%s: planned %+v, mounted as %+v", name, p.Files[0], m)
		}
	}
}
