package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/ocispec"
)

func (a *App) specCommand() *cobra.Command {
	var bundle string
	var rootless bool
	cmd := &cobra.Command{
		Use:   "spec",
		Short: "Write a config.json to start from",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			path := filepath.Join(bundle, "config.json")
			data, err := json.MarshalIndent(ocispec.Example(rootless, uint32(os.Geteuid()), uint32(os.Getegid())), "", "\t")
			if err != nil {
				return fmt.Errorf("encode configuration: %w", err)
			}
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o666)
			if errors.Is(err, os.ErrExist) {
				return fmt.Errorf("%s exists: move it away first", path)
			}
			if err != nil {
				return fmt.Errorf("write configuration: %w", err)
			}
			if _, err := f.Write(append(data, '\n')); err != nil {
				f.Close()
				return fmt.Errorf("write configuration: %w", err)
			}
			return f.Close()
		},
	}
	cmd.Flags().StringVarP(&bundle, "bundle", "b", ".", "`DIR` to write it to")
	cmd.Flags().BoolVar(&rootless, "rootless", false, "for a container of an ordinary user")
	return cmd
}

func (a *App) featuresCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "features",
		Short: "Print what this runtime supports, as the OCI features document",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return a.printJSON(ocispec.Features()) },
	}
}
