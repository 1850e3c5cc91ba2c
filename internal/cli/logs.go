package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/sandbox"
)

func (a *App) logsCommand() *cobra.Command {
	var console, owner bool
	cmd := &cobra.Command{
		Use:   "logs ID",
		Short: "Print the output of a detached container, or its guest's console",
		Example: "  husk logs web\n  husk logs --console web   what the guest's kernel and agent said\n" +
			"  husk logs --owner web     what its sandbox owner did",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, record, err := a.load(args[0])
			if err != nil {
				return err
			}
			path := record.Log
			switch {
			case console:
				path = dir.Path(sandbox.ConsoleLog)
			case owner:
				path = dir.Path(ownerLog)
			case path == "":
				return fmt.Errorf("container %q was not started with 'husk run --detach': its output went to whoever started it", args[0])
			}
			for _, name := range []string{path + ".1", path} { // the older half first
				if err := a.printFile(name); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&console, "console", false, "print the guest's console")
	cmd.Flags().BoolVar(&owner, "owner", false, "print the log of the sandbox owner")
	cmd.MarkFlagsMutuallyExclusive("console", "owner")
	return cmd
}

// printFile copies a file to the results; one that does not exist is empty.
func (a *App) printFile(name string) error {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	if _, err := io.Copy(a.out, f); err != nil {
		return fmt.Errorf("print log: %w", err)
	}
	return nil
}
