package selftest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"husk.dev/husk/internal/child"
	"husk.dev/husk/internal/selftest/work"
	"husk.dev/husk/internal/state"
)

// session is one Run.
type session struct {
	at      Setting
	report  *Report
	dirs    *dirs           // nil before the step image
	made    []string        // the configuration's directories that were not there, and what they are in
	lacking map[string]bool // steps that others cannot do without
	serial  atomic.Int64    // of container ids
	reaper  *reaper

	log     logBuffer // of the step
	logFile string    // empty before a step failed
}

const (
	goneLimit   = 30 * time.Second // the end of processes that were told to end, and their traces
	deleteLimit = 2 * time.Minute
	poll        = 20 * time.Millisecond
)

// image is the name of the image that containers are made of; program is husk in it.
const (
	image   = "husk-selftest"
	program = "/husk"
)

func newSession(at Setting) *session {
	if at.gone == 0 {
		at.gone = goneLimit
	}
	return &session{at: at, lacking: map[string]bool{}, reaper: newReaper()}
}

// job is the command line of the work in a container.
func job(args ...string) []string { return append([]string{program, work.Verb}, args...) }

// id is that of a new container.
func (s *session) id(name string) string { return fmt.Sprintf("selftest-%s-%d", name, s.serial.Add(1)) }

// call is a call of husk that has been started.
type call struct {
	s    *session
	args []string
	cmd  *exec.Cmd
	out  *os.File      // what it printed
	err  *os.File      // the same of stderr
	done chan struct{} // closed at its end

	noted bool // in the log
}

// options are what few calls need.
type options struct {
	config string // a file of dirs; empty: its usual one
	stdin  string
	netns  string // path of the network namespace that it is called in
	engine bool   // as an engine calls it: one without root has a mount namespace of its own
}

// start starts a call of husk. Whatever becomes of this process, it ends with it.
func (s *session) start(o options, args ...string) (*call, error) {
	config := o.config
	if config == "" {
		config = configFile
	}
	c := &call{s: s, args: args, done: make(chan struct{})}
	c.cmd = exec.Command(s.at.Binary, append([]string{"--config", s.dirs.path(config)}, args...)...)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's interrupt is for this process alone
	if o.engine && s.at.Rootless {
		c.cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
	}
	if o.stdin != "" {
		c.cmd.Stdin = strings.NewReader(o.stdin)
	}
	var err error
	for _, f := range []**os.File{&c.out, &c.err} { // files, no pipes: what stays in the background keeps them
		if *f, err = os.CreateTemp(s.dirs.path("out"), ""); err != nil {
			c.close()
			return nil, err
		}
	}
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.err
	begin := child.Start
	if o.netns != "" {
		begin = func(cmd *exec.Cmd) error { return startIn(cmd, o.netns, c.done) }
	}
	if err := s.reaper.start(c.cmd, begin); err != nil {
		c.close()
		return nil, fmt.Errorf("start husk %s: %w", args[0], err)
	}
	go func() {
		_ = c.cmd.Wait() // the process' state tells
		s.reaper.forget(c.cmd.Process.Pid)
		close(c.done)
	}()
	return c, nil
}

// close removes what it printed.
func (c *call) close() {
	for _, f := range []*os.File{c.out, c.err} {
		if f != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}
}

// maxOutput bounds what is read of a call's output, in bytes.
const maxOutput = 256 << 10

func said(f *os.File) string {
	buf := make([]byte, maxOutput)
	n, _ := f.ReadAt(buf, 0) // at the end it says that it is the end
	return string(buf[:n])
}

// ended tells whether the call has come to its end.
func (c *call) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// wait waits for the end of the call and returns its exit code. When ctx ends the call is killed.
func (c *call) wait(ctx context.Context) (int, error) {
	select {
	case <-c.done:
	case <-ctx.Done():
		_ = c.cmd.Process.Kill() // it may have ended
		<-c.done
		c.note()
		return 0, fmt.Errorf("husk %s: interrupted: %w%s", c.args[0], ctx.Err(), lastWords(said(c.err)))
	}
	c.note()
	return c.cmd.ProcessState.ExitCode(), nil
}

// note writes to the log what the call did.
func (c *call) note() {
	if c.noted {
		return
	}
	c.noted = true
	fmt.Fprintf(&c.s.log, "$ husk %s\n%s%s[%v]\n", strings.Join(c.args, " "), said(c.out), said(c.err), c.cmd.ProcessState)
}

// failure is the error of a call that ended with a code that it should not have.
func (c *call) failure(code, want int) error {
	return fmt.Errorf("husk %s: exit code %d, want %d%s", c.args[0], code, want, lastWords(said(c.err)))
}

// lastWords are the last line of what a program said.
func lastWords(text string) string {
	text = strings.TrimSpace(text)
	if text == "" {
		return ""
	}
	return ": " + strings.TrimPrefix(text[strings.LastIndexByte(text, '\n')+1:], "husk: ")
}

// husk calls husk, which must exit with 0, and returns what it printed.
func (s *session) husk(ctx context.Context, args ...string) (string, error) {
	return s.ends(ctx, 0, options{}, args...)
}

// ends calls husk, which must exit with code, and returns what it printed.
func (s *session) ends(ctx context.Context, code int, o options, args ...string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	c, err := s.start(o, args...)
	if err != nil {
		return "", err
	}
	defer c.close()
	got, err := c.wait(ctx)
	if err == nil && got != code {
		err = c.failure(got, code)
	}
	return said(c.out), err
}

// speaks waits until a call that was started has printed a line, as the work does that is up.
func (c *call) speaks(ctx context.Context) error {
	return until(ctx, "the container says that it is up", func() (bool, error) {
		over := c.ended() // before the look at what it printed
		if strings.Contains(said(c.out), "\n") {
			return true, nil
		}
		if over {
			c.note()
			return false, c.failure(c.cmd.ProcessState.ExitCode(), 0)
		}
		return false, nil
	})
}

// until waits for something.
func until(ctx context.Context, what string, is func() (bool, error)) error {
	for {
		if ok, err := is(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, ctx.Err())
		case <-time.After(poll):
		}
	}
}

// record is what husk has on record of a container.
func (s *session) record(id string) (state.Container, error) {
	dir, err := state.Open(s.dirs.run, id)
	if err != nil {
		return state.Container{}, err
	}
	return dir.Load()
}

// stopped waits until a container counts as ended.
func (s *session) stopped(ctx context.Context, id string) error {
	err := until(ctx, "the container counts as ended", func() (bool, error) {
		record, err := s.record(id)
		return record.Effective() == state.Stopped, err
	})
	if err != nil {
		return err
	}
	out, err := s.husk(ctx, "state", id)
	if err == nil && !strings.Contains(out, `"status": "stopped"`) {
		err = fmt.Errorf("husk state says of a container that has ended: %s", oneLine(out))
	}
	return err
}

// logBuffer keeps the end of what is written to it, at most maxOutput bytes.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Write(p)
	if over := b.text.Len() - maxOutput; over > 0 {
		b.text.Next(over)
	}
	return len(p), nil
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// Reset forgets everything.
func (b *logBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text.Reset()
}

// excerpt is how much the report has of what a step called, twice of what husk wrote meanwhile, and of each of those files the
// log, in bytes.
const excerpt = 4 << 10

// tail is the end of a text, of n bytes at most.
func tail(text string, n int) string { return strings.ToValidUTF8(text[max(0, len(text)-n):], "") }

// keepLog writes what a step that failed did to the log, with what husk said in it.
func (s *session) keepLog(r *Result, err error) {
	if r.Status != Failed {
		return
	}
	fmt.Fprintf(&s.log, "failed: %v\n", err)
	calls, wrote := s.log.String(), ""
	if s.dirs != nil {
		files, _ := filepath.Glob(filepath.Join(s.dirs.run, "*", "*.log")) // the pattern is right
		for _, name := range files {
			if data, err := os.ReadFile(name); err == nil {
				wrote += fmt.Sprintf("== %s\n%s\n", strings.TrimPrefix(name, s.dirs.run+"/"), tail(string(data), excerpt))
			}
		}
	}
	r.Output = tail(calls, excerpt) + tail(wrote, 2*excerpt)
	if err := s.append(fmt.Sprintf("==== %s\n%s%s", r.Name, calls, wrote)); err != nil {
		r.Output += "\n" + err.Error()
	}
}

func (s *session) append(text string) (err error) {
	var f *os.File
	if s.logFile == "" {
		f, err = os.CreateTemp("", "husk-selftest-*.log")
	} else {
		f, err = os.OpenFile(s.logFile, os.O_WRONLY|os.O_APPEND, 0)
	}
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	s.logFile = f.Name()
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
