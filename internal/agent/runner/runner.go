// Package runner drives crun, the program that makes and enters containers in the guest.
//
// A start of crun is what costs most in an emulated guest, so it is asked for what only it can do (create,
// exec, update); starting a created container, and forgetting a dead one, are done here, as crun 1.8 does
// them.
package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"husk.dev/husk/internal/agent/proc"
	"husk.dev/husk/internal/agent/stdio"
)

const (
	// timeout bounds one call of crun. An emulated guest under load is slow.
	timeout = 60 * time.Second
	// maxLog bounds what is read of what crun has to say, in bytes.
	maxLog = 64 << 10
	// maxFilter bounds a seccomp filter, in bytes: BPF_MAXINSNS instructions of 8.
	maxFilter = 4096 * 8
	// maxOutput bounds what is read of crun's standard output, in bytes.
	maxOutput = 4096
)

// Runner calls crun.
type Runner struct {
	binary string
	root   string // where crun keeps its state
	cgroup string // crun's --cgroup-manager
	dir    string // for the files of calls, with short names: sockets are among them
	reaper *proc.Reaper
	calls  atomic.Uint64
}

// New makes a runner. dir must exist and be this runner's alone.
func New(binary, root, cgroupManager, dir string, reaper *proc.Reaper) *Runner {
	return &Runner{binary: binary, root: root, cgroup: cgroupManager, dir: dir, reaper: reaper}
}

// Process is a process that crun has left to this one.
type Process struct {
	PID    int
	Exited <-chan proc.Status
}

// Create makes a container of the bundle, with its init waiting for Start. The process' streams are
// attached, and closed on an error.
func (r *Runner) Create(ctx context.Context, id, bundle string, streams *stdio.IO) (Process, error) {
	return r.launch(ctx, streams, "create", func(c call) []string {
		return []string{"--bundle", bundle, "--pid-file", c.file("pid"), "--", id}
	})
}

// Exec starts an OCI process in a container. Streams as with Create.
func (r *Runner) Exec(ctx context.Context, id string, process []byte, streams *stdio.IO) (Process, error) {
	c := r.call()
	defer c.remove("json")
	if err := os.WriteFile(c.file("json"), process, 0o600); err != nil {
		streams.Abort()
		return Process{}, fmt.Errorf("write process: %w", err)
	}
	return r.launch(ctx, streams, "exec", func(own call) []string {
		return []string{"--detach", "--process", c.file("json"), "--pid-file", own.file("pid"), "--", id}
	})
}

// launch runs a command of crun that leaves a process behind, and attaches its streams.
func (r *Runner) launch(ctx context.Context, streams *stdio.IO, verb string, args func(call) []string) (Process, error) {
	started := false
	defer func() {
		if !started {
			streams.Abort()
		}
	}()
	c := r.call()
	defer c.remove("pid", "log")
	full := []string{verb}
	var console *stdio.Console
	if streams.Terminal() {
		var err error
		if console, err = stdio.ListenConsole(c.file("tty")); err != nil {
			return Process{}, err
		}
		defer console.Close()
		full = append(full, "--console-socket", console.Path())
	}
	adoption := r.reaper.Adopt()
	defer adoption.Close()
	if err := r.run(ctx, c, streams.Files(), append(full, args(c)...)...); err != nil {
		return Process{}, err
	}
	text, err := os.ReadFile(c.file("pid"))
	if err != nil {
		return Process{}, fmt.Errorf("read pid of the process: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 2 {
		return Process{}, fmt.Errorf("pid of the process is %q", text)
	}
	p := Process{PID: pid, Exited: adoption.Watch(pid)}
	if console != nil {
		master, err := console.Master()
		if err == nil {
			err = streams.Attach(master)
		}
		if err != nil {
			_ = r.reaper.Signal(pid, syscall.SIGKILL) // fails when it is dead already
			return Process{}, err
		}
	}
	started = true
	streams.Run()
	return p, nil
}

// Start lets the init of a created container go on to the user's program: crun's init waits for a byte
// in a fifo that is removed then.
func (r *Runner) Start(id string) error {
	path := filepath.Join(r.root, id, "exec.fifo")
	// Without a reader, whose init is dead, this fails with ENXIO in place of waiting.
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open start fifo: %w", err)
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove start fifo: %w", err)
	}
	if _, err := f.Write([]byte{0}); err != nil {
		return fmt.Errorf("write start fifo: %w", err)
	}
	return nil
}

// Update changes the limits of a container's cgroup to an OCI linux.resources object.
func (r *Runner) Update(ctx context.Context, id string, resources []byte) error {
	c := r.call()
	defer c.remove("json", "log")
	if err := os.WriteFile(c.file("json"), resources, 0o600); err != nil {
		return fmt.Errorf("write resources: %w", err)
	}
	return r.quietly(ctx, c, "update", "--resources", c.file("json"), "--", id)
}

// Filter returns the seccomp filter that crun has made for a container, or nil where it made none.
func (r *Runner) Filter(id string) []byte {
	f, err := os.Open(filepath.Join(r.root, id, "seccomp.bpf"))
	if err != nil {
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFilter+1))
	if err != nil || len(text) == 0 || len(text) > maxFilter {
		return nil
	}
	return text
}

// Forget removes what crun keeps of a container whose processes are gone.
func (r *Runner) Forget(id string) error {
	if err := os.RemoveAll(filepath.Join(r.root, id)); err != nil {
		return fmt.Errorf("remove state of container: %w", err)
	}
	return nil
}

// Version returns the first line that crun --version prints.
func (r *Runner) Version(ctx context.Context) (string, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("ask crun's version: %w", err)
	}
	defer read.Close()
	c := r.call()
	defer c.remove("log")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err == nil {
		err = r.run(ctx, c, []uintptr{null.Fd(), write.Fd(), null.Fd()}, "--version")
		null.Close()
	}
	write.Close()
	if err != nil {
		return "", fmt.Errorf("ask crun's version: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(read, maxOutput))
	if err != nil {
		return "", fmt.Errorf("ask crun's version: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line, nil
}

// quietly runs crun with no standard input and output.
func (r *Runner) quietly(ctx context.Context, c call, args ...string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("run crun: %w", err)
	}
	defer null.Close()
	return r.run(ctx, c, []uintptr{null.Fd(), null.Fd(), null.Fd()}, args...)
}

// run runs crun to its end.
func (r *Runner) run(ctx context.Context, c call, files []uintptr, args ...string) error {
	argv := append([]string{
		"crun", "--root", r.root, "--cgroup-manager=" + r.cgroup, "--log", c.file("log"), "--log-format", "json",
	}, args...)
	pid, exited, err := r.reaper.Start(r.binary, argv, &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/bin:/bin"}, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true}, // one group, to be killed as one
	})
	if err != nil {
		return err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	stopped := errors.New("it took too long")
	select {
	case s := <-exited:
		if s.Code == 0 {
			return nil
		}
		return classify(readLog(c.file("log")), s.Code)
	case <-timer.C:
	case <-ctx.Done():
		stopped = ctx.Err()
	}
	_ = syscall.Kill(-pid, syscall.SIGKILL) // fails when it has just exited
	<-exited
	return fmt.Errorf("run crun %s: %w", args[0], stopped)
}

func readLog(path string) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil // crun said nothing
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, maxLog))
	return text
}

// call names the files of one call.
type call struct{ base string }

func (r *Runner) call() call {
	return call{filepath.Join(r.dir, strconv.FormatUint(r.calls.Add(1), 10))}
}

func (c call) file(kind string) string { return c.base + "." + kind }

// remove removes files of the call; one that was not made is as good as removed.
func (c call) remove(kinds ...string) {
	for _, kind := range kinds {
		_ = os.Remove(c.file(kind))
	}
}
