package cli

import (
	"context"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/check"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/storage/virtiofs"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/sys/kvm"
)

func (a *App) checkCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say what this machine can do, and what mends what it cannot",
		Long: "Check looks at KVM (by measurement), the monitor, the guest's files and the tools that husk needs.\n" +
			"It changes nothing. It exits with 0 when containers can run, with 1 when something is missing.",
		Example: "  husk check\n  husk check --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report := check.Make(a.checkInputs(cmd.Context()))
			print := func() error { return report.Print(a.out) }
			if asJSON {
				print = func() error { return a.printJSON(report) }
			}
			if err := print(); err != nil {
				return err
			}
			if !report.Ready {
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	return cmd
}

func (a *App) checkInputs(ctx context.Context) check.Inputs {
	in := check.Inputs{
		Config: a.config, KVM: kvm.Measure(), Arch: assets.Arch(), UID: userID(), MonitorUID: sys.MonitorID(),
		Shells: shellPrograms, Path: os.Getenv("PATH"),
	}
	in.Guest, in.GuestErr = assets.Find(a.config.GuestDir)
	in.FileService = fileService(ctx, a.config.Virtiofsd)
	driver, err := a.driver()
	if err != nil {
		in.DriverErr = err
		return in
	}
	in.Driver = driver.Info()
	return in
}

// userID is that of the user of this machine that this process is, which root of a user namespace is not.
func userID() int {
	text, _ := config.Outside()
	id, err := strconv.Atoi(text)
	if err != nil {
		return os.Geteuid()
	}
	return id
}

// fileService is the virtiofsd that a container would get.
func fileService(ctx context.Context, configured string) check.FileService {
	path, err := virtiofs.Find(configured)
	if err != nil {
		return check.FileService{Err: err}
	}
	kind, version, err := virtiofs.Detect(ctx, path)
	return check.FileService{Path: path, Kind: string(kind), Version: version, Err: err}
}
