// Package install names husk as a runtime in the configuration of container engines, and takes that back. What else is in a
// file stays as it is, byte for byte where the file's form allows additions.
package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"husk.dev/husk/internal/state"
)

// Engine is one that husk can be named to.
type Engine struct {
	Name string
	file string // below /etc
	// add returns the file with husk named in it, the program being at path; nil stands for no file.
	add func(old []byte, path string) ([]byte, error)
	// remove undoes add; nil says that nothing is left of the file.
	remove func(old []byte) ([]byte, error)
	// Next is what the user does for it to count.
	Next string
}

// Engines are all that are known.
var Engines = []Engine{
	{"containerd", "containerd/config.toml", addContainerd(""), cutBlock, "restart containerd, and ask for the runtime io.containerd.husk.v2, or in Kubernetes for the handler husk"},
	{"crio", "crio/crio.conf.d/50-husk.conf", whole(crioText), gone, "set drop_infra_ctr = false below [crio.runtime], restart CRI-O, and ask for the handler husk"},
	{"podman", "containers/containers.conf.d/husk.conf", whole(podmanText), gone, "podman --runtime husk run ..."},
	{"docker", "docker/daemon.json", addDocker, removeDocker, "reload Docker (kill -HUP, or restart it), and docker run --runtime husk ..."},
}

// Find returns the engine of a name.
func Find(name string) (Engine, error) {
	var names []string
	for _, e := range Engines {
		if e.Name == name {
			return e, nil
		}
		names = append(names, e.Name)
	}
	return Engine{}, fmt.Errorf("engine %q is not known: must be one of %q", name, names)
}

// Apply names the program at path to the engine whose configuration is below the directory etc, or with undo takes that
// back. It returns the file that it is about, and whether that had to be changed.
func (e Engine) Apply(etc, path string, undo bool) (file string, changed bool, err error) {
	file = filepath.Join(etc, e.file)
	old, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = nil, nil
		if undo {
			return file, false, nil
		}
	}
	if err != nil {
		return file, false, fmt.Errorf("read configuration of %s: %w", e.Name, err)
	}
	text, err := e.change(old, path, undo)
	if err != nil {
		return file, false, fmt.Errorf("%s: %w", file, err)
	}
	switch {
	case bytes.Equal(text, old) && (text == nil) == (old == nil):
		return file, false, nil
	case text == nil:
		err = os.Remove(file)
	default:
		err = write(file, text)
	}
	if err != nil {
		return file, false, fmt.Errorf("write configuration of %s: %w", e.Name, err)
	}
	return file, true, nil
}

func (e Engine) change(old []byte, path string, undo bool) ([]byte, error) {
	if undo {
		return e.remove(old)
	}
	return e.add(old, path)
}

// write replaces a file and keeps its mode.
func write(file string, text []byte) error {
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(file); err == nil {
		mode = info.Mode().Perm()
		if file, err = filepath.EvalSymlinks(file); err != nil { // the link is the user's
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return state.WriteFile(file, text, mode)
}

// whole makes an add for a file that is husk's alone.
func whole(text func(path string) string) func([]byte, string) ([]byte, error) {
	return func(_ []byte, path string) ([]byte, error) { return []byte(text(path)), nil }
}

func gone([]byte) ([]byte, error) { return nil, nil }

func crioText(path string) string {
	return fmt.Sprintf("[crio.runtime.runtimes.husk]\nruntime_path = %q\nruntime_type = \"oci\"\nruntime_root = \"/run/husk\"\n", path)
}

func podmanText(path string) string {
	return fmt.Sprintf("[engine.runtimes]\nhusk = [%q]\n", path)
}

// Lines around what was added to a file of the user's, and the one of a file that has nothing else.
const (
	blockBegin = "# husk install: begin\n"
	blockEnd   = "# husk install: end\n"
	ownFile    = "# This file was made by husk install.\n"
)

var (
	versionLine = regexp.MustCompile(`(?m)^version\s*=\s*(\d+)`)
	anyRuntime  = regexp.MustCompile(`(?m)^\s*\[plugins\..*\.containerd\.runtimes\.`)
	foreignHusk = regexp.MustCompile(`(?m)^\s*\[plugins\..*\.runtimes\.["']?husk["']?\]`)
)

// WithSandboxAPI is containerd that makes pods by its Sandbox API.
func (e Engine) WithSandboxAPI() (Engine, error) {
	if e.Name != "containerd" {
		return e, fmt.Errorf("%s has no Sandbox API: containerd has", e.Name)
	}
	e.add = addContainerd("  sandboxer = \"shim\"\n")
	return e, nil
}

// addContainerd makes an add that appends the runtime's table, with more in it where the file is of containerd 2: tables of
// TOML may come in any order, and containerd before version 2 would take a table of an imported file for the whole plugin's.
func addContainerd(more string) func(old []byte, path string) ([]byte, error) {
	return func(old []byte, _ string) ([]byte, error) { return appendRuntime(old, more) }
}

func appendRuntime(old []byte, more string) ([]byte, error) {
	old, err := cutBlock(old)
	if err != nil {
		return nil, err
	}
	if foreignHusk.Match(old) {
		return nil, errors.New("it has a runtime husk that is not of husk install")
	}
	head := string(old)
	if len(old) == 0 {
		head = ownFile + "version = 2\n"
		if more != "" {
			head = ownFile + "version = 3\n"
		}
	}
	version := versionLine.FindStringSubmatch(head)
	table := map[string]string{"2": `plugins."io.containerd.grpc.v1.cri"`, "3": `plugins.'io.containerd.cri.v1.runtime'`}
	if version == nil || table[version[1]] == "" {
		return nil, errors.New("its form is not version 2 or 3: migrate it first (containerd config migrate)")
	}
	if more != "" && version[1] != "3" {
		return nil, errors.New("the Sandbox API takes containerd 2, and a file of version 3: migrate it first (containerd config migrate)")
	}
	if !strings.HasSuffix(head, "\n") {
		return nil, errors.New("it does not end with a line end: add one")
	}
	runc := ""
	if version[1] == "2" && !anyRuntime.MatchString(head) {
		// A file that names any runtime has containerd 1.6 forget its own default.
		runc = "[" + table["2"] + ".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n"
	}
	return []byte(head + blockBegin + runc + "[" + table[version[1]] + ".containerd.runtimes.husk]\n" +
		"  runtime_type = \"io.containerd.husk.v2\"\n  pod_annotations = [\"dev.husk.*\"]\n" + more + blockEnd), nil
}

// cutBlock takes out what was added between the two lines.
func cutBlock(old []byte) ([]byte, error) {
	before, rest, found := bytes.Cut(old, []byte(blockBegin))
	if !found {
		return old, nil
	}
	_, after, found := bytes.Cut(rest, []byte(blockEnd))
	if !found {
		return nil, fmt.Errorf("the line %q is missing", strings.TrimSpace(blockEnd))
	}
	left := append(bytes.Clone(before), after...)
	if string(left) == ownFile+"version = 2\n" || string(left) == ownFile+"version = 3\n" {
		return nil, nil
	}
	return left, nil
}

// addDocker adds the runtime to the JSON object.
func addDocker(old []byte, path string) ([]byte, error) {
	return changeDocker(old, func(runtimes map[string]json.RawMessage) error {
		value, err := json.Marshal(map[string]string{"path": path})
		runtimes["husk"] = value
		return err
	})
}

func removeDocker(old []byte) ([]byte, error) {
	text, err := changeDocker(old, func(runtimes map[string]json.RawMessage) error {
		delete(runtimes, "husk")
		return nil
	})
	if err == nil && strings.TrimSpace(string(text)) == "{}" {
		return nil, nil
	}
	return text, err
}

// changeDocker changes the member "runtimes" and leaves a file alone that says the same already.
func changeDocker(old []byte, change func(map[string]json.RawMessage) error) ([]byte, error) {
	all, runtimes := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if len(bytes.TrimSpace(old)) > 0 {
		if err := json.Unmarshal(old, &all); err != nil {
			return nil, fmt.Errorf("read JSON: %w", err)
		}
	}
	if raw, found := all["runtimes"]; found {
		if err := json.Unmarshal(raw, &runtimes); err != nil {
			return nil, fmt.Errorf("read JSON: runtimes: %w", err)
		}
	}
	if all == nil { // "null" makes a map nil
		all = map[string]json.RawMessage{}
	}
	if runtimes == nil {
		runtimes = map[string]json.RawMessage{}
	}
	before := compact(runtimes["husk"])
	if err := change(runtimes); err != nil {
		return nil, err
	}
	if compact(runtimes["husk"]) == before && old != nil {
		return old, nil
	}
	delete(all, "runtimes")
	if len(runtimes) > 0 {
		raw, err := json.Marshal(runtimes)
		if err != nil {
			return nil, fmt.Errorf("write JSON: %w", err)
		}
		all["runtimes"] = raw
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	return append(text, '\n'), nil
}

func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if raw == nil || json.Compact(&b, raw) != nil {
		return ""
	}
	return b.String()
}
