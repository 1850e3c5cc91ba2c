package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	agentv1 "husk.dev/husk/api/agent/v1"
	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/sandbox"
)

func (a *App) eventsCommand() *cobra.Command {
	var stats bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:     "events ID",
		Short:   "Print a container's events and statistics as JSON lines",
		Example: "  husk events --stats web\n  husk events --interval 1s web",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval <= 0 {
				return errors.New("--interval must be more than 0")
			}
			return a.call(cmd.Context(), args[0], "watch", func(ctx context.Context, c *control.Client) error {
				if stats {
					return a.printStats(ctx, c, args[0])
				}
				return a.follow(ctx, c, args[0], interval)
			})
		},
	}
	cmd.Flags().BoolVar(&stats, "stats", false, "print the statistics once")
	cmd.Flags().DurationVar(&interval, "interval", 5*time.Second, "time between two statistics")
	return cmd
}

// follow prints events as they come and statistics every interval until the container has ended.
func (a *App) follow(ctx context.Context, c *control.Client, id string, interval time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Events(ctx, &controlv1.ContainerRequest{Id: id})
	if err != nil {
		return err
	}
	happened := make(chan *controlv1.Event)
	ended := make(chan error, 1)
	go func() {
		for {
			e, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case happened <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case e := <-happened:
			if e.Kind == string(sandbox.ExitKind) {
				return nil
			}
			if err := a.printLine(runcEvent{Type: e.Kind, ID: id}); err != nil {
				return err
			}
		case <-ticker.C:
			if err := a.printStats(ctx, c, id); err != nil {
				return err
			}
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

func (a *App) printStats(ctx context.Context, c *control.Client, id string) error {
	answer, err := c.Stats(ctx, &controlv1.ContainerRequest{Id: id})
	if err != nil {
		return err
	}
	var stats agentv1.StatsResponse
	if err := proto.Unmarshal(answer.Message, &stats); err != nil {
		return fmt.Errorf("decode statistics: %w", err)
	}
	return a.printLine(runcEvent{Type: "stats", ID: id, Data: runcStats(&stats)})
}

func (a *App) printLine(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	_, err = fmt.Fprintf(a.out, "%s\n", data)
	return err
}
