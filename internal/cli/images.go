package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"husk.dev/husk/internal/image"
	"husk.dev/husk/internal/sys"
)

// store opens husk's image store.
func (a *App) store() (*image.Store, error) { return image.Open(a.config.DataDir + "/images") }

// find returns an image of the store, pulled first where when says so: always, missing or never.
func (a *App) find(ctx context.Context, store *image.Store, ref, when string) (image.Image, error) {
	switch when {
	case "always", "missing", "never":
	default:
		return image.Image{}, fmt.Errorf("--pull %q: must be always, missing or never", when)
	}
	if when != "always" {
		img, err := store.Get(ref)
		if err == nil || when == "never" || !errors.Is(err, image.ErrNotFound) {
			return img, err
		}
	}
	return a.pull(ctx, store, ref, image.PullOptions{})
}

// pull brings an image into the store and shows how far it is.
func (a *App) pull(ctx context.Context, store *image.Store, ref string, o image.PullOptions) (image.Image, error) {
	progress := image.NewProgress(a.err, isTerminal(a.err))
	defer progress.Close()
	o.Progress = progress.Update
	return store.Pull(ctx, ref, o)
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && sys.IsTerminal(f)
}

func (a *App) pullCommand() *cobra.Command {
	var o image.PullOptions
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Bring an image into husk's store",
		Long: "Pull takes a name in a registry (with the credentials and credential helpers of docker login),\n" +
			"oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:REF].",
		Example: "  husk pull alpine\n  husk pull registry.example.com/team/app:1.2\n  husk pull oci:./layout:latest",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := a.store()
			if err != nil {
				return err
			}
			img, err := a.pull(cmd.Context(), store, args[0], o)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.out, img.ID)
			return err
		},
	}
	cmd.Flags().StringVar(&o.Platform, "platform", "", "`OS/ARCH[/VARIANT]` (default: this machine's)")
	cmd.Flags().BoolVar(&o.Insecure, "insecure", false, "allow plain HTTP and unknown certificates")
	return cmd
}

func (a *App) imagesCommand() *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List the images in husk's store",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			store, err := a.store()
			if err != nil {
				return err
			}
			list, damaged := store.List()
			if damaged != nil {
				a.warn("%v", damaged)
			}
			switch {
			case asJSON:
				if list == nil {
					list = []image.Image{}
				}
				return a.printJSON(list)
			case quiet:
				for _, img := range list {
					fmt.Fprintln(a.out, img.ID)
				}
				return nil
			}
			w := table(a.out)
			fmt.Fprintln(w, "IMAGE\tID\tLAYERS\tSIZE\tPULLED")
			for _, img := range list {
				names := img.Names
				if len(names) == 0 {
					names = []string{"<none>"}
				}
				for _, name := range names {
					fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s ago\n", image.Familiar(name), img.ShortID(), len(img.Layers),
						image.FormatBytes(img.Size), since(img.Pulled))
				}
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return cmd
}

func (a *App) rmiCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images from husk's store",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := a.store()
			if err != nil {
				return err
			}
			removed, err := store.Remove(cmd.Context(), args, image.RemoveOptions{Force: force, InUse: a.users})
			for _, name := range removed.Untagged {
				fmt.Fprintln(a.out, "untagged: "+image.Familiar(name))
			}
			for _, id := range removed.Deleted {
				fmt.Fprintln(a.out, "deleted: "+id)
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove an image that containers use")
	return cmd
}

// users names the containers that need an image: those of husk run, until they are removed, as docker has it.
func (a *App) users(img image.Image) (ids []string) {
	own, _, err := a.ownContainers()
	if err != nil {
		return nil
	}
	for _, c := range own {
		if c.made.uses(img) {
			ids = append(ids, c.record.ID)
		}
	}
	return ids
}

func (a *App) loadCommand() *cobra.Command {
	var input string
	cmd := &cobra.Command{
		Use:     "load",
		Short:   "Bring the images of an archive into husk's store",
		Long:    "Load takes what 'docker save' or 'podman save' wrote, or a tar of an OCI image layout.",
		Example: "  docker save alpine | husk load\n  husk load --input images.tar",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if input == "" && sys.IsTerminal(a.in) {
				return errors.New("load reads an archive from stdin: pipe one in, or name it with --input FILE")
			}
			store, err := a.store()
			if err != nil {
				return err
			}
			progress := image.NewProgress(a.err, isTerminal(a.err))
			defer progress.Close()
			list, err := store.Load(cmd.Context(), input, a.in, image.PullOptions{Progress: progress.Update})
			for _, img := range list {
				what := img.ID
				if len(img.Names) > 0 {
					what = strings.Join(img.Names, " ")
				}
				fmt.Fprintln(a.out, what)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&input, "input", "i", "", "read `FILE` in place of stdin")
	return cmd
}

func (a *App) importCommand() *cobra.Command {
	var config ociv1.ImageConfig
	var command string
	var epoch int64
	cmd := &cobra.Command{
		Use:     "import DIR|TAR NAME",
		Short:   "Make an image of a root file system",
		Example: "  husk import --cmd '[\"/bin/sh\"]' ./rootfs my-image",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			config.Cmd = splitCommand(command)
			store, err := a.store()
			if err != nil {
				return err
			}
			o := image.ImportOptions{Config: config}
			if cmd.Flags().Changed("created") {
				o.Created = time.Unix(epoch, 0)
			}
			img, err := store.Import(cmd.Context(), args[0], args[1], o)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.out, img.ID)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&command, "cmd", "", "default `COMMAND`: words, or a JSON array")
	f.StringArrayVarP(&config.Env, "env", "e", nil, "set `NAME=VALUE`")
	f.StringVarP(&config.WorkingDir, "workdir", "w", "", "working `DIR`")
	f.StringVarP(&config.User, "user", "u", "", "`USER[:GROUP]`")
	f.Int64Var(&epoch, "created", 0, "`SECONDS` since 1970 to write as the time of creation (default: now)")
	return cmd
}

// splitCommand takes a JSON array, or words parted by spaces.
func splitCommand(s string) []string {
	var words []string
	if json.Unmarshal([]byte(s), &words) == nil {
		return words
	}
	return strings.Fields(s)
}
