package shim

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
)

// Files that the shim keeps in a bundle.
const (
	noteFile    = "husk.json"   // where the container's state is, see note
	optionsFile = "husk.toml"   // a configuration that came as text
	runtimeFile = "options"     // the runtime's options for a sandbox, see saveOptions
	addressFile = "address"     // where the shim is found by containerd 1.6
	logFile     = "log"         // containerd's fifo
	configFile  = "config.json" // the container's configuration
	rootfsDir   = "rootfs"      // where the container's root is mounted
	socketDir   = "/run/containerd/s"
	unixScheme  = "unix://"
)

// stateID is the name of a container's state among those of all namespaces, "" where it cannot have one. That of a long id
// begins like it.
func stateID(namespace, id string) string {
	name := namespace + "." + id
	if len(name) > maxStateID {
		sum := sha256.Sum256([]byte(name))
		name = fmt.Sprintf("%.16s.%.24s-%x", namespace, id, sum[:6])
	}
	if state.CheckID(id) != nil || state.CheckID(name) != nil {
		return ""
	}
	return name
}

// maxStateID keeps the paths of sockets in the state directory short enough, in bytes.
const maxStateID = 54

// note is what the shim leaves in a bundle for the one that cleans up after it.
type note struct {
	RunDir string `json:"runDir"` // where the container's state is
	Config string `json:"config"` // the configuration file, "" for the default one
}

func (n note) save(bundle string) error {
	data, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode note: %w", err)
	}
	return state.WriteFile(filepath.Join(bundle, noteFile), data, 0o600)
}

// loadNote reads the note of a bundle; without one the container was never made.
func loadNote(bundle string) (n note, found bool, err error) {
	data, err := readFile(filepath.Join(bundle, noteFile))
	if errors.Is(err, fs.ErrNotExist) {
		return n, false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	if err != nil {
		return n, false, fmt.Errorf("read the shim's note of the container: %w", err)
	}
	return n, true, nil
}

// readFile reads a file that containerd has written.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, ocispec.MaxFile+1))
	if err == nil && len(data) > ocispec.MaxFile {
		err = fmt.Errorf("%s: more than %d bytes", name, ocispec.MaxFile)
	}
	return data, err
}

// belonging reads of a bundle's configuration what says where the container belongs: annotations and namespaces.
func belonging(bundle string) (*specs.Spec, error) {
	data, err := readFile(filepath.Join(bundle, configFile))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
		Linux       struct {
			Namespaces []specs.LinuxNamespace `json:"namespaces"`
		} `json:"linux"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return &specs.Spec{Annotations: spec.Annotations, Linux: &specs.Linux{Namespaces: spec.Linux.Namespaces}}, nil
}

// neighbour is the socket of the shim of a container whose namespaces the one of bundle joins, "" where it joins none. The
// bundles of a namespace of containerd's are side by side.
func (a arguments) neighbour(bundle string, spec *specs.Spec) string {
	pids := ocispec.JoinedPIDs(spec)
	if len(pids) == 0 {
		return ""
	}
	others, err := filepath.Glob(filepath.Join(filepath.Dir(bundle), "*", noteFile))
	if err != nil {
		return ""
	}
	for _, file := range others {
		other := filepath.Dir(file)
		n, found, err := loadNote(other)
		if err != nil || !found || other == bundle {
			continue
		}
		dir, err := state.Open(n.RunDir, stateID(a.namespace, filepath.Base(other)))
		if err != nil {
			continue
		}
		record, err := dir.Load()
		if err == nil && slices.Contains(pids, record.Host.PID) && record.Host.Alive() && record.Owner.Alive() {
			return savedSocket(other)
		}
	}
	return ""
}

// network is the path of the container's network namespace, and whether it has one of its own.
func network(spec *specs.Spec) (path string, own bool) {
	ns := ocispec.Namespace(spec, specs.NetworkNamespace)
	if ns == nil {
		return "", false
	}
	return ns.Path, true
}
