package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"husk.dev/husk/test/host/wire"
)

// lives is how many hosts one suite may use up: each that is lost is replaced.
const lives = 4

// silence is how long a suite may print nothing at all, which ends what hangs though the host lives.
const silence = 30 * time.Minute

// Runner runs suites in a host, which it starts anew when it is lost.
type Runner struct {
	Machine Machine
	Top     string    // of the tree
	Out     string    // directory for what comes back
	Say     io.Writer // for a person to read

	host   *Host
	starts int
}

// Close ends the host.
func (r *Runner) Close() {
	if r.host != nil {
		r.host.Close()
		r.host = nil
	}
}

// Suite runs one and tells whether all was well. Events of its tests, as go test -json has them, go to Out/NAME.json, what
// they print to Out/NAME.log as it comes, what the host said to Out/console-N.log, and where something failed its journal to Out/NAME.journal.
func (r *Runner) Suite(ctx context.Context, s Suite) (bool, error) {
	all, sub, err := r.list(ctx, s)
	if err != nil {
		return false, err
	}
	file, err := os.Create(filepath.Join(r.Out, s.Name+".json"))
	if err != nil {
		return false, err
	}
	defer file.Close()
	log, err := os.Create(filepath.Join(r.Out, s.Name+".log"))
	if err != nil {
		return false, err
	}
	defer log.Close()
	events := &events{package_: module + s.Package, out: file, say: r.Say, done: map[string]bool{}}
	for life := 1; ; life++ {
		code, err := r.once(ctx, s, remaining(all, events.done), sub, events, log)
		var lost *LostError
		switch {
		case errors.As(err, &lost) && life < lives:
			r.say("%v; starting it anew for the %d of %d tests that have not finished", lost, len(remaining(all, events.done)), len(all))
			r.Close()
			continue
		case err != nil:
			return false, err
		}
		ok := code == 0 && events.failed == 0
		if !ok {
			r.journal(ctx, s)
		}
		if code != 0 && events.failed == 0 {
			r.say("%s ended with %d and no test that failed; it printed last:\n%s", s.Name, code, events.tail())
		}
		r.say("%s: %d passed, %d failed, %d skipped", s.Name, events.passed, events.failed, events.skipped)
		return ok, nil
	}
}

func (r *Runner) say(format string, args ...any) { fmt.Fprintf(r.Say, "host: "+format+"\n", args...) }

// list names the tests that the suite chooses, and what it chooses of their parts.
func (r *Runner) list(ctx context.Context, s Suite) (all []string, sub string, err error) {
	top, sub, _ := strings.Cut(s.Run, "/")
	cmd := exec.CommandContext(ctx, filepath.Join(r.Top, brought, s.program()), "-test.list", top)
	cmd.Dir = filepath.Join(r.Top, s.Package)
	out, err := cmd.Output()
	if err != nil {
		return nil, "", fmt.Errorf("list the tests of %s: %w", s.Name, err)
	}
	for _, name := range strings.Fields(string(out)) {
		if strings.HasPrefix(name, "Test") {
			all = append(all, name)
		}
	}
	if len(all) == 0 {
		return nil, "", fmt.Errorf("suite %s has no test that matches %q", s.Name, s.Run)
	}
	return all, sub, nil
}

func remaining(all []string, done map[string]bool) (left []string) {
	for _, name := range all {
		if !done[name] {
			left = append(left, name)
		}
	}
	return left
}

// once runs the tests in the host that is there, or in a new one.
func (r *Runner) once(ctx context.Context, s Suite, tests []string, sub string, e *events, log io.Writer) (code int, err error) {
	if err := r.ensure(ctx); err != nil {
		return 0, err
	}
	var quoted []string
	for _, name := range tests {
		quoted = append(quoted, regexp.QuoteMeta(name))
	}
	run := "^(" + strings.Join(quoted, "|") + ")$"
	if sub != "" {
		run += "/" + sub
	}
	command := Command{
		Args: []string{filepath.Join(wire.Source, brought, s.program()), "-test.v=test2json", "-test.run", run, "-test.timeout=3h"},
		Env:  []string{"HUSK_TEST_VM=1", "HUSK_TEST_HOST=1", "HUSK_TEST_PROGRAMS=" + filepath.Join(wire.Source, brought)},
		Dir:  filepath.Join(wire.Source, s.Package),
	}
	for _, file := range s.Without {
		if err := r.move(ctx, file, file+".away"); err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, r.move(ctx, file+".away", file)) }()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(fmt.Errorf("%s printed nothing for %v", s.Name, silence)) })
	defer quiet.Stop()
	sink, finish, err := e.begin(ctx)
	if err != nil {
		return 0, err
	}
	code, err = r.host.Run(ctx, command, writerFunc(func(p []byte) (int, error) {
		quiet.Reset(silence)
		_, _ = log.Write(p) // for whoever does not want to wait
		return sink.Write(p)
	}))
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return code, errors.Join(err, finish(err == nil))
}

// move renames a file of the host.
func (r *Runner) move(ctx context.Context, from, to string) error {
	var said bytes.Buffer
	code, err := r.host.Run(ctx, Command{Args: []string{"mv", from, to}}, &said)
	if err == nil && code != 0 {
		err = fmt.Errorf("move %s of the host away: %s", from, strings.TrimSpace(said.String()))
	}
	return err
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// ensure starts a host where there is none.
func (r *Runner) ensure(ctx context.Context) error {
	if r.host != nil {
		return nil
	}
	r.starts++
	m := r.Machine
	m.Log = filepath.Join(r.Out, fmt.Sprintf("console-%d.log", r.starts))
	start := time.Now()
	h, err := Start(ctx, m)
	if err != nil {
		return err
	}
	r.host = h
	r.say("the host runs after %.1f s", time.Since(start).Seconds())
	return nil
}

// journal brings what the host's services said.
func (r *Runner) journal(ctx context.Context, s Suite) {
	if r.host == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var text bytes.Buffer
	if _, err := r.host.Run(ctx, Command{Args: []string{"journalctl", "-b", "--no-pager", "-o", "short-monotonic"}}, &text); err != nil {
		r.say("no journal: %v", err)
		return
	}
	if err := os.WriteFile(filepath.Join(r.Out, s.Name+".journal"), text.Bytes(), 0o644); err != nil {
		r.say("no journal: %v", err)
	}
}
