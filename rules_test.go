// Package husk_test holds the rules that the source tree keeps: what may import what, and how large and how
// documented things are. Each rule is data with its reason.
package husk_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
)

const module = "husk.dev/husk"

// layer says which of our packages a package may import, by path below the module. A path that ends in
// "/..." stands for a package and all below it. Every package must be in exactly one layer.
type layer struct {
	packages []string
	may      []string
	why      string
}

var layers = []layer{
	{
		[]string{"api/..."}, nil,
		"wire formats belong to both ends and know neither",
	},
	{
		[]string{
			"internal/assets", "internal/channel", "internal/child", "internal/cleanup", "internal/config",
			"internal/fdpass", "internal/filetar", "internal/hook", "internal/hostcgroup", "internal/image", "internal/logfile",
			"internal/ocispec", "internal/state", "internal/testenv/...", "internal/turn",
		}, []string{"internal/sys/...", "internal/cleanup"},
		"leaves: each is understood and tested by itself",
	},
	{
		[]string{"internal/sys/..."}, []string{"internal/sys/..."},
		"thin wrappers of the kernel know nothing of what they are used for",
	},
	{
		[]string{"internal/vmm"}, nil,
		"the contract of drivers is plain data and no implementation",
	},
	{
		[]string{"internal/vmm/qemu"},
		[]string{"internal/vmm", "internal/channel", "internal/child", "internal/cleanup", "internal/fdpass", "internal/sys/..."},
		"a driver gets values: no configuration, no OCI, no storage or network package",
	},
	{
		[]string{"internal/vmm/all"}, []string{"internal/vmm", "internal/vmm/qemu"},
		"the one list of drivers that a binary has",
	},
	{
		[]string{"internal/vmm/vmmtest/..."},
		[]string{"internal/assets", "internal/vmm", "internal/vmm/vmmtest/...", "internal/channel", "internal/cleanup", "internal/sys/...", "internal/testenv"},
		"the suite every driver passes knows the contract alone",
	},
	{
		[]string{"internal/storage/..."},
		[]string{"internal/storage/...", "internal/vmm", "internal/child", "internal/cleanup", "internal/sys/..."},
		"storage makes values that a sandbox gives to a driver",
	},
	{
		[]string{"internal/network/..."},
		[]string{"internal/network/...", "api/agent/v1", "internal/vmm", "internal/child", "internal/cleanup", "internal/sys/..."},
		"network makes values that a sandbox gives to a driver, and to the guest",
	},
	{
		[]string{"internal/guest"}, []string{"api/agent/v1", "internal/sys/...", "internal/cleanup"},
		"the client of the agent shares its wire types and nothing else",
	},
	{
		[]string{"internal/template"}, []string{"api/agent/v1", "internal/cleanup", "internal/guest", "internal/sys/...", "internal/vmm"},
		"a template is a VM that was saved, whatever the driver",
	},
	{
		[]string{"internal/agent", "internal/agent/boot"},
		[]string{"internal/agent/...", "api/agent/v1", "internal/channel", "internal/cleanup", "internal/filetar", "internal/sys/..."},
		"the guest's process 1 is small and knows nothing of the host; files cross as tar streams, which both sides read and write",
	},
	{
		[]string{
			"internal/agent/cgroup", "internal/agent/mnt", "internal/agent/names", "internal/agent/nic", "internal/agent/proc",
			"internal/agent/runner", "internal/agent/spec", "internal/agent/stdio",
		}, []string{"internal/agent/proc", "internal/agent/stdio", "api/agent/v1", "internal/cleanup", "internal/sys/..."},
		"the agent's parts do not know the agent",
	},
	{
		[]string{"internal/agent/agenttest"}, []string{"internal/agent", "api/agent/v1", "internal/channel", "internal/child"},
		"a guest without a VM, for tests",
	},
	{
		[]string{"internal/sandbox"},
		[]string{
			"api/agent/v1", "internal/assets", "internal/cleanup", "internal/config", "internal/guest",
			"internal/hostcgroup", "internal/logfile", "internal/network/...", "internal/ocispec", "internal/seccomp",
			"internal/state", "internal/storage/...", "internal/sys/...", "internal/template", "internal/turn", "internal/vmm",
		},
		"the one orchestrator: it knows every part, as contracts and values, and no part knows it",
	},
	{
		[]string{"internal/control"},
		[]string{"api/control/v1", "internal/cleanup", "internal/fdpass", "internal/logfile", "internal/sandbox", "internal/state", "internal/sys/...", "internal/tracing"},
		"serves a sandbox, and is its client",
	},
	{
		[]string{"internal/install"}, []string{"internal/state"},
		"edits files of others, and knows nothing of what it names there",
	},
	{
		[]string{"internal/forward"}, []string{"internal/ocispec", "internal/sys/..."},
		"connects to a guest whose sandbox it does not know",
	},
	{
		[]string{"internal/shim"},
		[]string{
			"api/agent/v1", "api/cri/v1", "internal/cleanup", "internal/config", "internal/forward", "internal/hook", "internal/ocispec", "internal/sandbox",
			"internal/state", "internal/sys/...", "internal/tracing",
		},
		"translates containerd's Task and Sandbox APIs for a sandbox that it owns; what makes one is given to it",
	},
	{
		[]string{"internal/tracing"}, nil,
		"sends what others do, and knows none of them",
	},
	{
		[]string{"internal/seccomp"}, []string{"internal/child"},
		"one program's client",
	},
	{
		[]string{"internal/check"},
		[]string{"internal/assets", "internal/child", "internal/config", "internal/sys/...", "internal/vmm"},
		"looks at the machine and touches no sandbox",
	},
	{
		[]string{"internal/bench"}, []string{"internal/bench/load", "internal/cleanup", "internal/ocispec", "internal/sys/..."},
		"measures what callers see: it calls runtimes by their command lines, husk too",
	},
	{
		[]string{"internal/bench/load"}, nil,
		"work in a container knows nothing but the kernel under it",
	},
	{
		[]string{"internal/selftest"},
		[]string{
			"internal/check", "internal/child", "internal/cleanup", "internal/config", "internal/ocispec", "internal/selftest/work", "internal/state",
			"internal/sys/...",
		},
		"tries what users see: it calls husk by its command line, and knows only what check says and which processes are on record, to kill them",
	},
	{
		[]string{"internal/selftest/work"}, nil,
		"work in a container knows nothing but the kernel under it",
	},
	{
		[]string{"internal/cli"},
		[]string{
			"api/agent/v1", "api/control/v1", "internal/assets", "internal/bench/...", "internal/check",
			"internal/cleanup", "internal/config", "internal/control", "internal/fdpass", "internal/filetar", "internal/forward", "internal/hook",
			"internal/hostcgroup", "internal/image", "internal/install", "internal/logfile", "internal/network", "internal/ocispec", "internal/sandbox", "internal/selftest/...", "internal/shim", "internal/state",
			"internal/storage/...", "internal/sys/...", "internal/template", "internal/tracing", "internal/vmm",
		},
		"commands join the parts, but speak to a running sandbox through control, and name no driver",
	},
	{
		[]string{"internal/manpages"}, []string{"internal/cli"},
		"the manual is made from the commands",
	},
	{
		[]string{"internal/recording"}, []string{"internal/sys"},
		"films whatever runs in a terminal, and knows none of it",
	},
	{
		[]string{"cmd/husk"}, []string{"internal/cli", "internal/vmm/all"},
		"a binary is its front end and the list of drivers",
	},
	{
		[]string{"cmd/husk-agent"}, []string{"internal/agent", "internal/agent/boot"},
		"the guest's binary is the agent",
	},
	{
		[]string{"test/host/..."}, []string{"test/host/...", "internal/testenv", "internal/child"},
		"the test host brings the tree's tests to another machine, and knows nothing of what they test",
	},
	{
		[]string{"test/conformance/...", "test/e2e/...", "test/kvm"}, []string{"internal/testenv", "internal/sys/..."},
		"end-to-end tests see what users see",
	},
}

// matches tells whether pattern names the package.
func matches(pattern, pkg string) bool {
	if parent, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == parent || strings.HasPrefix(pkg, parent+"/")
	}
	return pkg == pattern
}

func matchesAny(patterns []string, pkg string) bool {
	for _, p := range patterns {
		if matches(p, pkg) {
			return true
		}
	}
	return false
}

// keepers says who alone may import a package of others, with the reason. "" for the file stands for any.
var keepers = []struct {
	importPath string // and all below it
	packages   []string
	file       string // suffix of the file's name
	why        string
}{
	{"golang.org/x/sys/unix", []string{"internal/sys/..."}, "", "one place to review what husk asks of the kernel"},
	{"unsafe", []string{"..."}, "_unsafe.go", "a reader finds what the compiler does not check by its name"},
	{
		"github.com/containerd/containerd", []string{"internal/shim/...", "internal/image", "test/..."}, "",
		"containerd is one of husk's front ends, has the code that unpacks layers, runs a suite, and is what a test calls the shim as",
	},
	{"github.com/google/go-containerregistry", []string{"internal/image", "test/..."}, "", "images come from one place, and tests make some"},
	{"github.com/spf13/cobra", []string{"internal/cli", "internal/manpages"}, "", "only the command layer is a command line"},
	{"go.opentelemetry.io/otel/sdk", []string{"internal/tracing", "test/..."}, "", "one package knows where traces go; the others make spans"},
	{"go.opentelemetry.io/otel/exporters", []string{"internal/tracing", "test/..."}, "", "one package knows where traces go; the others make spans"},
	{"github.com/BurntSushi/toml", []string{"internal/config"}, "", "one package reads configuration"},
}

// source is one Go file of the tree.
type source struct {
	name      string // slash separated, from the root
	pkg       string // directory, as layers names packages
	test      bool
	generated bool
	file      *ast.File
	fset      *token.FileSet
	lines     int
}

// tree parses every Go file that git tracks or would track.
func tree(t *testing.T) []source {
	t.Helper()
	var all []source
	for _, name := range files(t) {
		if !strings.HasSuffix(name, ".go") {
			continue
		}
		data, err := os.ReadFile(filepath.FromSlash(name))
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, data, parser.ParseComments)
		if err != nil {
			t.Errorf("parse: %v", err)
			continue
		}
		all = append(all, source{
			name: name, pkg: path.Dir(name), test: strings.HasSuffix(name, "_test.go"),
			generated: ast.IsGenerated(file), file: file, fset: fset, lines: strings.Count(string(data), "\n"),
		})
	}
	if len(all) == 0 {
		t.Fatal("no Go files found")
	}
	return all
}

// files lists what git tracks or would track, and is there.
func files(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		t.Fatalf("list the tree: %v", err)
	}
	var names []string
	for _, name := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		if _, err := os.Lstat(filepath.FromSlash(name)); err == nil {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	return names
}

func importsOf(s source) []string {
	var paths []string
	for _, spec := range s.file.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

// TestLayers checks the imports of all but tests, which may join what they test.
func TestLayers(t *testing.T) {
	for _, s := range tree(t) {
		if s.test || s.pkg == "." {
			continue
		}
		var of []layer
		for _, l := range layers {
			if matchesAny(l.packages, s.pkg) {
				of = append(of, l)
			}
		}
		if len(of) != 1 {
			t.Errorf("%s: the package is in %d layers, want 1: say in layers what it may import", s.name, len(of))
			continue
		}
		for _, p := range importsOf(s) {
			ours, ok := strings.CutPrefix(p, module+"/")
			if ok && !matchesAny(of[0].may, ours) {
				t.Errorf("%s imports %s: %s", s.name, ours, of[0].why)
			}
		}
	}
}

func TestKeepers(t *testing.T) {
	for _, s := range tree(t) {
		if s.generated {
			continue
		}
		for _, p := range importsOf(s) {
			for _, k := range keepers {
				if !matches(k.importPath+"/...", p) {
					continue
				}
				kept := matchesAny(k.packages, s.pkg) || k.packages[0] == "..."
				if !kept || !strings.HasSuffix(strings.Replace(s.name, "_test.go", ".go", 1), k.file) {
					t.Errorf("%s imports %s: %s", s.name, p, k.why)
				}
			}
		}
	}
}

// reach says what a binary must not depend on, however far away.
var reach = []struct {
	binary, pkg, why string // pkg and all below it
}{
	{"cmd/husk-agent", "github.com/containerd/containerd", "the guest has no containerd"},
	{"cmd/husk-agent", module + "/internal/vmm", "the guest cannot drive its own monitor"},
	{"cmd/husk-agent", module + "/internal/config", "the host's settings are not the guest's"},
	{"cmd/husk-agent", module + "/internal/sandbox", "the orchestrator is the host's"},
	{"cmd/husk-agent", "net/http", "process 1 is small and serves one protocol"},
	{"cmd/husk-agent", "crypto/tls", "process 1 is small and serves one protocol"},
	{"cmd/husk", module + "/internal/agent", "host and guest share wire types, not code"},
	{"cmd/husk", module + "/internal/vmm/vmmtest", "tests are no part of the product"},
	{"cmd/husk", "testing", "tests are no part of the product"},
	{"cmd/husk-agent", "testing", "tests are no part of the product"},
}

func TestReach(t *testing.T) {
	deps := map[string][]string{}
	for _, r := range reach {
		if deps[r.binary] == nil {
			cmd := exec.Command("go", "list", "-deps", "./"+r.binary)
			cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("list what %s is made of: %v", r.binary, err)
			}
			deps[r.binary] = strings.Fields(string(out))
		}
		for _, p := range deps[r.binary] {
			if matches(r.pkg+"/...", p) {
				t.Errorf("%s reaches %s: %s", r.binary, p, r.why)
			}
		}
	}
}
