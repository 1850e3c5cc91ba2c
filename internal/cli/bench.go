package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/bench"
	"husk.dev/husk/internal/bench/load"
	"husk.dev/husk/internal/check"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/sys"
)

// benchOptions are the flags of bench.
type benchOptions struct {
	bench.Options
	runtimes []string
	dir      string
	from     string
	chart    string
	json     bool
	markdown bool
}

func (a *App) benchCommand() *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use:   "bench [GROUP...]",
		Short: "Measure husk beside the other runtimes of this machine",
		Long: "Bench measures husk and those of runc, crun and runsc that are installed, in turns, and prints\n" +
			"what it found. Groups are " + strings.Join(bench.Groups(), ", ") + "; without any, all are measured.\n" +
			"It works in a temporary directory and leaves nothing behind.",
		Example: "  husk bench start --rounds 5\n  husk bench memory density --idle-max 100\n" +
			"  husk bench --runtime youki --runtime 'runsc=runsc --platform=kvm --network=none'\n" +
			"  husk bench --json >figures.json && husk bench --from figures.json --markdown --chart figures.svg",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Groups = args
			return a.bench(cmd.Context(), &o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Rounds, "rounds", 5, "`N` rounds; each runtime has its turn in each")
	f.IntVar(&o.Warmup, "warmup", 1, "`N` rounds before them that do not count")
	f.IntVar(&o.Parallel, "parallel", 20, "`N` containers at once where several are started at once")
	f.IntVar(&o.IdleMax, "idle-max", 20, "most idle containers at once, `N`")
	f.StringArrayVar(&o.runtimes, "runtime", nil, "measure `NAME[=PATH [FLAG...]]` too, or with other flags")
	f.StringVar(&o.dir, "dir", "", "work below `DIR`, whose file system is measured (default: the temporary directory)")
	f.StringVar(&o.from, "from", "", "measure nothing: print `FILE`, which --json wrote")
	f.BoolVar(&o.json, "json", false, "print the report with all samples as JSON")
	f.BoolVar(&o.markdown, "markdown", false, "print the report as docs/performance.md has it")
	f.StringVar(&o.chart, "chart", "", "draw the main ratios to `FILE`, an SVG image")
	cmd.MarkFlagsMutuallyExclusive("json", "markdown")
	return cmd
}

// benchLoadCommand is what bench runs inside containers.
func (a *App) benchLoadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "bench-load", Short: "Do the work that bench measures", Hidden: true, DisableFlagParsing: true,
		// Nothing of the host is there, such as its configuration.
		PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
		RunE:              func(_ *cobra.Command, args []string) error { return load.Main(args, os.Stdout) },
	}
}

func (a *App) bench(ctx context.Context, o *benchOptions) error {
	if err := o.Check(); err != nil {
		return err
	}
	measure := func() (*bench.Report, error) { return a.measure(ctx, o) }
	if o.from != "" {
		measure = func() (*bench.Report, error) { return readReport(o.from) }
	}
	report, err := measure()
	if err != nil {
		return err
	}
	report.Finish()
	print := report.Text
	switch {
	case o.json:
		print = func(io.Writer) error { return a.printJSON(report) }
	case o.markdown:
		print = report.Markdown
	}
	if err := print(a.out); err != nil {
		return err
	}
	if o.chart != "" {
		if err := writeChart(o.chart, report); err != nil {
			return fmt.Errorf("draw chart: %w", err)
		}
	}
	for _, f := range report.Failures {
		if strings.HasPrefix(f.Runtime, "husk") {
			return &exitError{code: exitFailed}
		}
	}
	return nil
}

// measure makes the place to work in and removes it again.
func (a *App) measure(ctx context.Context, o *benchOptions) (_ *bench.Report, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("bench needs root, as containers do")
	}
	at := bench.Setting{Progress: func(format string, args ...any) { fmt.Fprintf(a.err, "bench: "+format+"\n", args...) }}
	if at.Binary, err = os.Executable(); err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	if !isStatic(at.Binary) {
		return nil, fmt.Errorf("%s is not static: build it with CGO_ENABLED=0, so that it runs in containers", at.Binary)
	}
	for _, path := range shellPrograms {
		if at.Busybox == "" && isStatic(path) {
			at.Busybox = path
		}
	}
	if at.Busybox == "" {
		return nil, errors.New("no static busybox found, which containers run: apt-get install busybox-static")
	}
	if at.Dir, err = os.MkdirTemp(o.dir, "husk-bench-"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(at.Dir)) }()
	if at.Dir, err = filepath.Abs(at.Dir); err != nil {
		return nil, err
	}
	if at.Runtimes, err = a.benchRuntimes(ctx, o.runtimes, at.Dir, at.Binary); err != nil {
		return nil, err
	}
	for _, item := range check.Make(a.checkInputs(ctx)).Items {
		switch item.Name {
		case "kvm", "isolation", "qemu", "virtiofsd", "guest-kernel":
			value, _, _ := strings.Cut(item.Value, ", /") // where it lies does not matter
			at.Facts = append(at.Facts, bench.Fact{Name: item.Name, Value: value})
		}
	}
	return bench.Run(ctx, o.Options, at)
}

// huskVariants are the ways in which husk itself is measured: a line each, by what differs in the
// configuration, and the verb that is run before.
var huskVariants = []struct {
	name    string
	set     func(*config.Config)
	prepare []string
}{
	{"husk-cold", func(c *config.Config) { c.Template = "off" }, nil},
	{"husk-template", func(c *config.Config) { c.Template = "ready" }, []string{"template", "build"}},
}

// benchRuntimes are husk's variants, each with a configuration of its own below dir, and the others. husk is
// measured as a copy, so that this process' pages of it do not make its memory look smaller.
func (a *App) benchRuntimes(ctx context.Context, named []string, dir, self string) ([]bench.Runtime, error) {
	guest, err := assets.Find(a.config.GuestDir)
	if err != nil {
		return nil, err
	}
	guestDir, err := filepath.Abs(guest.Dir)
	if err != nil {
		return nil, err
	}
	binary := filepath.Join(dir, "bin", "husk")
	if err := copyProgram(binary, self); err != nil {
		return nil, fmt.Errorf("copy husk: %w", err)
	}
	var list []bench.Runtime
	for _, v := range huskVariants {
		c := a.config
		c.DataDir, c.RunDir = filepath.Join(dir, "data"), filepath.Join(dir, "run")
		c.GuestDir = guestDir
		v.set(&c)
		file := filepath.Join(dir, v.name+".toml")
		data, err := c.Encode()
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			return nil, err
		}
		list = append(list, bench.Runtime{
			Name: v.name, Command: []string{binary, "--config", file}, Version: a.version, Image: "husk-bench", Prepare: v.prepare, Config: file,
		})
	}
	others, err := bench.FindRuntimes(ctx, named)
	return append(list, others...), err
}

// copyProgram copies a program to the disk: pages that are not there yet count as changed in every process that runs it. The
// memory then has none of it, as on a machine that was started after husk was installed: of what was written just now Linux 6.18
// maps large parts into a process that needs little of them.
func copyProgram(to, from string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = sys.ForgetPages(f)
	}
	return errors.Join(err, f.Close())
}

func readReport(path string) (*bench.Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return bench.Decode(data)
}

func writeChart(path string, report *bench.Report) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = report.Chart(f)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
