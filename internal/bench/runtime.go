package bench

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Runtime is an OCI runtime with the flags that it is called with.
type Runtime struct {
	Name    string   `json:"name"`
	Command []string `json:"command,omitempty"` // path and global flags
	Version string   `json:"version,omitempty"`
	// Image is one in the runtime's own store, made of the same root directory; empty where it has no store.
	Image string `json:"image,omitempty"`
	// Prepare is a verb, with arguments, that runs once before anything is measured; none where empty.
	Prepare []string `json:"prepare,omitempty"`
	// Config is husk's configuration file, for its shim; empty for other runtimes.
	Config string `json:"-"`
}

// usual are the runtimes that are looked for, with the global flags that they need to run what the
// benchmark asks for wherever husk runs too.
var usual = []struct {
	name  string
	flags []string
}{
	{"runc", nil},
	{"crun", nil},
	// No network, as the others have here; its own cgroups and the faster platforms need what not every
	// machine has.
	{"runsc", []string{"--platform=ptrace", "--network=none", "--ignore-cgroups"}},
}

// FindRuntimes returns the usual runtimes that are installed, and those that are named as
// NAME[=PATH [FLAG...]], which must be. A named one takes the place of the usual of that name; flags take
// the place of the usual ones.
func FindRuntimes(ctx context.Context, named []string) ([]Runtime, error) {
	var found []Runtime
	taken := map[string]bool{}
	for _, spec := range named {
		rt, err := parseRuntime(spec)
		if err != nil {
			return nil, err
		}
		if taken[rt.Name] {
			return nil, fmt.Errorf("--runtime %s: named twice", rt.Name)
		}
		taken[rt.Name] = true
		found = append(found, rt)
	}
	for _, u := range usual {
		if taken[u.name] {
			continue
		}
		if path, err := exec.LookPath(u.name); err == nil {
			found = append(found, Runtime{Name: u.name, Command: append([]string{path}, u.flags...)})
		}
	}
	for i := range found {
		found[i].Version = version(ctx, found[i])
	}
	return found, nil
}

func parseRuntime(spec string) (Runtime, error) {
	name, command, hasCommand := strings.Cut(spec, "=")
	words := strings.Fields(command)
	if !hasCommand {
		words = []string{name}
	}
	if name == "" || name == native || len(words) == 0 {
		return Runtime{}, fmt.Errorf("--runtime %q: must be NAME[=PATH [FLAG...]]", spec)
	}
	path, err := exec.LookPath(words[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return Runtime{}, fmt.Errorf("--runtime %s: %w", name, err)
	}
	rt := Runtime{Name: name, Command: append([]string{path}, words[1:]...)}
	for _, u := range usual {
		if u.name == name && len(words) == 1 {
			rt.Command = append(rt.Command, u.flags...)
		}
	}
	return rt, nil
}

// version is the first line of what a runtime says to --version, "unknown" where it says nothing.
func version(ctx context.Context, rt Runtime) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, rt.Command[0], "--version").Output()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || line == "" {
		return "unknown"
	}
	return line
}
