package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/spf13/cobra"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/assets"
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

func (a *App) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of husk and its guest",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Husk          string `json:"husk"`
				Spec          string `json:"oci_spec"`
				Go            string `json:"go"`
				GuestKind     string `json:"guest_kind,omitempty"`
				GuestKernel   string `json:"guest_kernel,omitempty"`
				KernelSource  string `json:"guest_kernel_source,omitempty"`
				GuestProblems string `json:"guest_problem,omitempty"`
			}{Husk: a.version, Spec: specs.Version, Go: runtime.Version()}
			if g, err := assets.Find(a.config.GuestDir); err != nil {
				v.GuestProblems = err.Error()
			} else {
				v.GuestKind, v.GuestKernel, v.KernelSource = g.Kind, g.KernelVersion, g.KernelSource
			}
			if asJSON {
				return a.printJSON(v)
			}
			fmt.Fprintf(a.out, "husk version %s\nspec: %s\ngo: %s\n", v.Husk, v.Spec, v.Go)
			if v.GuestProblems != "" {
				fmt.Fprintf(a.out, "guest: none (%s)\n", v.GuestProblems)
				return nil
			}
			fmt.Fprintf(a.out, "guest: %s, kernel %s\nguest kernel: %s\n", v.GuestKind, v.GuestKernel, v.KernelSource)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
