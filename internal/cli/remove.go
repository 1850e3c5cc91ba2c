package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/hook"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

func (a *App) deleteCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:     "delete ID...",
		Short:   "Delete containers that have stopped",
		Example: "  husk delete web\n  husk delete --force web worker",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, id := range args {
				errs = append(errs, a.remove(cmd.Context(), id, force))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end a container that runs; say nothing about one that does not exist")
	return cmd
}

func (a *App) rmCommand() *cobra.Command {
	var force, every, ignore, volumes bool
	var seconds int
	cmd := &cobra.Command{
		Use:   "rm [flags] ID...",
		Short: "Remove containers that have stopped",
		Long: "Rm removes containers with what they have written and their output, and prints their ids. Directories of the host\n" +
			"that were shared with them stay.",
		Example: "  husk rm web\n  husk rm --force web worker\n  husk rm --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := a.selected(args, every, func(c ownContainer) bool { return force || c.record.Effective() == state.Stopped })
			if err != nil {
				return err
			}
			timed := cmd.Flags().Changed("time")
			return a.each(ids, func(id string) error {
				if force && timed {
					err := a.stop(cmd.Context(), id, stopOptions{seconds: seconds, timed: true})
					if err != nil && !errors.Is(err, state.ErrNotExist) {
						a.warn("%v", err) // it is ended below
					}
				}
				err := a.remove(cmd.Context(), id, force)
				if ignore && errors.Is(err, state.ErrNotExist) {
					return nil
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&force, "force", "f", false, "end a container that runs; say nothing about one that does not exist")
	f.IntVarP(&seconds, "time", "t", 0, "with --force, stop it first and kill it after `SECONDS`, -1 for never")
	f.BoolVarP(&every, "all", "a", false, "remove all containers of husk run that have stopped, with --force those that run too")
	f.BoolVarP(&ignore, "ignore", "i", false, "say nothing about a container that does not exist")
	f.BoolVarP(&volumes, "volumes", "v", false, "accepted; husk makes no volumes that a container could leave behind")
	return cmd
}

// remove deletes one container, whatever is left of its owner.
func (a *App) remove(ctx context.Context, id string, force bool) error {
	dir, err := a.open(id)
	if force && errors.Is(err, state.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	record, err := dir.Load()
	switch {
	case force && errors.Is(err, fs.ErrNotExist): // its creation was cut short before the first save
		return dir.Remove()
	case err != nil:
		return err
	}
	status := record.Effective()
	if !force && status != state.Stopped && status != state.Created {
		return fmt.Errorf("cannot delete container %q that is %s: stop it first (husk stop %s) or use --force", id, status, id)
	}
	lives := false // the VM, for other containers
	if record.Owner.Alive() {
		lives, err = deleteByOwner(ctx, dir, record, force)
		switch {
		case err == nil:
		case ctx.Err() != nil || errors.As(err, new(refusal)) || record.Sandbox != "" && !force:
			return fmt.Errorf("delete container %q: %w", id, err)
		default: // an owner that does not obey is ended below, and what else its VM has
			a.log.write("warning", err.Error())
		}
	}
	if !lives {
		waitOwnerGone(record)
	}
	waitHostGone(record)
	if !lives {
		unlock, same, err := holdStopped(ctx, dir, record)
		if err != nil {
			return err
		}
		defer unlock()
		if !same { // it was started again meanwhile
			unlock()
			return a.remove(ctx, id, force)
		}
		if err := errors.Join(a.clear(id, record), a.clearRetired(record)); err != nil {
			return err
		}
	}
	if !lives || record.Sandbox != "" { // else its owner has kept the directory for the VM, and the id may be another's by now
		if err := dir.Remove(); err != nil {
			return err
		}
	}
	a.runPoststop(ctx, record)
	return nil
}

// waitHostGone waits until the process that stands for a container has ended, and ends it when it does not.
func waitHostGone(record state.Container) {
	if record.Host.PID == os.Getpid() || !record.Host.Alive() { // run in the foreground stands for its container
		return
	}
	wait, cancel := context.WithTimeout(context.Background(), goneWait)
	defer cancel()
	if sys.WaitGone(wait, record.Host.PID) != nil && record.Host.Alive() {
		_ = syscall.Kill(record.Host.PID, syscall.SIGKILL)
	}
}

// holdStopped keeps others from starting a container again. same tells whether nobody has done so since record was read.
func holdStopped(ctx context.Context, dir *state.Dir, record state.Container) (unlock func(), same bool, err error) {
	unlock, err = dir.Lock(ctx)
	if errors.Is(err, state.ErrNotExist) { // its owner has removed it
		return func() {}, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	now, err := dir.Load()
	return unlock, err != nil || now.Owner == record.Owner || !now.Owner.Alive(), nil
}

// runPoststop runs the poststop hooks of a container that is gone; a failing one is a warning (runtime.md, "Lifecycle").
func (a *App) runPoststop(ctx context.Context, record state.Container) {
	record.Status = state.Stopped
	if err := hook.RunAll(ctx, "poststop", record.Poststop, hookState(record)); err != nil {
		a.warn("%v", err)
	}
}
