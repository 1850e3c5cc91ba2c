package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
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

// psOptions are the flags of ps.
type psOptions struct {
	format  string
	filters []string
	every   bool
	quiet   bool
	whole   bool
	latest  bool
	last    int // of the containers made last, how many; -1 for all
}

func (a *App) psCommand() *cobra.Command {
	var o psOptions
	cmd := &cobra.Command{
		Use:   "ps [ID]",
		Short: "List running containers, or the processes of one",
		Long: "Without an id, ps lists containers. With one it lists the container's processes by their\n" +
			"ids in the guest; as JSON it names the process that stands for the container on the host.\n" +
			"A template of --format is given for each container what 'husk inspect' prints of it.\n\n" +
			"Filters: " + strings.Join(filterForms, ", ") + ". Of several of a kind one\n" +
			"has to fit, and every kind has to. With one by status or by exit code stopped containers are listed too.\n" +
			"-f json and -f table are --format, as runc has it.",
		Args: cobra.MaximumNArgs(1),
		Example: "  husk ps\n  husk ps --all\n  husk ps web\n  husk ps --filter name=web --filter status=running\n" +
			"  husk rm $(husk ps --quiet --filter status=exited)\n  husk ps --latest --format '{{.Id}} {{.State.Status}} {{.ImageName}}'",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(cmd); err != nil {
				return err
			}
			if len(args) == 0 {
				return a.listForPeople(&o)
			}
			for _, name := range []string{"quiet", "filter", "latest", "last"} {
				if name == "filter" && len(o.filters) > 0 || name != "filter" && cmd.Flags().Changed(name) {
					return fmt.Errorf("--%s: is for the list of containers, and %q names one whose processes are listed", name, args[0])
				}
			}
			return a.processes(cmd.Context(), args[0], o.format)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.format, "format", "table", "`FORMAT`: table, json, or a Go template for each container")
	f.StringArrayVarP(&o.filters, "filter", "f", nil, "list those that fit `KEY=VALUE`")
	f.BoolVarP(&o.every, "all", "a", false, "list stopped containers too")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print ids only")
	f.BoolVar(&o.whole, "no-trunc", false, "shorten no commands; ids never are")
	f.BoolVarP(&o.latest, "latest", "l", false, "list the container made last, whatever its state")
	f.IntVarP(&o.last, "last", "n", -1, "list the `N` containers made last, whatever their state")
	cmd.MarkFlagsMutuallyExclusive("quiet", "format")
	cmd.MarkFlagsMutuallyExclusive("latest", "last")
	completes(cmd, "format", "json", "table")
	completes(cmd, "filter", filterWords()...)
	return cmd
}

// check takes runc's formats from docker's flag, and looks at the others.
func (o *psOptions) check(cmd *cobra.Command) error {
	o.filters = slices.DeleteFunc(o.filters, func(f string) bool {
		if f == "json" || f == "table" {
			o.format = f
			return true
		}
		return false
	})
	switch {
	case o.format == "table", o.format == "json", strings.Contains(o.format, "{{") && !strings.HasPrefix(o.format, "table "):
	case strings.HasPrefix(o.format, "table "):
		return fmt.Errorf("--format %q: the table has columns of its own; a template does without the word table", o.format)
	default:
		return fmt.Errorf("--format %q: must be table, json or a Go template", o.format)
	}
	if cmd.Flags().Changed("last") && o.last < 1 {
		return fmt.Errorf("--last %d: must be at least 1", o.last)
	}
	if o.latest {
		o.last = 1
	}
	return nil
}

// psContainer is a container as ps looks at it.
type psContainer struct {
	record state.Container
	dir    *state.Dir
	status state.Status
}

// chosen are the containers that the flags ask for, by their ids, or with --last the newest first.
func (a *App) chosen(o *psOptions) ([]psContainer, error) {
	fits, every, err := a.filter(o.filters)
	if err != nil {
		return nil, err
	}
	records, dirs, err := a.all()
	if err != nil {
		return nil, err
	}
	every = every || o.every || o.last > 0
	var list []psContainer
	for i, r := range records {
		c := psContainer{r, dirs[i], r.Effective()}
		if c.status == state.Stopped && !every {
			continue
		}
		is, err := fits(c)
		if err != nil {
			return nil, err
		}
		if is {
			list = append(list, c)
		}
	}
	if o.last > 0 {
		slices.SortStableFunc(list, func(x, y psContainer) int { return y.record.Created.Compare(x.record.Created) })
		list = list[:min(o.last, len(list))]
	}
	return list, nil
}

func (a *App) listForPeople(o *psOptions) error {
	list, err := a.chosen(o)
	if err != nil {
		return err
	}
	switch {
	case o.quiet:
		for _, c := range list {
			if _, err := fmt.Fprintln(a.out, c.record.ID); err != nil {
				return err
			}
		}
		return nil
	case o.format == "json":
		objects := []listed{}
		for _, c := range list {
			objects = append(objects, listing(c.record, c.dir))
		}
		return a.printJSON(objects)
	case o.format != "table":
		return a.listByTemplate(list, o.format)
	}
	w := table(a.out)
	fmt.Fprintln(w, "ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tISOLATION")
	for _, c := range list {
		r, what := c.record, string(c.status)
		if c.status == state.Stopped && !r.ExitedAt.IsZero() {
			what = fmt.Sprintf("exited (%d) %s ago", r.ExitStatus, since(r.ExitedAt))
		}
		from := r.Image
		if from == "" {
			from = r.Rootfs
		}
		command := strconv.Quote(strings.Join(r.Args, " "))
		if !o.whole {
			command = shorten(command, 30)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s ago\t%s\t%s\n", r.ID, from, command, since(r.Created), what, r.Isolation)
	}
	return w.Flush()
}

// listByTemplate prints each container as inspect does. One that has gone meanwhile is left out, as if it had been before.
func (a *App) listByTemplate(list []psContainer, format string) error {
	print, err := a.printer(format)
	if err != nil {
		return err
	}
	for _, c := range list {
		object, err := a.inspectContainer(c.dir)
		if errors.Is(err, state.ErrNotExist) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := print(object); err != nil {
			return err
		}
	}
	return nil
}

func since(t time.Time) string { return time.Since(t).Round(time.Second).String() }

func shorten(s string, n int) string {
	if len(s) > n {
		return s[:n-3] + "..."
	}
	return s
}

func (a *App) processes(ctx context.Context, id, format string) error {
	if format != "table" && format != "json" {
		return fmt.Errorf("--format %q: processes are printed as table or json", format)
	}
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
