package shim

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/state"
)

// TestNeighbour: a container that joins namespaces of another one belongs to the shim of that, for as long as it runs.
func TestNeighbour(t *testing.T) {
	root := t.TempDir()
	self, err := state.Self("attend")
	if err != nil {
		t.Fatal(err)
	}
	gone := self
	gone.Start++
	for id, host := range map[string]state.Process{"web": self, "gone": gone} {
		bundle := filepath.Join(root, "bundles", id)
		if err := os.MkdirAll(bundle, 0o700); err != nil {
			t.Fatal(err)
		}
		dir, err := state.Create(root, "ns."+id)
		if err != nil {
			t.Fatal(err)
		}
		unlock, err := dir.Lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = dir.Save(state.Container{Status: state.Running, Owner: self, Host: host})
		unlock()
		if err == nil {
			err = note{RunDir: root}.save(bundle)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(bundle, addressFile), []byte(unixScheme+"/socket/of/"+id), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	own := filepath.Join(root, "bundles", "own")
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"": "", "/run/netns/one": "", "/proc/1/ns/net": "",
		"/proc/" + strconv.Itoa(os.Getpid()) + "/ns/net": "/socket/of/web",
	} {
		spec := specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: path}}}}
		data, err := json.Marshal(spec)
		if err == nil {
			err = os.WriteFile(filepath.Join(own, configFile), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		about, err := belonging(own)
		if err != nil {
			t.Fatal(err)
		}
		if got := (arguments{namespace: "ns", id: "own"}).neighbour(own, about); got != want {
			t.Errorf("a container that joins %q belongs to %q, want %q", path, got, want)
		}
		if got := (arguments{namespace: "others", id: "own"}).neighbour(own, about); got != "" {
			t.Errorf("in another namespace of containerd's it belongs to %q", got)
		}
	}
}
