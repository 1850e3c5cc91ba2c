package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

// attachOptions are the flags of attach.
type attachOptions struct {
	noStdin  bool
	sigProxy bool
	keys     string
}

func (a *App) attachCommand() *cobra.Command {
	var o attachOptions
	cmd := &cobra.Command{
		Use:   "attach [flags] ID",
		Short: "Attach to the input and output of a detached container",
		Long: "Attach shows what a container of 'husk run --detach' prints from now on, and hands on what is typed, where it was started\n" +
			"with --interactive. It ends with the container and has its exit code. Several may be attached at once; one that does\n" +
			"not read what the container prints is let go of, and the container goes on.\n\n" +
			"Signals are handed on to a container without a terminal. From one with a terminal the keys ctrl-p ctrl-q detach; the\n" +
			"window's size is handed on to it.",
		Example: "  husk run -dit --name box alpine sh && husk attach box\n  husk attach --no-stdin web\n" +
			"  husk attach --sig-proxy=false web       control-C ends attach only\n  husk attach --detach-keys ctrl-x,x box",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.attachTo(cmd.Context(), args[0], &o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.noStdin, "no-stdin", false, "hand on no input")
	f.BoolVar(&o.sigProxy, "sig-proxy", true, "hand on signals to a container without a terminal")
	f.StringVar(&o.keys, "detach-keys", defaultDetachKeys, "`KEYS` that detach from a container with a terminal, such as a,ctrl-b; empty for none")
	completes(cmd, "detach-keys", defaultDetachKeys, "ctrl-a,d")
	return cmd
}

// attachable loads a container that can be attached to.
func (a *App) attachable(id string) (*state.Dir, *made, error) {
	dir, record, err := a.load(id)
	if err != nil {
		return nil, nil, err
	}
	m, err := loadMade(dir)
	if err != nil {
		return nil, nil, err
	}
	status := record.Effective()
	switch {
	case m == nil || record.Log == "":
		return nil, nil, fmt.Errorf("cannot attach to container %q: it was not started with 'husk run --detach'", id)
	case status == state.Paused:
		return nil, nil, fmt.Errorf("cannot attach to container %q that is paused: resume it first (husk resume %s)", id, id)
	case status != state.Running:
		return nil, nil, fmt.Errorf("cannot attach to container %q that is %s (husk logs %s prints its output)", id, status, id)
	}
	return dir, m, nil
}

func (a *App) attachTo(ctx context.Context, id string, o *attachOptions) error {
	keys, err := parseKeys(o.keys)
	if err != nil {
		return err
	}
	dir, m, err := a.attachable(id)
	if err != nil {
		return err
	}
	var undo cleanup.Stack
	defer undo.Clean()
	stdin := m.Interactive && !o.noStdin
	if m.TTY && stdin && !sys.IsTerminal(a.in) {
		return fmt.Errorf("cannot attach to container %q: it has a terminal, and the input is none (--no-stdin hands on no input)", id)
	}
	v := &attachment{app: a, dir: dir, detached: make(chan struct{}), printed: make(chan struct{})}
	client, err := v.join(ctx, &undo)
	if err != nil {
		return err
	}
	s := &session{app: a, dir: dir, viewer: true, signals: make(chan os.Signal, 1)}
	if m.TTY && sys.IsTerminal(a.in) {
		s.tty = a.in
		signal.Notify(s.signals, syscall.SIGWINCH)
		// A size other than the last viewer's has programs draw their screens again.
		if size, err := sys.GetWinsize(a.in); err == nil && size.Rows > 0 {
			_, _ = client.Resize(ctx, &controlv1.ResizeRequest{Id: id, Rows: uint32(size.Rows) + 1, Columns: uint32(size.Columns)})
		}
	}
	if o.sigProxy && !m.TTY {
		ctx, s.signals = context.WithoutCancel(ctx), catch()
	}
	filter := &keyFilter{}
	if m.TTY && stdin {
		restore, err := sys.MakeRaw(a.in)
		if err != nil {
			return err
		}
		undo.Add(restore)
		filter.keys = keys
	}
	go v.show(v.printed)
	if stdin {
		go v.hear(filter)
	} else {
		v.in.Close()
	}
	return v.wait(ctx, s, &undo)
}

// attachment is a viewer's end of a container's stdio.
type attachment struct {
	app          *App
	dir          *state.Dir
	in, out, err *os.File // pipes
	ends         controlv1.Control_AttachClient
	detached     chan struct{} // closed when the keys were typed
	printed      chan struct{} // closed when all output is; nil once that was seen
}

// join has the owner take the other ends.
func (v *attachment) join(ctx context.Context, undo *cleanup.Stack) (*control.Client, error) {
	var theirs [3]*os.File
	for i, ours := range []**os.File{&v.in, &v.out, &v.err} {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, fmt.Errorf("make pipe: %w", err)
		}
		*ours, theirs[i] = r, w
		if i == 0 {
			*ours, theirs[i] = w, r
		}
		defer theirs[i].Close()
	}
	token, err := newToken()
	if err != nil {
		return nil, err
	}
	conn, err := control.SendStdio(v.dir.Path(""), token, theirs)
	if err != nil {
		return nil, v.explain(err)
	}
	undo.Add(conn.Close)
	client, err := control.Dial(v.dir.Path(""))
	if err != nil {
		return nil, v.explain(err)
	}
	undo.Add(client.Close)
	v.ends, err = client.Attach(context.WithoutCancel(ctx), &controlv1.AttachRequest{Id: v.dir.ID(), Token: token})
	if err == nil {
		_, err = v.ends.Recv()
	}
	if errors.Is(err, io.EOF) {
		err = control.ErrGone
	}
	return client, v.explain(err)
}

func (v *attachment) explain(err error) error {
	_, plain := control.Plain(err)
	if plain == nil {
		return nil
	}
	if errors.Is(plain, control.ErrGone) {
		return fmt.Errorf("cannot attach to container %q: container not running", v.dir.ID())
	}
	return fmt.Errorf("cannot attach to container %q: %w", v.dir.ID(), plain)
}

// show prints the container's output to its end.
func (v *attachment) show(printed chan<- struct{}) {
	defer close(printed)
	other := make(chan struct{})
	go func() {
		defer close(other)
		_, _ = io.Copy(v.app.err, v.err)
	}()
	_, _ = io.Copy(v.app.out, v.out)
	<-other
}

// hear hands on what is typed until the input ends, which is not the end of the container's: others may attach.
func (v *attachment) hear(filter *keyFilter) {
	defer v.in.Close()
	buffer := make([]byte, 32<<10)
	for {
		n, err := v.app.in.Read(buffer)
		rest, typed := filter.pass(buffer[:n])
		if _, failed := v.in.Write(rest); failed != nil {
			return // the end of the container, which is seen elsewhere
		}
		if typed {
			close(v.detached)
			return
		}
		if err != nil {
			return
		}
	}
}

// wait waits until the container has ended, or this viewer.
func (v *attachment) wait(ctx context.Context, s *session, undo *cleanup.Stack) error {
	type exit struct {
		code int
		err  error
	}
	exits := make(chan exit, 1)
	go func() {
		code, err := s.follow(context.WithoutCancel(ctx))
		exits <- exit{code, err}
	}()
	over := make(chan bool, 1)
	go func() {
		last, err := v.ends.Recv()
		over <- err == nil && last.Slow
	}()
	select {
	case slow := <-over:
		if slow {
			return fmt.Errorf("let go of by container %q, which goes on: what it prints was not read (husk logs %s has it)", v.dir.ID(), v.dir.ID())
		}
	case <-v.detached:
		_ = undo.Clean()
		fmt.Fprintln(v.app.err, "read escape sequence")
		return nil
	case <-ctx.Done():
		return &exitError{code: exitInterrupted}
	}
	var e exit
	for range 2 {
		select {
		case e = <-exits:
			exits = nil
		case <-v.printed:
			v.printed = nil
		case <-ctx.Done():
			return &exitError{code: exitInterrupted}
		}
	}
	_ = undo.Clean() // before anything is said on the terminal
	if e.err != nil {
		return e.err
	}
	return &exitError{code: e.code}
}
