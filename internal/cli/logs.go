package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/logfile"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/state"
)

// logsPoll is the time between two looks at a log that is followed.
const logsPoll = 100 * time.Millisecond

// exitInterrupted is the exit code of a viewer that was interrupted: 128 + SIGINT.
const exitInterrupted = 130

// logsOptions are the flags of logs.
type logsOptions struct {
	follow     bool
	timestamps bool
	tail       string
	since      string
	until      string
	console    bool
	owner      bool
}

func (a *App) logsCommand() *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:   "logs [flags] ID",
		Short: "Print the output of a detached container, or its guest's console",
		Long: "Logs prints what a container of 'husk run --detach' has printed, its stdout on stdout and its stderr on stderr, byte for\n" +
			"byte. Of a container with a terminal all is on stdout. At least the last 30 MiB are kept.\n\n" +
			"A time is RFC 3339 (2006-01-02T15:04:05Z, or a part of it in local time), seconds since 1970, or how long ago it was,\n" +
			"such as 10m or 1h30m. Lines that --tail chooses are chosen before those of a time.",
		Example: "  husk logs web\n  husk logs --follow --tail 10 web    the last lines, and what comes\n" +
			"  husk logs --since 10m --timestamps web\n" +
			"  husk logs --console web             what the guest's kernel and agent said\n" +
			"  husk logs --owner web               what its sandbox owner did",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, record, err := a.load(args[0])
			if err != nil {
				return err
			}
			switch {
			case o.console:
				return a.printFiles(dir.Path(sandbox.ConsoleLog))
			case o.owner:
				return a.printFiles(dir.Path(ownerLog))
			case record.Log == "":
				return fmt.Errorf("container %q was not started with 'husk run --detach': its output went to whoever started it", args[0])
			}
			return a.printLog(cmd.Context(), dir, record.Log, &o)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.follow, "follow", "f", false, "print what comes, too, until the container ends")
	f.StringVarP(&o.tail, "tail", "n", "all", "`NUMBER` of lines to begin with, of the last, or all")
	f.StringVar(&o.since, "since", "", "print what was printed at a `TIME` and after it")
	f.StringVar(&o.until, "until", "", "print what was printed before a `TIME`")
	f.BoolVarP(&o.timestamps, "timestamps", "t", false, "print the time of each line before it")
	f.BoolVar(&o.console, "console", false, "print the guest's console")
	f.BoolVar(&o.owner, "owner", false, "print the log of the sandbox owner")
	cmd.MarkFlagsMutuallyExclusive("console", "owner")
	for _, name := range []string{"follow", "tail", "since", "until", "timestamps"} {
		cmd.MarkFlagsMutuallyExclusive("console", name)
		cmd.MarkFlagsMutuallyExclusive("owner", name)
	}
	completes(cmd, "tail", "all", "10", "100")
	completes(cmd, "since", "10m", "1h", "24h")
	completes(cmd, "until", "10m", "1h", "24h")
	return cmd
}

// printFiles copies a log that has no records to the results, the older half first; a file that does not exist is empty.
func (a *App) printFiles(path string) error {
	for _, name := range []string{path + ".1", path} {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		_, err = io.Copy(a.out, f)
		f.Close()
		if err != nil {
			return fmt.Errorf("print log: %w", err)
		}
	}
	return nil
}

// printLog prints a container's output.
func (a *App) printLog(ctx context.Context, dir *state.Dir, path string, o *logsOptions) error {
	p := &logPrinter{timestamps: o.timestamps, out: bufio.NewWriterSize(a.out, 64<<10), err: bufio.NewWriterSize(a.err, 64<<10)}
	now := time.Now()
	var err error
	if p.since, err = parseTime(o.since, now); err != nil {
		return fmt.Errorf("--since: %w", err)
	}
	if p.until, err = parseTime(o.until, now); err != nil {
		return fmt.Errorf("--until: %w", err)
	}
	last := -1
	if o.tail != "all" {
		if last, err = strconv.Atoi(o.tail); err != nil {
			return fmt.Errorf("--tail %q: must be a number of lines, or all", o.tail)
		}
	}
	log, err := logfile.OpenReader(path)
	if err != nil {
		return err
	}
	defer log.Close()
	if last >= 0 {
		lines, err := log.Count()
		if err != nil {
			return err
		}
		p.skip = lines - last
	}
	if !o.follow {
		_, err := a.printRecords(ctx, log, p)
		return err
	}
	log.Follow()
	return a.followLog(ctx, dir, log, p)
}

// followLog prints records as they come, until the container has ended and all of them are printed.
func (a *App) followLog(ctx context.Context, dir *state.Dir, log *logfile.Reader, p *logPrinter) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		awaitOutput(ctx, dir)
	}()
	for last := false; ; {
		over, err := a.printRecords(ctx, log, p)
		if err != nil || over || last || !p.until.IsZero() && !time.Now().Before(p.until) {
			return err
		}
		select {
		case <-ended:
			last = true
		case <-time.After(logsPoll):
		case <-ctx.Done():
		}
	}
}

// awaitOutput waits until the container has ended, and its output has been handed on, or is no more.
func awaitOutput(ctx context.Context, dir *state.Dir) {
	for ctx.Err() == nil {
		_, _ = exitCodeOf(ctx, dir) // fails where there is nobody to ask, as while the container is being made
		record, err := dir.Load()
		if err != nil || record.Effective() == state.Stopped {
			return
		}
		select {
		case <-time.After(logsPoll):
		case <-ctx.Done():
		}
	}
}

// printRecords prints the records that are there. over tells that those that come are none to be printed.
func (a *App) printRecords(ctx context.Context, log *logfile.Reader, p *logPrinter) (over bool, err error) {
	for ctx.Err() == nil {
		record, err := log.Next()
		if err == io.EOF {
			return false, p.flush()
		}
		if err == nil {
			if !p.until.IsZero() && !record.Time.Before(p.until) {
				return true, p.flush()
			}
			err = p.print(record)
		}
		if err != nil {
			return false, err
		}
		if log.Gap() {
			a.warn("output may be missing here: the container prints faster than this is read")
		}
	}
	return false, errors.Join(p.flush(), &exitError{code: exitInterrupted})
}

// logPrinter prints records.
type logPrinter struct {
	out, err     *bufio.Writer
	timestamps   bool
	since, until time.Time // zero without
	skip         int       // lines
	lines        logfile.Lines
}

func (p *logPrinter) print(r logfile.Record) error {
	number, begins := p.lines.Of(r)
	if number < p.skip || r.Time.Before(p.since) {
		return nil
	}
	w, other := p.out, p.err
	if r.Stream == logfile.Stderr {
		w, other = other, w
	}
	if err := other.Flush(); err != nil { // both may be one terminal
		return fmt.Errorf("print log: %w", err)
	}
	if p.timestamps && begins {
		_, _ = w.WriteString(r.Time.UTC().Format(logfile.TimeForm) + " ")
	}
	_, err := w.Write(r.Text)
	if !r.Part {
		err = w.WriteByte('\n') // which repeats an error of before
	}
	if err != nil {
		return fmt.Errorf("print log: %w", err)
	}
	return nil
}

func (p *logPrinter) flush() error {
	if err := errors.Join(p.out.Flush(), p.err.Flush()); err != nil {
		return fmt.Errorf("print log: %w", err)
	}
	return nil
}

// parseTime takes a time as docker does: RFC 3339 or a part of it, seconds since 1970, or a duration before now. It is zero for
// nothing.
func parseTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && strings.TrimLeft(s, "0123456789.") != "" {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, nil
	}
	for _, form := range []string{"2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02", "2006-01-02Z07:00", "2006-01-02T15:04Z07:00"} {
		if t, err := time.ParseInLocation(form, s, time.Local); err == nil {
			return t, nil
		}
	}
	if whole, part, _ := strings.Cut(s, "."); strings.Trim(part, "0123456789") == "" && len(part) <= 9 {
		seconds, err := strconv.ParseInt(whole, 10, 64)
		nanos, _ := strconv.ParseInt(part+strings.Repeat("0", 9-len(part)), 10, 64)
		if err == nil && seconds >= 0 && seconds <= math.MaxInt32*64 {
			return time.Unix(seconds, nanos), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: give RFC 3339 (%s), seconds since 1970, or how long ago (10m)", s, now.UTC().Format(time.RFC3339))
}
