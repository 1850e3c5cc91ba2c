package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/state"
)

// conditions are what wait can wait for, beside "removed": podman's and docker's words for the states.
var conditions = map[string]state.Status{
	"created": state.Created, "running": state.Running, "paused": state.Paused,
	"stopped": state.Stopped, "exited": state.Stopped, "not-running": state.Stopped,
}

// removedCondition waits until the container is no more.
const removedCondition = "removed"

func (a *App) waitCommand() *cobra.Command {
	var condition string
	var interval time.Duration
	var ignore bool
	cmd := &cobra.Command{
		Use:   "wait [flags] ID...",
		Short: "Wait for containers to end, and print their exit codes",
		Long: "Wait waits for one container after the other and prints the exit code of each on a line; -1 for one that has\n" +
			"not ended (--condition running).",
		Example: "  husk wait web\n  husk wait --condition running web\n  husk wait job1 job2 job3",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, known := conditions[condition]; !known && condition != removedCondition {
				names := []string{removedCondition}
				for name := range conditions {
					names = append(names, name)
				}
				slices.Sort(names)
				return fmt.Errorf("--condition %q: must be one of %s", condition, strings.Join(names, ", "))
			}
			if interval <= 0 {
				return errors.New("--interval must be more than 0")
			}
			var errs []error
			for _, id := range args {
				code, err := a.await(cmd.Context(), id, condition, interval)
				if err != nil && (!ignore || !errors.Is(err, state.ErrNotExist)) {
					errs = append(errs, err)
					continue
				}
				if err != nil {
					code = -1
				}
				fmt.Fprintln(a.out, code)
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVar(&condition, "condition", "stopped", "`STATE` to wait for: created, running, paused, stopped (exited, not-running), removed")
	cmd.Flags().DurationVarP(&interval, "interval", "i", 250*time.Millisecond, "`TIME` between two looks, for a condition other than stopped")
	cmd.Flags().BoolVar(&ignore, "ignore", false, "print -1 for a container that does not exist")
	return cmd
}

// await waits for a condition and returns the exit code, -1 without one.
func (a *App) await(ctx context.Context, id, condition string, interval time.Duration) (int, error) {
	dir, err := a.open(id)
	if err != nil {
		return 0, err
	}
	if conditions[condition] == state.Stopped {
		return exitCodeOf(ctx, dir)
	}
	code := -1
	for {
		record, err := dir.Load()
		switch {
		case condition == removedCondition && errors.Is(err, state.ErrNotExist):
			return code, nil
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return 0, err
		case err == nil:
			now := record.Effective()
			if now == state.Stopped {
				code = recordedCode(record)
			}
			if condition != removedCondition && now == conditions[condition] {
				return -1, nil
			}
			if now == state.Stopped && condition != removedCondition {
				return 0, fmt.Errorf("wait for container %q to be %s: it has stopped", id, condition)
			}
		}
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for container %q: %w", id, ctx.Err())
		}
	}
}

// exitCodeOf waits for a container's end and returns its exit code.
func exitCodeOf(ctx context.Context, dir *state.Dir) (int, error) {
	client, err := control.Dial(dir.Path(""))
	if err == nil {
		defer client.Close()
		var answer *controlv1.WaitResponse
		if answer, err = client.Wait(ctx, &controlv1.WaitRequest{Id: dir.ID()}); err == nil {
			return int(answer.Status), nil
		}
	}
	if ctx.Err() != nil {
		return 0, fmt.Errorf("wait for container %q: %w", dir.ID(), ctx.Err())
	}
	if code, plain := control.Plain(err); code != codes.NotFound && !errors.Is(plain, control.ErrGone) {
		return 0, plain
	}
	record, err := dir.Load()
	if err != nil {
		return 0, err
	}
	return recordedCode(record), nil
}

// recordedCode is the exit code of a container that has stopped: that of a VM that died, where no other was saved.
func recordedCode(record state.Container) int {
	if record.Status != state.Stopped {
		return lost
	}
	return record.ExitStatus
}
