package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	agentv1 "husk.dev/husk/api/agent/v1"
	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/control"
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
