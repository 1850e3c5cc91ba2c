package cli

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"text/tabwriter"

	"github.com/spf13/cobra"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/assets"
)

// commit is what husk was built from, set when it is built (-ldflags -X); "-dirty" at its end says that files differed.
var commit string

// versions is what a husk is made of and what it found on this machine. Its JSON form is stable: keys may be added.
type versions struct {
	Husk   string `json:"husk"`
	Commit string `json:"commit,omitempty"`
	Go     string `json:"go"`
	Spec   string `json:"oci_spec"` // of the runtime specification
	// AgentProtocol is the version of the agent's protocol that this husk speaks.
	AgentProtocol int `json:"agent_protocol"`

	GuestKind    string `json:"guest_kind,omitempty"` // husk or distro
	GuestKernel  string `json:"guest_kernel,omitempty"`
	KernelSource string `json:"guest_kernel_source,omitempty"`
	GuestAgent   string `json:"guest_agent,omitempty"` // hash of its program, which carries no version
	GuestCrun    string `json:"guest_crun,omitempty"`
	GuestProblem string `json:"guest_problem,omitempty"` // why there is no guest

	Monitor        string `json:"monitor"` // the driver's name
	MonitorVersion string `json:"monitor_version,omitempty"`
	MonitorPath    string `json:"monitor_path,omitempty"`
	MonitorProblem string `json:"monitor_problem,omitempty"` // why there is none

	FileService        string `json:"file_service,omitempty"` // C or Rust
	FileServiceVersion string `json:"file_service_version,omitempty"`
	FileServicePath    string `json:"file_service_path,omitempty"`
	FileServiceProblem string `json:"file_service_problem,omitempty"`
}

func (a *App) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of husk, its guest, and the monitor that it found",
		Long: "Version names what this husk is made of: its version and commit, Go, the guest's kernel, agent and crun, and the\n" +
			"monitor and file service that it found on this machine. What is not there it says so of, and exits with 0 all the\n" +
			"same; husk check is what judges. husk --version prints one line.",
		Example: "  husk version\n  husk version --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := a.versions(cmd)
			if asJSON {
				return a.printJSON(v)
			}
			return v.print(a.out)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *App) versions(cmd *cobra.Command) versions {
	v := versions{
		Husk: a.version, Commit: commit, Go: runtime.Version(), Spec: specs.Version, AgentProtocol: agentv1.Version,
		Monitor: a.config.VMM,
	}
	if g, err := assets.Find(a.config.GuestDir); err != nil {
		v.GuestProblem = err.Error()
	} else {
		v.GuestKind, v.GuestKernel, v.KernelSource = g.Kind, g.KernelVersion, g.KernelSource
		v.GuestAgent, v.GuestCrun = g.Agent, g.Crun
	}
	if driver, err := a.driver(); err != nil {
		v.MonitorProblem = err.Error()
	} else if info := driver.Info(); info.Binary == "" {
		v.MonitorProblem = "not installed"
	} else {
		v.MonitorVersion, v.MonitorPath = cmp.Or(info.Version, "unknown"), info.Binary
	}
	files := fileService(cmd.Context(), a.config.Virtiofsd)
	v.FileService, v.FileServiceVersion, v.FileServicePath = files.Kind, files.Version, files.Path
	if files.Err != nil {
		v.FileServiceProblem = files.Err.Error()
	}
	return v
}

// print writes a line a part. The first is "husk version VERSION": callers of OCI runtimes read it.
func (v versions) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', 0)
	fmt.Fprintf(out, "husk version %s\n", v.Husk)
	line := func(name, format string, values ...any) { fmt.Fprintf(w, name+":\t"+format+"\n", values...) }
	line("commit", "%s", cmp.Or(v.Commit, "unknown"))
	line("go", "%s", v.Go)
	line("spec", "%s", v.Spec)
	if v.GuestProblem != "" {
		line("guest", "none (%s)", v.GuestProblem)
	} else {
		line("guest", "%s, kernel %s", v.GuestKind, v.GuestKernel)
		line("guest kernel", "%s", v.KernelSource)
		line("agent", "%s, protocol %d", cmp.Or(v.GuestAgent, "unknown"), v.AgentProtocol)
		line("crun", "%s", cmp.Or(v.GuestCrun, "unknown"))
	}
	if v.MonitorProblem != "" {
		line("monitor", "%s, none (%s)", v.Monitor, v.MonitorProblem)
	} else {
		line("monitor", "%s %s, %s", v.Monitor, v.MonitorVersion, v.MonitorPath)
	}
	if v.FileServiceProblem != "" {
		line("file service", "none (%s)", v.FileServiceProblem)
	} else {
		line("file service", "virtiofsd %s (%s), %s", v.FileServiceVersion, v.FileService, v.FileServicePath)
	}
	return w.Flush()
}
