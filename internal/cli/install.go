package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/install"
)

func (a *App) installCommand() *cobra.Command {
	var undo, sandboxAPI bool
	var etc string
	cmd := &cobra.Command{
		Use: "install ENGINE", Short: "Name husk as a runtime in an engine's configuration",
		Long: "Install names this husk in the configuration of containerd, crio, podman or docker. What else is configured stays\n" +
			"as it is, a second call changes nothing, and --uninstall takes it back.",
		Example: "  husk install containerd\n  husk install docker --uninstall",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			engine, err := install.Find(args[0])
			if err == nil && sandboxAPI {
				engine, err = engine.WithSandboxAPI()
			}
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err == nil {
				self, err = filepath.EvalSymlinks(self)
			}
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			file, changed, err := engine.Apply(etc, self, undo)
			switch {
			case err != nil:
				return err
			case !changed:
				return a.printf("%s: nothing to change\n", file)
			case undo:
				return a.printf("%s: husk is no longer in it\n", file)
			}
			if _, err := exec.LookPath(ShimName); err != nil && engine.Name == "containerd" {
				a.warn("%s is not in PATH, where containerd looks for it: make install puts it there", ShimName)
			}
			return a.printf("%s: husk is in it; next: %s\n", file, engine.Next)
		},
	}
	cmd.Flags().BoolVar(&undo, "uninstall", false, "take back what an earlier call has done")
	cmd.Flags().BoolVar(&sandboxAPI, "sandbox-api", false, "have containerd 2 make pods without a pause container")
	cmd.Flags().StringVar(&etc, "etc", "/etc", "`DIR` of the configuration")
	return cmd
}
