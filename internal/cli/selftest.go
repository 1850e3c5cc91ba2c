package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/check"
	"husk.dev/husk/internal/selftest"
	"husk.dev/husk/internal/selftest/work"
)

func (a *App) selftestCommand() *cobra.Command {
	var o selftest.Options
	var dir string
	var asJSON, list bool
	names, _ := selftest.Steps()
	cmd := &cobra.Command{
		Use:   "selftest [STEP...]",
		Short: "Try husk on this machine with real virtual machines, and report",
		Long: "Selftest starts containers in virtual machines and tries what husk is for: it boots, builds a template,\n" +
			"executes, shares directories, connects, limits, and kills each part. It needs no image and no registry,\n" +
			"sends nothing outside, works in directories of its own below the configured ones, and leaves nothing there.\n" +
			"It exits with 0 when nothing failed. What failed comes with what mends it, and a log. What it prints with\n" +
			"--json belongs in a bug report. Steps are " + strings.Join(names, ", ") + ";\nkill stands for all that begin with it.",
		Example:   "  husk selftest\n  husk selftest --json >report.json\n  husk selftest boot volume\n  husk --config new.toml selftest --dir /srv/tmp",
		ValidArgs: names,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Steps = args
			if list {
				return a.listSteps()
			}
			return a.selftest(cmd.Context(), o, dir, asJSON)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print the report as JSON, and the progress to stderr")
	f.BoolVar(&list, "list", false, "list the steps and try nothing")
	f.StringVar(&dir, "dir", "", "work below `DIR` (default: below the configuration's data_dir and run_dir)")
	f.DurationVar(&o.Timeout, "timeout", 20*time.Minute, "the most that all steps may take together")
	f.DurationVar(&o.StepTimeout, "step-timeout", 5*time.Minute, "the most that one step may take")
	return cmd
}

// selftestWorkCommand is what the self-test runs inside containers.
func (a *App) selftestWorkCommand() *cobra.Command {
	return &cobra.Command{
		Use: work.Verb, Short: "Do the self-test's work in a container", Hidden: true, DisableFlagParsing: true,
		// Nothing of the host is there, such as its configuration.
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE: func(_ *cobra.Command, args []string) error {
			err := work.Main(args, os.Stdin, os.Stdout)
			var code work.ExitError
			if errors.As(err, &code) {
				return &exitError{code: int(code)}
			}
			return err
		},
	}
}

func (a *App) listSteps() error {
	w := table(a.out)
	fmt.Fprintln(w, "STEP\tTRIES")
	names, what := selftest.Steps()
	for i, name := range names {
		fmt.Fprintf(w, "%s\t%s\n", name, what[i])
	}
	return w.Flush()
}

func (a *App) selftest(ctx context.Context, o selftest.Options, dir string, asJSON bool) error {
	if err := o.Check(); err != nil {
		return err
	}
	at, err := a.selftestSetting(ctx, dir)
	if err != nil {
		return err
	}
	progress := a.out
	if asJSON {
		progress = a.err
	}
	fmt.Fprintln(progress, selftest.Header())
	at.Step = func(r selftest.Result) { fmt.Fprintln(progress, r.Line()) }
	report, err := selftest.Run(ctx, o, at)
	if err != nil {
		return err
	}
	if asJSON {
		err = a.printJSON(report)
	} else {
		err = report.Text(a.out)
	}
	if err == nil && report.Verdict != selftest.Passed {
		err = &exitError{code: exitFailed}
	}
	return err
}

func (a *App) selftestSetting(ctx context.Context, dir string) (at selftest.Setting, err error) {
	at = selftest.Setting{Config: a.config, ConfigFile: a.configFile, Version: a.version, User: "root"}
	if at.Rootless = userID() != 0; at.Rootless {
		at.User = fmt.Sprintf("uid %d", userID())
	}
	if at.Binary, err = os.Executable(); err != nil {
		return at, fmt.Errorf("find this program: %w", err)
	}
	if !isStatic(at.Binary) {
		return at, fmt.Errorf("%s is not static: build it with CGO_ENABLED=0, so that it runs in containers", at.Binary)
	}
	if dir != "" {
		if at.Dir, err = filepath.Abs(dir); err != nil {
			return at, fmt.Errorf("--dir: %w", err)
		}
	}
	if guest, err := assets.Find(a.config.GuestDir); err == nil { // else the step check tells
		if at.Config.GuestDir, err = filepath.Abs(guest.Dir); err != nil {
			return at, err
		}
	}
	at.Check = func() check.Report { return check.Make(a.checkInputs(ctx)) }
	return at, nil
}
