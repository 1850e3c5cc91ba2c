// Package check says what this machine can do for husk, and what mends what it cannot.
package check

import (
	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/sys/kvm"
	"husk.dev/husk/internal/vmm"
)

// Status says how much an Item matters.
type Status string

// Statuses of an Item.
const (
	OK      Status = "ok"
	Warning Status = "warning" // containers run, but worse than they could
	Missing Status = "missing" // containers, or a kind of them, cannot run
)

// Item is one thing that was looked at. Its JSON form is stable.
type Item struct {
	Name   string `json:"name"`   // of the catalogue in docs/cli.md
	Status Status `json:"status"` // ok, warning or missing
	Value  string `json:"value"`  // what was found
	// Why says what the value means where the status is not ok.
	Why string `json:"why,omitempty"`
	// Fix is the command that mends it, empty where no command does.
	Fix string `json:"fix,omitempty"`
}

// Report is the outcome. Its JSON form is stable: keys and Items may be added.
type Report struct {
	// Ready says that containers can run.
	Ready bool `json:"ready"`
	// Isolation is the class that a container started now would have; empty where none would start.
	Isolation vmm.Isolation `json:"isolation,omitempty"`
	Items     []Item        `json:"items"`
}

// Inputs is what a report is made from: what others have found out, and where to look for the rest.
type Inputs struct {
	Config config.Config

	Driver    vmm.Info // of the configured monitor
	DriverErr error    // why there is none
	KVM       kvm.Result
	Guest     assets.Guest
	GuestErr  error // why there is none

	FileService FileService

	Arch string // as assets.Arch names it
	UID  int    // the effective user's
	// MonitorUID is the user that monitors run as; 0 says that they keep the caller's identity.
	MonitorUID uint32
	Shells     []string // places of a static busybox
	Path       string   // list of directories with programs, as in $PATH
	// Root is put before every absolute path, for tests; empty: the real machine.
	Root string
}

// FileService is the virtiofsd that was found, as package virtiofs tells.
type FileService struct {
	Path    string // empty where there is none
	Kind    string // C or Rust
	Version string
	Err     error // why it is of no use, or why there is none
}

// Make looks at the machine. It changes nothing, and takes at most some seconds: it asks a few programs
// for their version.
func Make(in Inputs) Report {
	m := &machine{Inputs: in, distro: readDistro(in.Root)}
	var r Report
	for _, look := range looks {
		r.Items = append(r.Items, look(m)...)
	}
	r.Ready = true
	for _, item := range r.Items {
		r.Ready = r.Ready && item.Status != Missing
	}
	if r.Ready {
		r.Isolation = m.isolation()
	}
	return r
}

// machine is what the looks look at.
type machine struct {
	Inputs
	distro distro
}

// looks are all there is to see, in the order of the report.
var looks = []func(*machine) []Item{
	one((*machine).architecture), one((*machine).kernel), one((*machine).user),
	one((*machine).kvm), one((*machine).isolationItem), one((*machine).vhostVsock), one((*machine).vhostNet),
	one((*machine).monitor), one((*machine).virtiofsd), (*machine).guest,
	one((*machine).mkfsErofs), one((*machine).mkfsExt4), one((*machine).busybox),
	one((*machine).cgroups), one((*machine).dataDir), one((*machine).runDir),
}

func one(look func(*machine) Item) func(*machine) []Item {
	return func(m *machine) []Item { return []Item{look(m)} }
}
