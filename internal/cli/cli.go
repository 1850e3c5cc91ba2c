// Package cli is husk's command line: runc's verbs for engines, and verbs for people.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/vmm"
)

// Drivers makes each monitor's driver, given the path of its binary ("" looks it up).
type Drivers map[string]func(binary string) vmm.Driver

// App is what every verb is given: the global flags, the configuration, the streams.
type App struct {
	version string
	drivers Drivers
	in      *os.File
	out     io.Writer // results
	err     io.Writer // all else

	configFile string
	root       string
	logFile    string
	logFormat  string
	debug      bool
	systemd    bool

	config config.Config
	log    *logger
}

// Exit codes of husk itself, where the container gives none: those of docker run, and 1 for the OCI verbs
// as runc has it.
const (
	exitFailed        = 1
	exitRunFailed     = 125
	exitNotExecutable = 126
	exitNotFound      = 127
)

// exitError carries an exit code through cobra; a nil err prints nothing.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// Main runs husk with args and returns its exit code.
func Main(args []string, version string, drivers map[string]func(string) vmm.Driver) int {
	app := &App{version: version, drivers: drivers, in: os.Stdin, out: os.Stdout, err: os.Stderr}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := mapped(); err != nil {
		return app.exitCode(err)
	}
	root := app.command()
	root.SetArgs(args)
	return app.exitCode(root.ExecuteContext(ctx))
}

// Command is husk's tree of verbs, for what is generated from it.
func Command(version string) *cobra.Command {
	return (&App{version: version, in: os.Stdin, out: os.Stdout, err: os.Stderr}).command()
}

func (a *App) exitCode(err error) int {
	if err == nil {
		return 0
	}
	var exit *exitError
	if errors.As(err, &exit) {
		if exit.err != nil {
			a.fail(exit.err)
		}
		return exit.code
	}
	a.fail(err)
	return exitFailed
}

// fail reports the error that ends the command: in the log for engines, on stderr for people.
func (a *App) fail(err error) {
	if a.log == nil { // the flags themselves were wrong
		a.log = &logger{format: "text"}
	}
	a.log.write("error", err.Error())
	fmt.Fprintln(a.err, "husk: "+err.Error())
}

// Command groups of the help text.
const (
	groupPeople = "people"
	groupOCI    = "oci"
	groupHost   = "host"
)

func (a *App) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "husk",
		Short: "Run containers, each in a virtual machine of its own",
		Long: "husk runs every container in a lightweight virtual machine with its own kernel.\n" +
			"Use it by hand (husk run IMAGE), or as the OCI runtime of podman, Docker and others.",
		Example:       "  husk run --rm -it docker.io/library/alpine sh\n  husk check\n  podman --runtime husk run --rm alpine uname -r",
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       a.version,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if needsNamespace(cmd) {
				return failedBefore(cmd, inNamespace())
			}
			return runFailed(cmd, a.setUp())
		},
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetVersionTemplate("husk {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVar(&a.configFile, "config", "", "configuration `FILE` (default "+config.DefaultFile+")")
	flags.StringVar(&a.root, "root", "", "`DIR` of the containers' state (default "+config.Default().RunDir+")")
	flags.StringVar(&a.logFile, "log", "", "write the log to `FILE` too")
	flags.StringVar(&a.logFormat, "log-format", "text", "`FORMAT` of the log: text or json")
	flags.BoolVar(&a.debug, "debug", false, "log more")
	flags.BoolVar(&a.systemd, "systemd-cgroup", false, "have systemd make the container's control group, a scope (slice:prefix:name)")
	root.AddGroup(
		&cobra.Group{ID: groupPeople, Title: "Containers and images:"},
		&cobra.Group{ID: groupOCI, Title: "OCI runtime, as runc has them:"},
		&cobra.Group{ID: groupHost, Title: "This machine:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			if c.ValidArgsFunction == nil {
				c.ValidArgsFunction = a.complete(c)
			}
			root.AddCommand(c)
		}
	}
	add(groupPeople, a.runCommand(), a.execCommand(), a.psCommand(), a.logsCommand(), a.attachCommand(), a.cpCommand(), a.shellCommand(),
		a.stopCommand(), a.restartCommand(), a.waitCommand(), a.rmCommand(), a.inspectCommand(), a.pruneCommand(),
		a.pullCommand(), a.imagesCommand(), a.rmiCommand(), a.loadCommand(), a.importCommand())
	add(groupOCI, a.createCommand(), a.startCommand(), a.stateCommand(), a.killCommand(), a.deleteCommand(),
		a.listCommand(), a.pauseCommand(), a.resumeCommand(), a.updateCommand(), a.eventsCommand(),
		a.specCommand(), a.featuresCommand())
	add(groupHost, a.checkCommand(), a.installCommand(), a.templateCommand(), a.selftestCommand(), a.benchCommand(), a.versionCommand())
	root.AddCommand(a.ownerCommand(), a.attendCommand(), a.benchLoadCommand(), a.selftestWorkCommand())
	return root
}

// setUp reads the configuration and opens the log before a verb runs.
func (a *App) setUp() (err error) {
	if a.logFormat != "text" && a.logFormat != "json" {
		return fmt.Errorf("--log-format %q: must be text or json", a.logFormat)
	}
	if a.log, err = openLogger(a.logFile, a.logFormat, a.debug); err != nil {
		return err
	}
	if a.config, err = config.Load(a.configFile); err != nil {
		return err
	}
	if a.root != "" {
		if a.config.RunDir, err = filepath.Abs(a.root); err != nil {
			return fmt.Errorf("--root: %w", err)
		}
	}
	return nil
}

// open returns the state directory of an existing container.
func (a *App) open(id string) (*state.Dir, error) { return state.Open(a.config.RunDir, id) }

// load returns an existing container's state directory and what it holds.
func (a *App) load(id string) (*state.Dir, state.Container, error) {
	dir, err := a.open(id)
	if err != nil {
		return nil, state.Container{}, err
	}
	record, err := dir.Load()
	return dir, record, err
}

// complete offers container ids where a verb takes one, or several.
func (a *App) complete(cmd *cobra.Command) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	takesID, takesMore := strings.Contains(cmd.Use, " ID") || strings.Contains(cmd.Use, " [ID]"), strings.Contains(cmd.Use, " ID...")
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if !takesID || len(args) > 0 && !takesMore || a.setUp() != nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		ids, err := state.List(a.config.RunDir)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		ids = slices.DeleteFunc(ids, func(id string) bool { return slices.Contains(args, id) })
		return ids, cobra.ShellCompDirectiveNoFileComp
	}
}
