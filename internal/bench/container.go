package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Limits end what hangs; they say nothing about how long things should take.
const (
	commandLimit = 3 * time.Minute  // a call of a runtime
	goneLimit    = 30 * time.Second // the end of processes that were told to end
	// cancelGrace is how long a call may go on after an interrupt: a runtime that ends by itself leaves
	// nothing behind.
	cancelGrace = 10 * time.Second
)

// container is one in the making, or running. remove must be called in the end.
type container struct {
	s  *session
	rt Runtime
	id string
}

func (s *session) container(rt Runtime) *container {
	return &container{s: s, rt: rt, id: fmt.Sprintf("hb%d-%d", os.Getpid(), s.serial.Add(1))}
}

// argv is a call of the runtime.
func (c *container) argv(args ...string) []string {
	return append(append(slices.Clone(c.rt.Command), "--root", filepath.Join(c.s.setting.Dir, "state", c.rt.Name)), args...)
}

// call runs a verb and returns how long that took.
func (c *container) call(ctx context.Context, args ...string) (time.Duration, error) {
	began := time.Now()
	err := c.s.command(ctx, nil, c.argv(args...))
	return time.Since(began), err
}

// create makes the container and returns its process on the host.
func (c *container) create(ctx context.Context, bundle string) (pid int, took time.Duration, err error) {
	file := filepath.Join(c.s.setting.Dir, c.id+".pid")
	took, err = c.call(ctx, "create", "--bundle", c.s.bundle(bundle), "--pid-file", file, c.id)
	if err != nil {
		return 0, took, err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, took, err
	}
	pid, err = strconv.Atoi(strings.TrimSpace(string(data)))
	return pid, took, err
}

// remove ends the container, if it is there.
func (c *container) remove(ctx context.Context) {
	_ = os.Remove(filepath.Join(c.s.setting.Dir, c.id+".pid")) // there may be none
	_, _ = c.call(context.WithoutCancel(ctx), "delete", "--force", c.id)
}

// command runs a program to its end. A nil stdout, and stderr, go to a file, whose end an error tells.
func (s *session) command(ctx context.Context, stdout *os.File, argv []string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	log, err := os.CreateTemp(s.setting.Dir, "log-")
	if err != nil {
		return err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	if stdout == nil {
		stdout = log
	}
	ctx, cancel := patient(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = stdout, log                  // files, no pipes: what stays in the background may keep them
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's interrupt is for this process alone
	forget, err := s.start(cmd)
	if err == nil {
		err = cmd.Wait()
		forget()
	}
	if err != nil {
		return fmt.Errorf("%s: %w%s", strings.Join(argv, " "), err, lastWords(log))
	}
	return nil
}

// patient is bounded by commandLimit, and ends some time after ctx does.
func patient(ctx context.Context) (context.Context, context.CancelFunc) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), commandLimit)
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(cancelGrace):
			cancel()
		case <-bounded.Done():
		}
	})
	return bounded, func() { stop(); cancel() }
}

// lastWords are the last line of what a program printed.
func lastWords(log *os.File) string {
	const most = 400
	if end, err := log.Seek(0, io.SeekEnd); err == nil {
		_, _ = log.Seek(max(0, end-most), io.SeekStart)
	}
	data, err := io.ReadAll(io.LimitReader(log, most))
	text := strings.TrimSpace(string(data))
	if err != nil || text == "" {
		return ""
	}
	return ": " + text[strings.LastIndexByte(text, '\n')+1:]
}

// maxOutput bounds what a program may print, in bytes.
const maxOutput = 1 << 20

// output is what a program printed, and when.
type output struct {
	text        string
	first, exit time.Duration // to the first byte, 0 without one; to the end
}

// foreground runs a program to its end and takes its output.
func (s *session) foreground(ctx context.Context, argv []string) (output, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return output{}, err
	}
	defer r.Close()
	began := time.Now()
	read := make(chan output, 1)
	go func() {
		var o output
		buf := make([]byte, 1)
		if n, _ := r.Read(buf); n == 1 {
			o.first = time.Since(began)
			rest, _ := io.ReadAll(io.LimitReader(r, maxOutput))
			o.text = string(buf) + string(rest)
		}
		read <- o
	}()
	err = s.command(ctx, w, argv)
	took := time.Since(began)
	w.Close()
	if err != nil {
		return output{}, err
	}
	if err := r.SetReadDeadline(time.Now().Add(goneLimit)); err != nil { // a process may have kept the pipe
		return output{}, err
	}
	o := <-read
	o.exit = took
	return o, nil
}

// run runs a container of a bundle, or with an image of that, to its end.
func (c *container) run(ctx context.Context, bundle string) (output, error) {
	o, err := c.s.foreground(ctx, c.argv("run", "--bundle", c.s.bundle(bundle), c.id))
	if err != nil {
		c.remove(ctx)
	}
	return o, err
}

// runImage runs a program of the runtime's image to its end.
func (c *container) runImage(ctx context.Context, args ...string) (output, error) {
	if c.rt.Image == "" {
		return output{}, errors.New("the runtime has no images")
	}
	o, err := c.s.foreground(ctx, c.argv(append([]string{"run", "--rm", "--pull", "never", "--network", "none", "--name", c.id, c.rt.Image}, args...)...))
	if err != nil {
		c.remove(ctx)
	}
	return o, err
}
