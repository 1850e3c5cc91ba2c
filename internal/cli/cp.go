package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/filetar"
	"husk.dev/husk/internal/image"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

// stream stands for standard input or output as a place to copy from or to.
const stream = "-"

// copyOptions are the flags of cp, which are docker's.
type copyOptions struct{ archive, follow, quiet bool }

func (a *App) cpCommand() *cobra.Command {
	var o copyOptions
	cmd := &cobra.Command{
		Use:   "cp [flags] ID:PATH DEST | SRC ID:PATH",
		Short: "Copy files out of a container, or into it",
		Long: "Cp copies a file, or a directory with all that is in it, between this machine and a container, as docker cp does.\n" +
			"Into a directory that exists the copy goes under its own name, and of SRC/. only what is in it. A destination that\n" +
			"does not exist is what the copy is called. - is a tar archive on standard input, which is unpacked in a directory of\n" +
			"the container, or on standard output. What is copied belongs to the container's root, or to who runs husk, without\n" +
			"set-user-ID bits; --archive keeps users, groups and these bits. Directories that exist stay as they are.",
		Example: "  husk cp web:/etc/nginx/nginx.conf .\n  husk cp ./site/. web:/usr/share/nginx/html\n" +
			"  husk cp web:/var/log - | tar -t\n  tar -c site | husk cp - web:/srv\n  husk cp -a web:/home ./backup",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.parseCopy(args[0], args[1], o)
			if err != nil {
				return err
			}
			if err := c.run(cmd.Context()); err != nil {
				return fmt.Errorf("copy %s to %s: %w", args[0], args[1], err)
			}
			if !o.quiet && sys.IsTerminal(os.Stderr) {
				fmt.Fprintf(a.err, "Copied %s to %s\n", image.FormatBytes(c.bytes), args[1])
			}
			return nil
		},
		ValidArgsFunction: a.completeCopy,
	}
	cmd.Flags().BoolVarP(&o.archive, "archive", "a", false, "keep users, groups and set-user-ID bits")
	cmd.Flags().BoolVarP(&o.follow, "follow-link", "L", false, "copy what a symlink SRC leads to, and not the symlink")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "do not tell on a terminal how much was copied")
	return cmd
}

// completeCopy offers containers where they may stand, and else leaves the shell to find files.
func (a *App) completeCopy(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 1 || len(args) == 1 && isInContainer(args[0]) || a.setUp() != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	ids, err := state.List(a.config.RunDir)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	for i := range ids {
		ids[i] += ":"
	}
	return ids, cobra.ShellCompDirectiveNoSpace
}

// isInContainer tells whether an argument names a file of a container: docker's rule. A file of this machine with a colon in its
// name is named by a path that begins with "/" or ".".
func isInContainer(arg string) bool {
	_, _, found := splitCopy(arg)
	return found
}

func splitCopy(arg string) (id, path string, found bool) {
	id, path, found = strings.Cut(arg, ":")
	if !found || filepath.IsAbs(arg) || strings.HasPrefix(id, ".") {
		return "", arg, false
	}
	return id, path, true
}

// copying is one call of cp.
type copying struct {
	app     *App
	options copyOptions
	dir     *state.Dir
	into    bool          // the container
	inside  filetar.Named // the path in the container
	outside string        // the path on this machine, absolute, or stream
	bytes   int64         // of files, so far
}

// parseCopy takes the arguments of cp.
func (a *App) parseCopy(from, to string, o copyOptions) (*copying, error) {
	c := &copying{app: a, options: o}
	id, inside, isFrom := splitCopy(from)
	toID, toPath, isTo := splitCopy(to)
	local := to
	switch {
	case isFrom && isTo:
		return nil, fmt.Errorf("copying from one container to another is not supported: husk cp %s - | husk cp - %s:DIRECTORY", from, toID)
	case !isFrom && !isTo:
		return nil, errors.New("either the source or the destination has to be in a container, as ID:PATH")
	case isTo:
		id, inside, local, c.into = toID, toPath, from, true
	}
	if id == "" || inside == "" || local == "" {
		return nil, errors.New("a path is empty: a file of a container is ID:PATH")
	}
	c.inside, c.outside = filetar.Name(inside), local
	if local != stream && !filepath.IsAbs(local) {
		here, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		c.outside = here + "/" + local // not joined: what it ends with counts
	}
	switch {
	case local == stream && c.into && sys.IsTerminal(a.in):
		return nil, errors.New("standard input is a terminal: - takes a tar archive")
	case local == stream && !c.into && sys.IsTerminal(os.Stdout):
		return nil, errors.New("standard output is a terminal: - writes a tar archive (husk cp " + from + " - | tar -x)")
	}
	var err error
	c.dir, err = a.open(id)
	return c, err
}

// unreachable says why the files of a container without an owner cannot be reached, and what can be done.
func (c *copying) unreachable() error {
	record, err := c.dir.Load()
	if err != nil {
		return err
	}
	if record.Rootfs != "" {
		return fmt.Errorf("container %q has stopped, and its virtual machine with it: its root is the directory %s of this machine", record.ID, record.Rootfs)
	}
	return fmt.Errorf("container %q has stopped, and only a virtual machine reads what it wrote: copy files while it runs, or have it write them to a volume (husk run --volume)", record.ID)
}

func (c *copying) run(ctx context.Context) error {
	guest, err := c.start(ctx)
	if errors.Is(err, control.ErrGone) {
		return c.unreachable()
	}
	if err != nil {
		return err
	}
	return guest.end(ctx, guest.move(ctx))
}
