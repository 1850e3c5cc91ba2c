// Package selftest tries husk on the machine it is on: real containers in real virtual machines, by husk's own command
// line, in directories of its own.
package selftest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"husk.dev/husk/internal/check"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/sys"
)

// Options say what is tried.
type Options struct {
	Steps       []string      // of Steps; none: all
	Timeout     time.Duration // of all
	StepTimeout time.Duration // of each
}

// Setting is where it is tried.
type Setting struct {
	// Binary is husk itself, static: it is called as users call it, and containers run it.
	Binary string
	Config config.Config // what is tried
	// ConfigFile is where Config comes from, for what is said about it.
	ConfigFile string
	// Dir, where it is not empty, takes the place of the configuration's directories.
	Dir     string
	Check   func() check.Report
	Version string // of husk
	User    string // who runs it
	// Rootless says that this process is root of a user namespace alone.
	Rootless bool
	// Step is told of each step that has ended.
	Step func(Result)

	gone time.Duration // how long the traces of containers may take to go; 0: goneLimit
}

// step is one thing that is tried. To add one: give it a line in steps and a row in docs/cli.md.
type step struct {
	name, what string
	always     bool     // comes whatever was asked for: the others build on it
	needs      []string // steps without which it cannot work
	concerns   []string // items of husk check that it depends on
	try        func(context.Context, *session) error
}

var steps = []step{
	{name: "check", what: "what husk check says", always: true, try: tryCheck},
	{name: "image", what: "directories of its own, and an image made of husk itself", always: true, concerns: []string{"data_dir", "run_dir", "mkfs.erofs"}, try: tryImage},
	{name: "boot", what: "a virtual machine boots and runs a container", needs: []string{"image"}, concerns: machineItems, try: tryBoot},
	{name: "template", what: "a template is built, and a container started from it", needs: []string{"boot"}, concerns: machineItems, try: tryTemplate},
	{name: "exec", what: "a further process: what it reads, what it prints, its exit code", needs: []string{"boot"}, try: tryExec},
	{name: "volume", what: "a directory of the host: read, written, seen on the host, read-only", needs: []string{"boot"}, concerns: []string{"virtiofsd"}, try: tryVolume},
	{name: "network", what: "user-mode networking, out and in, in a network namespace of its own", needs: []string{"boot"}, try: tryNetwork},
	{name: "memory", what: "who takes more than the limit is killed, others live", needs: []string{"boot"}, try: tryMemory},
	{name: "pod", what: "two containers and their sandbox in one virtual machine", needs: []string{"boot", "volume"}, try: tryPod},
	{name: "kill-qemu", what: "QEMU is killed: the container has ended with 137, nothing is left", needs: []string{"boot", "volume"}, try: tryKill("vmm")},
	{name: "kill-virtiofsd", what: "so with the file service", needs: []string{"boot", "volume"}, try: tryKill("virtiofsd")},
	{name: "kill-owner", what: "so with the owner of the virtual machine", needs: []string{"boot", "volume"}, try: tryKill("owner")},
	{name: "kill-attend", what: "so with the process that stands for the container", needs: []string{"boot", "volume"}, try: tryKill("attend")},
	{name: "parallel", what: "four containers at once", needs: []string{"boot"}, try: tryParallel},
}

// machineItems are what husk check says of virtual machines.
var machineItems = []string{"architecture", "kvm", "qemu", "guest-kernel", "guest-image", "mkfs.ext4"}

// Steps are the names of all steps with what each tries.
func Steps() (names, what []string) {
	for _, s := range steps {
		names, what = append(names, s.name), append(what, s.what)
	}
	return names, what
}

// Check returns what is wrong with o.
func (o Options) Check() error {
	names, _ := Steps()
	for _, name := range o.Steps {
		if !slices.ContainsFunc(names, func(step string) bool { return matches(name, step) }) {
			return fmt.Errorf("no step %q: there are %s", name, strings.Join(names, ", "))
		}
	}
	if o.Timeout <= 0 || o.StepTimeout <= 0 {
		return errors.New("--timeout and --step-timeout must be more than 0")
	}
	return nil
}

// matches tells whether what was asked for is a step: by its name, or the first word of it.
func matches(asked, step string) bool { return asked == step || strings.HasPrefix(step, asked+"-") }

func (o Options) has(s step) bool {
	return s.always || len(o.Steps) == 0 || slices.ContainsFunc(o.Steps, func(asked string) bool { return matches(asked, s.name) })
}

// Run tries the steps and reports on each. It becomes the reaper of its descendants, and neither one of them nor a file
// is left when it returns, but for the log where a step failed. An error means that there is no report.
func Run(ctx context.Context, o Options, at Setting) (*Report, error) { return run(ctx, o, at, steps) }

func run(ctx context.Context, o Options, at Setting, steps []step) (_ *Report, err error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	if err := sys.BecomeSubreaper(); err != nil {
		return nil, err
	}
	s := newSession(at)
	report := &Report{Format: reportFormat, Began: time.Now().Truncate(time.Second), User: at.User, Steps: []Result{}}
	s.report = report
	limited, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	began := time.Now()
	for _, st := range steps {
		if !o.has(st) {
			continue
		}
		r := s.take(limited, o, st)
		if ctx.Err() != nil {
			break
		}
		report.Steps = append(report.Steps, r)
		at.Step(r)
	}
	if err := s.close(); err != nil && ctx.Err() == nil {
		r := Result{Name: "end", What: "nothing is left at the end", Status: Failed, Why: oneLine(err.Error())}
		report.Steps = append(report.Steps, r)
		at.Step(r)
	}
	report.finish(s, time.Since(began), ctx.Err() != nil)
	return report, nil
}

// skip is the error of a step that cannot be tried here.
type skip struct{ why, fix string }

func (e skip) Error() string { return e.why }

// take tries one step within its time.
func (s *session) take(ctx context.Context, o Options, st step) Result {
	r := Result{Name: st.name, What: st.what, Status: Skipped}
	for _, need := range st.needs {
		if s.lacking[need] {
			s.lacking[st.name] = true
			r.Why = "without " + need + " it cannot be tried"
			return r
		}
	}
	if ctx.Err() != nil {
		r.Why = fmt.Sprintf("the time of %v was up", o.Timeout)
		return r
	}
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, o.StepTimeout)
	defer cancel()
	s.log.Reset()
	err := st.try(limited, s)
	if limited.Err() != nil && err != nil {
		limit := o.StepTimeout
		if ctx.Err() != nil {
			limit = o.Timeout
		}
		err = timeUp{limit, err}
	}
	var skipped skip
	switch {
	case errors.As(err, &skipped):
		r.Why, r.Fix = skipped.why, skipped.fix
	case err == nil:
		r.Status = OK
		if err = s.awaitNothing(limited); err == nil {
			break
		}
		fallthrough
	default:
		r.Status, r.Why, r.Fix = Failed, oneLine(err.Error()), s.fix(st, err)
		s.lacking[st.name] = true
	}
	if errors.Is(ctx.Err(), context.Canceled) { // what it says is the interrupt's doing
		_ = s.endAll() // close tries again, and tells
		return r
	}
	s.keepLog(&r, err)
	if err := s.endAll(); err != nil && r.Status != Failed {
		r.Status, r.Why = Failed, oneLine(err.Error())
		s.keepLog(&r, err)
	}
	r.Seconds = float64(time.Since(began).Milliseconds()) / 1000
	return r
}

// timeUp is the error of a step that took too long.
type timeUp struct {
	limit time.Duration
	err   error
}

func (e timeUp) Error() string { return fmt.Sprintf("no end within %v: %v", e.limit, e.err) }

func (e timeUp) Unwrap() error { return e.err }

// tryCheck is what husk check says.
func tryCheck(_ context.Context, s *session) error {
	s.reaper.aside(func() { s.report.Check = s.at.Check() })
	if s.report.Check.Ready {
		return nil
	}
	var missing []string
	for _, item := range s.report.Check.Items {
		if item.Status == check.Missing {
			missing = append(missing, fmt.Sprintf("%s: %s", item.Name, item.Value))
		}
	}
	return errors.New("missing: " + strings.Join(missing, "; "))
}
