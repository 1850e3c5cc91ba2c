// Package spec changes an OCI configuration, made for the host, into the one that the container runner in
// the guest gets.
package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// ErrInvalid is matched by configurations that cannot be run.
var ErrInvalid = errors.New("invalid OCI configuration")

// Changes says what a configuration is given in the guest.
type Changes struct {
	Root          string // path of the mounted root
	Cgroup        string // linux.cgroupsPath
	Terminal      bool
	Rows, Columns uint16
	// Disks are the guest's numbers of block devices, by those that the configuration has for them.
	Disks map[Number]Number
	// NoDevices drops linux.resources.devices, for a test on a machine where BPF programs cannot be loaded.
	NoDevices bool
	// Filter is what linux.seccomp compiles to, or empty where the runner is to find out.
	Filter []byte
	// Join returns the path of a namespace of the given type ("pid", …) to join where the configuration
	// names one of another container: by "husk:ID" that container's, with an empty id one that the host
	// meant by a path of its own. An empty path and no error: a new namespace.
	Join func(kind, id string) (string, error)
	// SetSysctl sets a setting of the guest's own network; nil leaves all to the runner.
	SetSysctl func(key, value string) error
}

// object is a JSON object whose members are left alone until they are asked for, so that what this
// package does not know passes unchanged.
type object map[string]json.RawMessage

func (o object) get(name string, value any) error {
	raw, found := o[name]
	if !found {
		return nil
	}
	if err := json.Unmarshal(raw, value); err != nil {
		return fmt.Errorf("%s: %w: %w", name, ErrInvalid, err)
	}
	return nil
}

func (o object) set(name string, value any) error {
	raw, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	o[name] = raw
	return nil
}

// network is the guest's own network namespace, which containers have that do not ask for a new one. It is joined
// where one was asked for, not left out: without one the container runner refuses to set network sysctls.
const network = "/proc/1/ns/net"

// Rewrite returns the configuration with the changes made: the guest's root, cgroup and network, no
// namespace paths of the host, and no hooks but those that run in the container.
func Rewrite(config []byte, c Changes) ([]byte, error) {
	var top object
	if err := json.Unmarshal(config, &top); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if top == nil {
		return nil, fmt.Errorf("%w: not an object", ErrInvalid)
	}
	for _, change := range []func(object, Changes) error{setRoot, setProcess, setLinux, keepHooks, setAnnotations} {
		if err := change(top, c); err != nil {
			return nil, err
		}
	}
	return json.Marshal(top)
}

func setRoot(top object, c Changes) error {
	root := object{}
	if err := top.get("root", &root); err != nil {
		return err
	}
	if root == nil {
		root = object{}
	}
	if err := root.set("path", c.Root); err != nil {
		return err
	}
	return top.set("root", root)
}

func setProcess(top object, c Changes) error {
	raw, found := top["process"]
	if !found {
		return fmt.Errorf("%w: no process", ErrInvalid)
	}
	changed, err := Process(raw, c.Terminal, c.Rows, c.Columns)
	if err != nil {
		return err
	}
	top["process"] = changed
	return nil
}

// Process returns an OCI process object with the terminal that its streams have.
func Process(process []byte, terminal bool, rows, columns uint16) ([]byte, error) {
	var p object
	if err := json.Unmarshal(process, &p); err != nil {
		return nil, fmt.Errorf("process: %w: %w", ErrInvalid, err)
	}
	var args []string
	if err := p.get("args", &args); err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("%w: process has no args", ErrInvalid)
	}
	if err := p.set("terminal", terminal); err != nil {
		return nil, err
	}
	delete(p, "consoleSize")
	if terminal && rows > 0 && columns > 0 {
		if err := p.set("consoleSize", map[string]uint16{"height": rows, "width": columns}); err != nil {
			return nil, err
		}
	}
	return json.Marshal(p)
}

func setLinux(top object, c Changes) error {
	linux := object{}
	if err := top.get("linux", &linux); err != nil {
		return err
	}
	if linux == nil {
		linux = object{}
	}
	var namespaces []object
	if err := linux.get("namespaces", &namespaces); err != nil {
		return fmt.Errorf("linux: %w", err)
	}
	kept, err := keepNamespaces(namespaces, c)
	if err != nil {
		return err
	}
	if err := linux.set("namespaces", kept); err != nil {
		return err
	}
	if err := takeSysctls(linux, kept, c); err != nil {
		return err
	}
	if err := setDevices(linux, c.Disks); err != nil {
		return err
	}
	if c.NoDevices {
		if err := dropDevices(linux); err != nil {
			return err
		}
	}
	if err := linux.set("cgroupsPath", c.Cgroup); err != nil {
		return err
	}
	return top.set("linux", linux)
}

// takeSysctls sets what a container with a user namespace wants of the guest's own network: to that namespace the network
// is another's, and the runner may not.
func takeSysctls(linux object, namespaces []object, c Changes) error {
	user, own := false, false
	for _, ns := range namespaces {
		var kind, path string
		if err := errors.Join(ns.get("type", &kind), ns.get("path", &path)); err != nil {
			return fmt.Errorf("linux.namespaces: %w", err)
		}
		user = user || kind == "user"
		own = own || kind == "network" && path == network
	}
	var all map[string]string
	if err := linux.get("sysctl", &all); err != nil {
		return fmt.Errorf("linux: %w", err)
	}
	if !user || !own || c.SetSysctl == nil {
		return nil
	}
	for key, value := range all {
		if !strings.HasPrefix(key, "net.") {
			continue
		}
		if err := c.SetSysctl(key, value); err != nil {
			return fmt.Errorf("linux.sysctl: %w", err)
		}
		delete(all, key)
	}
	return linux.set("sysctl", all)
}

func dropDevices(linux object) error {
	var resources object
	if err := linux.get("resources", &resources); err != nil {
		return fmt.Errorf("linux: %w", err)
	}
	if resources == nil {
		return nil
	}
	delete(resources, "devices")
	return linux.set("resources", resources)
}

// keepNamespaces replaces the paths of the host.
func keepNamespaces(all []object, c Changes) ([]object, error) {
	kept := []object{}
	for _, ns := range all {
		var kind, path string
		if err := errors.Join(ns.get("type", &kind), ns.get("path", &path)); err != nil {
			return nil, fmt.Errorf("linux.namespaces: %w", err)
		}
		joined, err := join(kind, path, c)
		if err != nil {
			return nil, fmt.Errorf("linux.namespaces: %s: %w", kind, err)
		}
		delete(ns, "path")
		if joined != "" {
			if err := ns.set("path", joined); err != nil {
				return nil, err
			}
		}
		kept = append(kept, ns)
	}
	return kept, nil
}

// join returns the path of the namespace of the guest that stands for one of the host, "" for a new one.
func join(kind, path string, c Changes) (string, error) {
	switch {
	case kind == "network" && path != "":
		return network, nil
	case path == "" || !joinable[kind]:
		return "", nil
	}
	id, named := strings.CutPrefix(path, "husk:")
	if !named {
		id = ""
	}
	return c.Join(kind, id)
}

// joinable are the namespaces that containers of a pod share.
var joinable = map[string]bool{"pid": true, "ipc": true, "uts": true, "user": true}

func keepHooks(top object, _ Changes) error {
	var hooks object
	if err := top.get("hooks", &hooks); err != nil {
		return err
	}
	start, found := hooks["startContainer"]
	delete(top, "hooks")
	if !found {
		return nil
	}
	return top.set("hooks", object{"startContainer": start})
}

const (
	// runnerPrefix begins the annotations that change what the runner does. They are no user's to make.
	runnerPrefix = "run.oci."
	// filterAnnotation gives crun the filter, as base64, that it would make of linux.seccomp (crun(1)).
	filterAnnotation = runnerPrefix + "seccomp_bpf_data"
)

func setAnnotations(top object, c Changes) error {
	var annotations object
	if err := top.get("annotations", &annotations); err != nil {
		return err
	}
	for name := range annotations {
		if strings.HasPrefix(name, runnerPrefix) {
			delete(annotations, name)
		}
	}
	if len(c.Filter) > 0 {
		if annotations == nil {
			annotations = object{}
		}
		if err := annotations.set(filterAnnotation, c.Filter); err != nil { // []byte becomes base64
			return err
		}
	}
	if annotations == nil {
		return nil
	}
	return top.set("annotations", annotations)
}

// Seccomp returns linux.seccomp where the filter that it is compiled into is all there is to it, in a form
// that is the same for the same filter; else nil.
func Seccomp(config []byte) []byte {
	var filter object
	if err := linuxMember(config, "seccomp", &filter); err != nil || filter == nil {
		return nil
	}
	var flags []string
	var listener string
	err := errors.Join(filter.get("flags", &flags), filter.get("listenerPath", &listener))
	if err != nil || len(flags) > 0 || listener != "" {
		return nil
	}
	text, err := json.Marshal(filter) // sorts and compacts
	if err != nil {
		return nil
	}
	return text
}

// Sources are those of a configuration's mounts.
func Sources(config []byte) (sources []string) {
	var top object
	var mounts []object
	if json.Unmarshal(config, &top) != nil || top.get("mounts", &mounts) != nil {
		return nil // Rewrite says what is wrong with it
	}
	for _, m := range mounts {
		var source string
		if m.get("source", &source) == nil && source != "" {
			sources = append(sources, source)
		}
	}
	return sources
}

// PrivatePIDs tells whether a configuration gives its container PID numbers of its own, with its init as
// the first, so that the kernel ends every process of the container with it.
func PrivatePIDs(config []byte) bool {
	var namespaces []object
	if linuxMember(config, "namespaces", &namespaces) != nil {
		return false
	}
	for _, ns := range namespaces {
		var kind, path string
		if errors.Join(ns.get("type", &kind), ns.get("path", &path)) == nil && kind == "pid" && path == "" {
			return true
		}
	}
	return false
}

// linuxMember reads a member of linux. Unlike with a struct the names must match in their case, as they must
// for the container runner.
func linuxMember(config []byte, name string, value any) error {
	var top, linux object
	if err := json.Unmarshal(config, &top); err != nil {
		return err
	}
	if err := top.get("linux", &linux); err != nil {
		return err
	}
	return linux.get(name, value)
}
