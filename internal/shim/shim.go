// Package shim is husk as containerd's shim: it serves the Task API, version 2 and 3, for the containers of
// one virtual machine, which it owns.
package shim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/state"
)

// Name is the program's name when it is containerd's shim, which is what makes it one.
const Name = "containerd-shim-husk-v2"

// Runtime is the type by which containerd asks for this shim.
const Runtime = "io.containerd.husk.v2"

// inputLimit bounds what containerd may say on stdin, in bytes.
const inputLimit = 10 << 20

// Host is husk on this machine with one configuration.
type Host struct {
	Config config.Config
	// Sandbox makes the sandbox whose first container has the state directory dir; with keep it outlives its containers.
	Sandbox func(dir *state.Dir, keep bool, log *slog.Logger) (*sandbox.Sandbox, error)
	// Forget removes a container whose owner is gone, with all that is left of it. Hooks know it by id.
	Forget func(ctx context.Context, dir *state.Dir, id string) error
	// Serve lets husk's own verbs reach a sandbox through the directory of its first container, until stop.
	Serve func(box *sandbox.Sandbox, dir *state.Dir, log *slog.Logger) (stop func(), err error)
	// Join has the same for a further container.
	Join func(first, dir *state.Dir) error
}

// Program is what the shim is given by the program it is part of.
type Program struct {
	Version string
	// Open reads a configuration file, "" for the default one.
	Open func(file string) (*Host, error)
	In   io.Reader
	Out  io.Writer
	Err  io.Writer
}

// arguments are what containerd calls a shim with (containerd, core/runtime/v2/README.md).
type arguments struct {
	namespace, id, address, bundle string
	debug, version, info           bool
	action                         string
}

func parse(args []string, errs io.Writer) (arguments, error) {
	var a arguments
	var ignored string
	flags := flag.NewFlagSet(Name, flag.ContinueOnError)
	flags.SetOutput(errs)
	flags.StringVar(&a.namespace, "namespace", "", "containerd's namespace of the container")
	flags.StringVar(&a.id, "id", "", "the container")
	flags.StringVar(&a.address, "address", "", "containerd's socket")
	flags.StringVar(&a.bundle, "bundle", "", "the bundle, where it is not the working directory")
	flags.StringVar(&ignored, "publish-binary", "", "ignored: events go to $TTRPC_ADDRESS")
	flags.StringVar(&ignored, "socket", "", "ignored: the socket is inherited")
	flags.BoolVar(&a.debug, "debug", false, "log more")
	flags.BoolVar(&a.info, "info", false, "print what the runtime can do, as containerd's RuntimeInfo, and exit")
	flags.BoolVar(&a.version, "v", false, "print the version and exit")
	flags.BoolVar(&a.version, "version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return a, err
	}
	a.action = flags.Arg(0)
	if a.version || a.info {
		return a, nil
	}
	if a.namespace == "" || a.id == "" {
		return a, errors.New("this program is called by containerd: -namespace and -id are missing")
	}
	if stateID(a.namespace, a.id) == "" {
		return a, fmt.Errorf("container %q in namespace %q: not a name that containerd gives", a.id, a.namespace)
	}
	return a, nil
}

// Main runs the shim with containerd's arguments and returns its exit code.
func (p Program) Main(args []string) int {
	a, err := parse(args, p.Err)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil {
		err = p.run(a)
	}
	if err != nil {
		fmt.Fprintf(p.Err, "%s: %v\n", Name, err)
		return 1
	}
	return 0
}

func (p Program) run(a arguments) error {
	switch {
	case a.version:
		_, err := fmt.Fprintf(p.Out, "%s:\n  Version:  %s\n  Runtime:  %s\n", Name, p.Version, Runtime)
		return err
	case a.info:
		return p.printInfo()
	}
	switch a.action {
	case "start":
		return p.start(a)
	case "delete":
		return p.remove(a)
	case serveAction:
		return p.serve(a)
	}
	return fmt.Errorf("unknown action %q: must be start or delete", a.action)
}

// print writes a message as containerd reads it from a shim's standard output.
func (p Program) print(m proto.Message) error {
	data, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = p.Out.Write(data)
	return err
}

// readInput reads what containerd says on stdin.
func (p Program) readInput() ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(p.In, inputLimit+1))
	if err != nil {
		return nil, fmt.Errorf("read standard input: %w", err)
	}
	if len(data) > inputLimit {
		return nil, fmt.Errorf("read standard input: more than %d bytes", inputLimit)
	}
	return data, nil
}

// workDir is the bundle: the working directory, or the one that the flag names.
func (a arguments) workDir() (string, error) {
	if a.bundle != "" {
		return filepath.Abs(a.bundle)
	}
	return os.Getwd()
}
