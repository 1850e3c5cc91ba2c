package forward

import (
	"log/slog"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestPodOfHost has a pod with the network namespace that the test is in: nothing may be redirected there.
func TestPodOfHost(t *testing.T) {
	for _, path := range []string{"", "/proc/self/ns/net", "/proc/thread-self/ns/net", "/proc/nonexistent"} {
		spec := &specs.Spec{
			Annotations: map[string]string{"io.kubernetes.cri.container-type": "sandbox"},
			Linux:       &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: path}}},
		}
		f := <-Pod(nil, spec, slog.New(slog.DiscardHandler))
		if f != nil {
			f.Close()
			t.Errorf("ports are forwarded in %q", path)
		}
		f.Close() // of none is nothing
	}
}
