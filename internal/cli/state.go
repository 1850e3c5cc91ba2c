package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/state"
)

// isolationKey is the annotation under which the state names the isolation class.
const isolationKey = "dev.husk.isolation"

// vmStartKey is the one under which it says whether the VM was booted or continues a template.
const vmStartKey = "dev.husk.vm-start"

// sandboxKey is the one under which it names the container that the VM was made for, where that is another one.
const sandboxKey = "dev.husk.sandbox"

// ociState is a container's state as the OCI has it (runtime.md, "State").
func ociState(c state.Container) specs.State {
	s := specs.State{
		Version: specs.Version, ID: c.ID, Status: specs.ContainerState(c.Effective()), Bundle: c.Bundle,
		Annotations: map[string]string{},
	}
	for k, v := range c.Annotations {
		s.Annotations[k] = v
	}
	if c.Isolation != "" {
		s.Annotations[isolationKey] = c.Isolation
	}
	if c.Sandbox != "" {
		s.Annotations[sandboxKey] = c.Sandbox
	}
	if c.VMStart != "" {
		s.Annotations[vmStartKey] = c.VMStart
	}
	if c.Effective() != state.Stopped {
		s.Pid = c.Host.PID
	}
	return s
}

// hookState is what a hook reads: the annotations are the container's own.
func hookState(c state.Container) specs.State {
	s := ociState(c)
	s.Annotations = c.Annotations
	return s
}

// listed is a container as state and list print it, with runc's names.
type listed struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func listing(c state.Container, dir *state.Dir) listed {
	s := ociState(c)
	l := listed{
		Version: s.Version, ID: s.ID, PID: s.Pid, Status: string(s.Status), Bundle: s.Bundle, Rootfs: c.Rootfs,
		Created: c.Created.UTC(), Annotations: s.Annotations,
	}
	if info, err := os.Stat(dir.Path("")); err == nil {
		uid := strconv.Itoa(int(info.Sys().(*syscall.Stat_t).Uid))
		l.Owner = "#" + uid
		if u, err := user.LookupId(uid); err == nil {
			l.Owner = u.Username
		}
	}
	return l
}

func (a *App) stateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "state ID",
		Short: "Print a container's state as JSON",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, record, err := a.load(args[0])
			if err != nil {
				return err
			}
			return a.printJSON(listing(record, dir))
		},
	}
}

func (a *App) printJSON(v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	_, err = fmt.Fprintf(a.out, "%s\n", data)
	return err
}

// all loads every container of this root, without those that come or go meanwhile.
func (a *App) all() (records []state.Container, dirs []*state.Dir, err error) {
	ids, err := state.List(a.config.RunDir)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range ids {
		dir, err := a.open(id)
		if err != nil {
			continue
		}
		record, err := dir.Load()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, state.ErrNotExist) {
			continue
		}
		if err != nil {
			a.warn("%v", err)
			continue
		}
		records, dirs = append(records, record), append(dirs, dir)
	}
	return records, dirs, nil
}

func (a *App) listCommand() *cobra.Command {
	var format string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List containers",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			records, dirs, err := a.all()
			if err != nil {
				return err
			}
			list := []listed{}
			for i, r := range records {
				list = append(list, listing(r, dirs[i]))
			}
			switch {
			case quiet:
				for _, l := range list {
					fmt.Fprintln(a.out, l.ID)
				}
				return nil
			case format == "json":
				return a.printLine(list)
			case format != "table":
				return fmt.Errorf("--format %q: must be table or json", format)
			}
			w := table(a.out)
			fmt.Fprintln(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER")
			for _, l := range list {
				fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", l.ID, l.PID, l.Status, l.Bundle, l.Created.Format(time.RFC3339Nano), l.Owner)
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "table", "`FORMAT`: table or json")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	return cmd
}

func table(out io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(out, 12, 1, 3, ' ', 0) }

// signals by the names that kill takes, signal(7).
var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "BUS": syscall.SIGBUS, "CHLD": syscall.SIGCHLD,
	"CONT": syscall.SIGCONT, "FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP, "ILL": syscall.SIGILL,
	"INT": syscall.SIGINT, "IO": syscall.SIGIO, "KILL": syscall.SIGKILL, "PIPE": syscall.SIGPIPE,
	"PROF": syscall.SIGPROF, "PWR": syscall.SIGPWR, "QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV,
	"STKFLT": syscall.SIGSTKFLT, "STOP": syscall.SIGSTOP, "SYS": syscall.SIGSYS, "TERM": syscall.SIGTERM,
	"TRAP": syscall.SIGTRAP, "TSTP": syscall.SIGTSTP, "TTIN": syscall.SIGTTIN, "TTOU": syscall.SIGTTOU,
	"URG": syscall.SIGURG, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "VTALRM": syscall.SIGVTALRM,
	"WINCH": syscall.SIGWINCH, "XCPU": syscall.SIGXCPU, "XFSZ": syscall.SIGXFSZ,
}

// parseSignal takes a number (0 to 64) or a name with or without SIG; RTMIN+n is 34+n as glibc counts.
func parseSignal(s string) (uint32, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > 64 {
			return 0, fmt.Errorf("signal %d: must be from 0 to 64", n)
		}
		return uint32(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if sig, ok := signals[name]; ok {
		return uint32(sig), nil
	}
	if rest, ok := strings.CutPrefix(name, "RTMIN"); ok {
		if n, err := strconv.Atoi("0" + strings.TrimPrefix(rest, "+")); err == nil && n <= 30 {
			return uint32(34 + n), nil
		}
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

func (a *App) killCommand() *cobra.Command {
	var every bool
	var name string
	cmd := &cobra.Command{
		Use:     "kill ID [SIGNAL]",
		Short:   "Send a signal to a container (default TERM)",
		Example: "  husk kill web\n  husk kill web KILL\n  husk kill --signal HUP web worker",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name != "" { // docker's form
				sig, err := parseSignal(name)
				if err != nil {
					return fmt.Errorf("--signal: %w", err)
				}
				return a.each(args, func(id string) error { return a.kill(cmd.Context(), id, sig, every) })
			}
			sig := uint32(syscall.SIGTERM)
			switch {
			case len(args) > 2:
				return errors.New("kill takes an id and a signal; several ids with --signal")
			case len(args) == 2:
				var err error
				if sig, err = parseSignal(args[1]); err != nil {
					return err
				}
			}
			return a.kill(cmd.Context(), args[0], sig, every)
		},
	}
	cmd.Flags().BoolVarP(&every, "all", "a", false, "send it to every process of the container")
	cmd.Flags().StringVarP(&name, "signal", "s", "", "`SIGNAL` to send, to every container that is named")
	return cmd
}

func (a *App) kill(ctx context.Context, id string, signal uint32, every bool) error {
	return a.call(ctx, id, "signal", func(ctx context.Context, c *control.Client) error {
		_, err := c.Signal(ctx, &controlv1.SignalRequest{Id: id, Signal: signal, All: every})
		return err
	})
}

// call runs one request on the owner of a container.
func (a *App) call(ctx context.Context, id, verb string, request func(context.Context, *control.Client) error) error {
	dir, err := a.open(id)
	if err != nil {
		return err
	}
	client, err := control.Dial(dir.Path(""))
	if errors.Is(err, control.ErrGone) {
		return fmt.Errorf("cannot %s container %q: container not running", verb, id)
	}
	if err != nil {
		return err
	}
	defer client.Close()
	_, plain := control.Plain(request(ctx, client))
	if errors.Is(plain, control.ErrGone) {
		return fmt.Errorf("cannot %s container %q: container not running", verb, id)
	}
	return plain
}

func (a *App) pauseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "pause ID", Short: "Freeze all processes of a container", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), args[0], "pause", func(ctx context.Context, c *control.Client) error {
				_, err := c.Pause(ctx, &controlv1.ContainerRequest{Id: args[0]})
				return err
			})
		},
	}
}

func (a *App) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "resume ID", Short: "Thaw a paused container", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.call(cmd.Context(), args[0], "resume", func(ctx context.Context, c *control.Client) error {
				_, err := c.Resume(ctx, &controlv1.ContainerRequest{Id: args[0]})
				return err
			})
		},
	}
}
