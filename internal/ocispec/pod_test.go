package ocispec

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestForwardsPorts has the first container of pods of several engines: containerd and CRI-O forward ports, podman does not.
func TestForwardsPorts(t *testing.T) {
	for _, test := range []struct {
		name        string
		annotations map[string]string
		want        bool
	}{
		{"no pod", nil, false},
		{"containerd's", map[string]string{criType: "sandbox"}, true},
		{"a member of containerd's", map[string]string{criType: "container"}, false},
		{"CRI-O's", map[string]string{crioType: "sandbox", crioPorts: "[]"}, true},
		{"a member of CRI-O's", map[string]string{crioType: "container", crioPorts: "[]"}, false},
		{"podman's", map[string]string{crioType: "sandbox"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := ForwardsPorts(&specs.Spec{Annotations: test.annotations}); got != test.want {
				t.Errorf("forwards ports: %v, want %v", got, test.want)
			}
		})
	}
}
