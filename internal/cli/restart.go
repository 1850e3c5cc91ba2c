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

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/state"
)

// stoppedContainer is a container of husk run that is started again.
type stoppedContainer struct {
	dir  *state.Dir
	made *made
	log  string // file for the output; "" in the foreground
}

func (a *App) startCommand() *cobra.Command {
	var attach, interactive bool
	cmd := &cobra.Command{
		Use:   "start [flags] ID...",
		Short: "Run the program of created containers, or of ones of husk run that have stopped",
		Long: "Start runs the program of a container that 'husk create' has made. A container of 'husk run' that has stopped comes\n" +
			"up again with what it has written, its network, ports and volumes; its id is printed then.",
		Example: "  husk create --bundle . web && husk start web\n  husk stop web && husk start web\n  husk start --attach job",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (attach || interactive) && len(args) > 1 {
				return errors.New("--attach, --interactive: take one container")
			}
			var errs []error
			for _, id := range args {
				errs = append(errs, a.start(cmd.Context(), id, attach, interactive))
			}
			if len(errs) == 1 {
				return errs[0] // with its exit code
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVarP(&attach, "attach", "a", false, "stay until a container of husk run ends, hand on its output and exit with its code")
	cmd.Flags().BoolVarP(&interactive, "interactive", "i", false, "--attach, and hand on stdin")
	return cmd
}

// start starts a container that was created, or one of husk run again.
func (a *App) start(ctx context.Context, id string, attach, interactive bool) error {
	dir, record, err := a.load(id)
	if err != nil {
		return err
	}
	m, err := loadMade(dir)
	if err != nil {
		return err
	}
	if status := record.Effective(); status != state.Created && (status != state.Stopped || m == nil) {
		return fmt.Errorf("cannot start container %q that is %s", id, status)
	} else if status == state.Stopped {
		return a.startAgain(ctx, dir, attach || interactive, interactive)
	}
	client, err := control.Dial(dir.Path(""))
	if err != nil {
		return err
	}
	defer client.Close()
	if _, err := client.Start(ctx, &controlv1.ContainerRequest{Id: id}); err != nil {
		_, plain := control.Plain(err)
		return plain
	}
	a.runPoststart(ctx, record.ID, record.Poststart)
	return nil
}

func (a *App) restartCommand() *cobra.Command {
	var o stopOptions
	cmd := &cobra.Command{
		Use:   "restart [flags] ID...",
		Short: "Stop containers of husk run and start them again",
		Long: "Restart stops a container of 'husk run', as 'husk stop' does, and starts it again with what it has written, its\n" +
			"network, ports and volumes. One that has stopped already is started.",
		Example: "  husk restart web\n  husk restart --time 2 --signal INT web worker",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.timed = cmd.Flags().Changed("time") || cmd.Flags().Changed("timeout")
			if o.signal != "" {
				if _, err := parseSignal(o.signal); err != nil {
					return fmt.Errorf("--signal: %w", err)
				}
			}
			var errs []error
			for _, id := range args {
				errs = append(errs, a.restart(cmd.Context(), id, o))
			}
			return errors.Join(errs...)
		},
	}
	o.register(cmd)
	cmd.Flags().IntVar(&o.seconds, "timeout", defaultStopTime, "`SECONDS`, as --time")
	cmd.MarkFlagsMutuallyExclusive("time", "timeout")
	return cmd
}

func (a *App) restart(ctx context.Context, id string, o stopOptions) error {
	dir, _, err := a.load(id)
	if err != nil {
		return err
	}
	_, lease, err := a.again(ctx, dir, false) // before anything ends
	if err != nil {
		return err
	}
	defer lease.Close()
	if err := a.stop(ctx, id, o); err != nil {
		return err
	}
	return a.startAgain(ctx, dir, false, false)
}

// startAgain starts a container of husk run that has stopped.
func (a *App) startAgain(ctx context.Context, dir *state.Dir, attach, stdin bool) error {
	c, lease, err := a.again(ctx, dir, attach)
	if err != nil {
		return err
	}
	defer lease.Close()
	if attach {
		c.stdin = stdin
		return a.foreground(ctx, c, &runOptions{})
	}
	if _, err := a.detached(ctx, c); err != nil {
		return plainExit(err)
	}
	_, err = fmt.Fprintln(a.out, dir.ID())
	return err
}

// again is what a container of husk run is started from once more, with a hold on its image, and an error for one that cannot be.
func (a *App) again(ctx context.Context, dir *state.Dir, attach bool) (*creation, closer, error) {
	id := dir.ID()
	record, err := dir.Load()
	if err != nil {
		return nil, nil, err
	}
	m, err := loadMade(dir)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case m == nil:
		return nil, nil, fmt.Errorf("cannot start container %q again: it is not one of husk run (delete and create it)", id)
	case m.AutoRemove:
		return nil, nil, fmt.Errorf("cannot start container %q again: it was run with --rm, and is removed when it ends", id)
	case m.ImageID != "" && m.WritableBytes == 0:
		return nil, nil, fmt.Errorf("cannot start container %q again: with --storage-size 0 what it wrote is gone with its virtual machine", id)
	}
	spec, err := savedSpec(dir)
	if err != nil {
		return nil, nil, err
	}
	c := &creation{
		id: id, bundle: &ocispec.Bundle{Dir: record.Bundle, Spec: spec}, record: record, image: m.image(), start: true,
		user: m.User, etc: m.Etc, made: m, again: &stoppedContainer{dir: dir, made: m},
	}
	if !attach {
		c.stdin = m.Interactive
		c.log = filepath.Join(a.config.ContainerDir(id), "output.log")
		c.again.log = c.log
	}
	if err := c.encode(); err != nil {
		return nil, nil, err
	}
	if m.ImageID == "" {
		return c, noLease{}, os.MkdirAll(a.config.ContainerDir(id), 0o700)
	}
	store, err := a.store()
	if err != nil {
		return nil, nil, err
	}
	img, err := store.Get(m.ImageID)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot start container %q again: %w", id, err)
	}
	lease, err := store.Use(ctx, img)
	if err != nil {
		return nil, nil, err
	}
	return c, lease, nil
}

// takeAgain makes the container that has stopped one in the making, which only one process can, and starts an owner.
func (l *launch) takeAgain(ctx context.Context, c *stoppedContainer) error {
	l.dir, l.again = c.dir, true
	record, err := l.dir.Load()
	if err != nil {
		return err
	}
	if record.Effective() == state.Stopped { // its virtual machine may not have ended yet
		waitOwnerGone(record)
		waitHostGone(record)
	}
	unlock, err := l.dir.Lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if record, err = l.dir.Load(); err != nil {
		return err
	}
	if status := record.Effective(); status != state.Stopped {
		return fmt.Errorf("cannot start container %q that is %s", l.dir.ID(), status)
	}
	if record.Owner.Alive() {
		return fmt.Errorf("cannot start container %q: its virtual machine is still ending", l.dir.ID())
	}
	l.app.clearHost(record)
	l.app.clearMounts(l.dir)
	if err := sweep(l.dir); err != nil {
		return err
	}
	if err := l.saveAgain(c, record); err != nil {
		return err
	}
	unlock() // the owner saves too
	l.undo.Add(func() error { return sandbox.Restore(l.dir) })
	if err := l.startOwner(); err != nil {
		return fmt.Errorf("start sandbox owner: %w", err)
	}
	return nil
}

// saveAgain saves the state of a container that is in the making again. How it ended last stays in it until it has ended
// again, for when it cannot be made.
func (l *launch) saveAgain(c *stoppedContainer, record state.Container) (err error) {
	if record.Status != state.Stopped { // its owner was killed
		record.ExitStatus, record.ExitedAt = lost, time.Now()
	}
	if record.Owner, err = state.Self("husk"); err != nil {
		return err
	}
	record.Status, record.Reason, record.Host, record.Helpers = state.Creating, "", state.Process{}, nil
	record.GuestPID, record.NetNS, record.Cgroup, record.Log = 0, "", "", c.log
	c.made.Started = time.Now()
	if err := c.made.save(l.dir); err != nil {
		return err
	}
	return l.dir.Save(record)
}

// sweep removes what a virtual machine that has ended has left in the state directory beside the container's files and logs:
// sockets, and directories that nothing is mounted on any more.
func sweep(dir *state.Dir) error {
	entries, err := os.ReadDir(dir.Path(""))
	if err != nil {
		return fmt.Errorf("clear the state of container %q: %w", dir.ID(), err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == "state.json", name == "lock", name == specFile, name == madeFile, strings.Contains(name, ".log"):
		default:
			if err := os.Remove(dir.Path(name)); err != nil {
				return fmt.Errorf("clear the state of container %q: %w", dir.ID(), err)
			}
		}
	}
	return nil
}
