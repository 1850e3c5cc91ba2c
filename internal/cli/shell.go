package cli

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/sys"
)

// shellPrograms are where distributions put a static busybox, which is carried into a guest on demand.
var shellPrograms = []string{"/bin/busybox", "/usr/bin/busybox", "/usr/lib/busybox/busybox-static", "/bin/busybox.static"}

// maxProgram bounds the shell's size, in bytes.
const maxProgram = 16 << 20

// shellProgram reads the debug shell.
func shellProgram() ([]byte, error) {
	for _, path := range shellPrograms {
		info, err := os.Stat(path)
		if err != nil || info.Size() > maxProgram || !isStatic(path) {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read debug shell: %w", err)
		}
		return data, nil
	}
	return nil, errors.New("no static busybox found for the debug shell: apt-get install busybox-static")
}

// isStatic tells whether a program runs without an interpreter, which the guest does not have for it.
func isStatic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

func (a *App) shellCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "shell ID [COMMAND [ARG...]]",
		Short: "Open a debug shell in the guest itself, outside the container",
		Long: "Shell runs a root shell beside the agent in the container's virtual machine: it sees the guest's\n" +
			"kernel, mounts and cgroups. The shell is the host's static busybox, carried in on demand.",
		Example: "  husk shell web\n  husk shell web dmesg",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.shell(cmd.Context(), args[0], args[1:])
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (a *App) shell(ctx context.Context, id string, args []string) (err error) {
	dir, err := a.open(id)
	if err != nil {
		return err
	}
	var undo cleanup.Stack
	defer func() {
		if cleanErr := undo.Clean(); err == nil {
			err = cleanErr
		}
	}()
	token, err := newToken()
	if err != nil {
		return err
	}
	stdio := &controlv1.Stdio{Token: token, Terminal: sys.IsTerminal(a.in) && sys.IsTerminal(os.Stdout)}
	terminal, err := a.ownTerminal(stdio.Terminal, &undo)
	if err != nil {
		return err
	}
	conn, err := control.SendStdio(dir.Path(""), token, [3]*os.File{a.in, os.Stdout, os.Stderr})
	if errors.Is(err, control.ErrGone) {
		return fmt.Errorf("cannot open a shell in container %q: container not running", id)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	name := "shell-" + token[:16]
	err = a.call(ctx, id, "open a shell in", func(ctx context.Context, c *control.Client) error {
		_, err := c.Shell(ctx, &controlv1.ShellRequest{Id: id, Exec: name, Args: args, Stdio: stdio})
		return programError(control.Plain(err))
	})
	if err != nil {
		return err
	}
	s := &session{app: a, dir: dir, exec: name, tty: terminal, signals: catch()}
	code, err := s.follow(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	return &exitError{code: code}
}
