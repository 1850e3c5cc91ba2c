package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	agentv1 "husk.dev/husk/api/agent/v1"
	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/state"
)

func (a *App) psCommand() *cobra.Command {
	var format string
	var every bool
	cmd := &cobra.Command{
		Use:   "ps [ID]",
		Short: "List running containers, or the processes of one",
		Long: "Without an id, ps lists containers. With one it lists the container's processes by their\n" +
			"ids in the guest; as JSON it names the process that stands for the container on the host.",
		Args:    cobra.MaximumNArgs(1),
		Example: "  husk ps\n  husk ps --all\n  husk ps web",
		RunE: func(cmd *cobra.Command, args []string) error {
			if format != "table" && format != "json" {
				return fmt.Errorf("--format %q: must be table or json", format)
			}
			if len(args) == 0 {
				return a.listForPeople(every, format)
			}
			return a.processes(cmd.Context(), args[0], format)
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "table", "`FORMAT`: table or json")
	cmd.Flags().BoolVarP(&every, "all", "a", false, "list stopped containers too")
	return cmd
}

func (a *App) listForPeople(every bool, format string) error {
	records, dirs, err := a.all()
	if err != nil {
		return err
	}
	list := []listed{}
	w := table(a.out)
	fmt.Fprintln(w, "ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tISOLATION")
	for i, r := range records {
		status := r.Effective()
		if status == state.Stopped && !every {
			continue
		}
		list = append(list, listing(r, dirs[i]))
		what := string(status)
		if status == state.Stopped && !r.ExitedAt.IsZero() {
			what = fmt.Sprintf("exited (%d) %s ago", r.ExitStatus, since(r.ExitedAt))
		}
		from := r.Image
		if from == "" {
			from = r.Rootfs
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s ago\t%s\t%s\n", r.ID, from, shorten(strings.Join(r.Args, " "), 30), since(r.Created), what, r.Isolation)
	}
	if format == "json" {
		return a.printJSON(list)
	}
	return w.Flush()
}

func since(t time.Time) string { return time.Since(t).Round(time.Second).String() }

func shorten(s string, n int) string {
	s = strconv.Quote(s)
	if len(s) > n {
		return s[:n-3] + "..."
	}
	return s
}

func (a *App) processes(ctx context.Context, id, format string) error {
	var list agentv1.ProcessesResponse
	err := a.call(ctx, id, "list processes of", func(ctx context.Context, c *control.Client) error {
		answer, err := c.Processes(ctx, &controlv1.ContainerRequest{Id: id})
		if err != nil {
			return err
		}
		return proto.Unmarshal(answer.Message, &list)
	})
	if err != nil {
		return err
	}
	if format == "json" {
		// Engines look these up among the host's processes.
		_, record, err := a.load(id)
		if err != nil {
			return err
		}
		return a.printLine([]int{record.Host.PID})
	}
	w := table(a.out)
	fmt.Fprintln(w, "UID\tPID\tPPID\tSTIME\tTTY\tTIME\tCMD")
	for _, p := range list.Processes {
		cpu := time.Duration(p.CpuMilliseconds) * time.Millisecond
		fmt.Fprintf(w, "%d\t%d\t%d\t%s\t%s\t%02d:%02d:%02d\t%s\n", p.Uid, p.Pid, p.Parent,
			time.Unix(int64(p.StartedUnix), 0).Format("15:04"), p.Tty,
			int(cpu.Hours()), int(cpu.Minutes())%60, int(cpu.Seconds())%60, strconv.QuoteToGraphic(p.Command))
	}
	return w.Flush()
}

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

func (a *App) logsCommand() *cobra.Command {
	var console, owner bool
	cmd := &cobra.Command{
		Use:   "logs ID",
		Short: "Print the output of a detached container, or its guest's console",
		Example: "  husk logs web\n  husk logs --console web   what the guest's kernel and agent said\n" +
			"  husk logs --owner web     what its sandbox owner did",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, record, err := a.load(args[0])
			if err != nil {
				return err
			}
			path := record.Log
			switch {
			case console:
				path = dir.Path(sandbox.ConsoleLog)
			case owner:
				path = dir.Path(ownerLog)
			case path == "":
				return fmt.Errorf("container %q was not started with 'husk run --detach': its output went to whoever started it", args[0])
			}
			for _, name := range []string{path + ".1", path} { // the older half first
				if err := a.printFile(name); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&console, "console", false, "print the guest's console")
	cmd.Flags().BoolVar(&owner, "owner", false, "print the log of the sandbox owner")
	cmd.MarkFlagsMutuallyExclusive("console", "owner")
	return cmd
}

// printFile copies a file to the results; one that does not exist is empty.
func (a *App) printFile(name string) error {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	defer f.Close()
	if _, err := io.Copy(a.out, f); err != nil {
		return fmt.Errorf("print log: %w", err)
	}
	return nil
}
