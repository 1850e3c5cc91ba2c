package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/image"
	"husk.dev/husk/internal/state"
)

func (a *App) pruneCommand() *cobra.Command {
	var force, every bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove stopped containers, and images that nobody needs",
		Long: "Prune removes the containers of husk run that have stopped, what containers that are gone have left on the disk (after\n" +
			"the machine has started anew, for one), and the images without a name that no container is made of; with --all those\n" +
			"with a name too. It prints their ids and the room that is free again. Containers of engines are theirs to remove.",
		Example: "  husk prune\n  husk prune --force --all",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !force {
				yes, err := a.confirmPrune(every)
				if err != nil || !yes {
					return err
				}
			}
			return a.prune(cmd.Context(), every)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().BoolVarP(&every, "all", "a", false, "remove all images that no container is made of")
	return cmd
}

// confirmPrune asks whoever calls.
func (a *App) confirmPrune(every bool) (bool, error) {
	what := "all images without a name that no container is made of"
	if every {
		what = "all images that no container is made of"
	}
	fmt.Fprintf(a.err, "This removes all stopped containers and %s.\nGo on? [y/N] ", what)
	answer, err := bufio.NewReader(io.LimitReader(a.in, 64)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read the answer: %w", err)
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", nil
}

func (a *App) prune(ctx context.Context, every bool) error {
	own, _, err := a.ownContainers()
	if err != nil {
		return err
	}
	var freed int64
	var errs []error
	for _, c := range own {
		if c.record.Effective() != state.Stopped {
			continue
		}
		size := diskUse(a.config.ContainerDir(c.record.ID))
		if err := a.removeStopped(ctx, c.record.ID); err != nil {
			errs = append(errs, err)
			continue
		}
		freed += size
		fmt.Fprintln(a.out, "container: "+c.record.ID)
	}
	left, err := a.pruneLeft()
	freed += left
	errs = append(errs, err)
	removed, err := a.pruneImages(ctx, every)
	freed += removed
	errs = append(errs, err)
	fmt.Fprintln(a.out, "freed: "+image.FormatBytes(freed))
	return errors.Join(errs...)
}

// removeStopped removes a container unless it has been removed, or was started again, meanwhile.
func (a *App) removeStopped(ctx context.Context, id string) error {
	err := a.remove(ctx, id, false)
	if errors.Is(err, state.ErrNotExist) {
		return nil
	}
	return err
}

// pruneLeft removes the files of containers of this run_dir that have no state any more.
func (a *App) pruneLeft() (freed int64, err error) {
	mark := filepath.Base(a.config.ContainerDir("")) // a dash and the hash of run_dir
	parent := filepath.Dir(a.config.ContainerDir("x"))
	entries, err := os.ReadDir(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for files of containers that are gone: %w", err)
	}
	var errs []error
	for _, e := range entries {
		id, ours := strings.CutSuffix(e.Name(), mark)
		if !ours || state.CheckID(id) != nil {
			continue
		}
		size, err := a.pruneLeftOf(id)
		freed += size
		errs = append(errs, err)
	}
	return freed, errors.Join(errs...)
}

// pruneLeftOf takes the id for as long as it removes the files, so that no new container gets them.
func (a *App) pruneLeftOf(id string) (freed int64, err error) {
	dir, err := state.Create(a.config.RunDir, id)
	if errors.Is(err, state.ErrExists) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	files := a.config.ContainerDir(id)
	size := diskUse(files)
	if err := errors.Join(os.RemoveAll(files), dir.Remove()); err != nil {
		return 0, fmt.Errorf("remove what container %q has left: %w", id, err)
	}
	fmt.Fprintln(a.out, "left by a container: "+id)
	return size, nil
}

// pruneImages removes the images that no container is made of.
func (a *App) pruneImages(ctx context.Context, every bool) (freed int64, err error) {
	store, err := a.store()
	if err != nil {
		return 0, err
	}
	list, damaged := store.List()
	if damaged != nil {
		a.warn("%v", damaged)
	}
	var errs []error
	for _, img := range list {
		if len(img.Names) > 0 && !every || len(a.users(img)) > 0 {
			continue
		}
		refs := slices.Clone(img.Names)
		if len(refs) == 0 {
			refs = []string{img.ID}
		}
		removed, err := store.Remove(ctx, refs, image.RemoveOptions{InUse: a.users})
		freed += removed.Freed
		for _, name := range removed.Untagged {
			fmt.Fprintln(a.out, "untagged: "+image.Familiar(name))
		}
		for _, id := range removed.Deleted {
			fmt.Fprintln(a.out, "deleted: "+id)
		}
		if !errors.Is(err, image.ErrInUse) { // by a container that is being made
			errs = append(errs, err)
		}
	}
	collected, err := store.Prune()
	return freed + collected, errors.Join(append(errs, err)...)
}

// diskUse is the room that the files below a directory take on the disk, in bytes; 0 where there is none.
func diskUse(dir string) (bytes int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := e.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				bytes += st.Blocks * 512
			}
		}
		return nil
	})
	return bytes
}
