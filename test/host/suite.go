package host

import (
	"fmt"
	"slices"
	"strings"
)

// Suite is a package of tests, or a part of one, for the host.
type Suite struct {
	Name    string
	Package string   // its directory in the tree
	Run     string   // regular expression of the tests that make sense there, as go test's -run
	Without []string // files of the host that are away while it runs
	About   string   // one line
}

// Suites are those that the host is for, the shortest first.
var Suites = []Suite{
	{
		Name: "short", Package: "test/kvm", Run: "^TestShort$",
		About: "boot, template, exec, volume, network, pod, kill: what continuous integration runs",
	},
	{
		Name: "smoke", Package: "test/kvm", Run: "^TestSmoke",
		About: "whether husk finds KVM and everything runs once: boot, template, exec, volume, network, pod, deaths, channels",
	},
	{
		Name: "exits", Package: "test/kvm", Run: "^TestExits",
		About: "how often a guest that boots leaves to its monitor",
	},
	{
		Name: "kvm", Package: "test/kvm", Run: "^Test",
		About: "all that is tested under KVM alone: smoke, exits, templates",
	},
	{
		Name: "driver", Package: "internal/vmm/qemu", Run: "^Test",
		About: "the suite of the drivers, and of QEMU's",
	},
	{
		Name: "driver-serial", Package: "internal/vmm/qemu", Run: "^Test", Without: []string{"/dev/vhost-vsock"},
		About: "the same where guests have no vsock, with the channel over virtio-serial",
	},
	{
		Name: "e2e", Package: "test/e2e", Run: "^Test(Run|OCI|Pod|Template|Systemd|Podman|Docker|Containerd|Rootless)",
		About: "end-to-end tests under a real systemd, with control groups of version 2",
	},
}

// Choose returns the suites of those names, for which run, where it is not empty, takes the place of the suites' own choice.
func Choose(names []string, run string) ([]Suite, error) {
	var chosen []Suite
	for _, name := range names {
		i := slices.IndexFunc(Suites, func(s Suite) bool { return s.Name == name })
		if i < 0 {
			var all []string
			for _, s := range Suites {
				all = append(all, s.Name)
			}
			return nil, fmt.Errorf("no suite %q: there are %s", name, strings.Join(all, ", "))
		}
		s := Suites[i]
		if run != "" {
			s.Run = run
		}
		chosen = append(chosen, s)
	}
	return chosen, nil
}
