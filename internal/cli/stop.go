package cli

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

// defaultStopTime is how many seconds a container has to end by itself: docker's.
const defaultStopTime = 10

// killWait bounds the wait for a container that was killed: a guest that does not obey is ended by `delete --force`.
const killWait = 2 * time.Minute

// stopOptions are the flags with which a container is stopped.
type stopOptions struct {
	signal  string
	seconds int
	timed   bool // seconds was given
}

func (o *stopOptions) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.signal, "signal", "s", "", "`SIGNAL` to send (default: the image's, or TERM)")
	cmd.Flags().IntVarP(&o.seconds, "time", "t", defaultStopTime, "`SECONDS` until it is killed, -1 for never")
}

func (a *App) stopCommand() *cobra.Command {
	var o stopOptions
	var every, ignore bool
	cmd := &cobra.Command{
		Use:   "stop [flags] ID...",
		Short: "Stop containers",
		Long: "Stop sends a container its stop signal, and kills it when it has not ended in time. One that has stopped already\n" +
			"is no error.",
		Example: "  husk stop web\n  husk stop --time 2 --signal INT web worker\n  husk stop --all",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.timed = cmd.Flags().Changed("time")
			if o.signal != "" {
				if _, err := parseSignal(o.signal); err != nil {
					return fmt.Errorf("--signal: %w", err)
				}
			}
			ids, err := a.selected(args, every, func(c ownContainer) bool { return c.record.Effective() != state.Stopped })
			if err != nil {
				return err
			}
			return a.each(ids, func(id string) error {
				err := a.stop(cmd.Context(), id, o)
				if ignore && errors.Is(err, state.ErrNotExist) {
					return nil
				}
				return err
			})
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVarP(&every, "all", "a", false, "stop all containers of husk run")
	cmd.Flags().BoolVarP(&ignore, "ignore", "i", false, "say nothing about a container that does not exist")
	return cmd
}

// stopping is how one container is stopped.
type stopping struct {
	signal  uint32
	seconds int // negative: without end
}

// stoppingOf is what the flags say, or else whoever made the container.
func stoppingOf(dir *state.Dir, o stopOptions) (stopping, error) {
	s := stopping{signal: uint32(syscall.SIGTERM), seconds: o.seconds}
	m, err := loadMade(dir)
	if err != nil {
		return s, err
	}
	name := o.signal
	if m != nil && name == "" {
		name = m.StopSignal
	}
	if m != nil && m.StopTimeout != nil && !o.timed {
		s.seconds = *m.StopTimeout
	}
	if name != "" {
		s.signal, err = parseSignal(name)
	}
	return s, err
}

// stop has a container end, and kills it when it does not. It returns once that is on record.
func (a *App) stop(ctx context.Context, id string, o stopOptions) error {
	dir, record, err := a.load(id)
	if err != nil {
		return err
	}
	s, err := stoppingOf(dir, o)
	if err != nil {
		return fmt.Errorf("stop container %q: %w", id, err)
	}
	status := record.Effective()
	if status == state.Stopped {
		return nil
	}
	client, err := control.Dial(dir.Path(""))
	if errors.Is(err, control.ErrGone) {
		return nil // with its owner everything of it has ended
	}
	if err != nil {
		return err
	}
	defer client.Close()
	if status != state.Created && status != state.Creating { // nothing of those runs that could hear a signal
		ended, err := s.ask(ctx, client, id, status)
		if err != nil {
			return fmt.Errorf("stop container %q: %w", id, err)
		}
		if ended {
			return a.ended(ctx, dir, record)
		}
	}
	if err := signalled(client.Signal(ctx, &controlv1.SignalRequest{Id: id, Signal: uint32(syscall.SIGKILL), All: true})); err != nil {
		return fmt.Errorf("stop container %q: %w", id, err)
	}
	limit, cancel := context.WithTimeout(ctx, killWait)
	defer cancel()
	if ended, err := awaitEnd(limit, client, id); err != nil || !ended {
		return errors.Join(fmt.Errorf("container %q was killed and does not end (husk rm --force %s ends its virtual machine)", id, id), err)
	}
	return a.ended(ctx, dir, record)
}

// ask sends the stop signal and tells whether the container has ended in time.
func (s stopping) ask(ctx context.Context, client *control.Client, id string, status state.Status) (ended bool, err error) {
	if err := signalled(client.Signal(ctx, &controlv1.SignalRequest{Id: id, Signal: s.signal})); err != nil {
		return false, err
	}
	if status == state.Paused { // it gets the signal when it runs
		if err := signalled(client.Resume(ctx, &controlv1.ContainerRequest{Id: id})); err != nil {
			return false, err
		}
	}
	if s.seconds >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(s.seconds)*time.Second, errPatience)
		defer cancel()
	}
	ended, err = awaitEnd(ctx, client, id)
	if errors.Is(context.Cause(ctx), errPatience) {
		return ended, nil
	}
	return ended, err
}

// errPatience is why the wait for a container to stop by itself ends.
var errPatience = errors.New("it has had its time")

// signalled is the error of a call that a container which has ended needs no more.
func signalled(_ *controlv1.Empty, err error) error {
	code, plain := control.Plain(err)
	if code == codes.FailedPrecondition || code == codes.NotFound || errors.Is(plain, control.ErrGone) {
		return nil
	}
	return plain
}

// awaitEnd waits until the container has ended, or is gone with its owner, or ctx ends.
func awaitEnd(ctx context.Context, client *control.Client, id string) (ended bool, err error) {
	_, err = client.Wait(ctx, &controlv1.WaitRequest{Id: id})
	if err == nil {
		return true, nil
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	code, plain := control.Plain(err)
	if code == codes.NotFound || errors.Is(plain, control.ErrGone) {
		return true, nil
	}
	return false, plain
}

// ended waits until the VM of a container of husk run, which is its own, is gone too, or a while.
func (a *App) ended(ctx context.Context, dir *state.Dir, record state.Container) error {
	if m, err := loadMade(dir); err != nil || m == nil || record.Owner.PID == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, goneWait)
	defer cancel()
	_ = sys.WaitGone(ctx, record.Owner.PID) // whoever needs it gone waits for it again
	return nil
}
