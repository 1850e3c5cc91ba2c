package shim

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	task "github.com/containerd/containerd/api/runtime/task/v3"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/testenv"
)

// bundleOf writes the bundle of such a container.
func (p *podShim) bundleOf(t *testing.T, id, pid string, hooks *specs.Hooks) string {
	t.Helper()
	bundle := filepath.Join(filepath.Dir(p.bundle), id)
	if err := os.MkdirAll(filepath.Join(bundle, rootfsDir), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := ocispec.Example(false, 0, 0)
	spec.Process.Terminal, spec.Hooks = false, hooks
	spec.Annotations = map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "pod"}
	for i, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.MountNamespace || ns.Type == specs.CgroupNamespace {
			continue
		}
		kind := string(ns.Type)
		if ns.Type == specs.NetworkNamespace {
			kind = "net"
		}
		spec.Linux.Namespaces[i].Path = "/proc/" + pid + "/ns/" + kind
	}
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, configFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return bundle
}

// TestUnmadeHooks has a container come to nothing after hooks have run: those for its end undo what they did.
func TestUnmadeHooks(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	p := newPodShim(t)
	pid := strconv.Itoa(int(p.start(t).Pid))
	told := filepath.Join(t.TempDir(), "told")
	bundle := p.bundleOf(t, "one", pid, &specs.Hooks{
		CreateRuntime: []specs.Hook{{Path: "/bin/false"}},
		Poststop:      []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >" + told}}},
	})
	if _, err := p.tasks.Create(t.Context(), &task.CreateTaskRequest{ID: "one", Bundle: bundle}); err == nil {
		t.Fatal("a container was made whose hook failed")
	}
	data, err := os.ReadFile(told)
	if err != nil || !bytes.Contains(data, []byte(`"id":"one","status":"stopped"`)) {
		t.Errorf("the hook for the end was told %q, %v", data, err)
	}
}
