// Package hook runs OCI hooks on the host.
package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// outputLimit is how much of each of a hook's outputs is kept for the error, in bytes: the last.
	outputLimit = 4 << 10
	// lineLimit is how much of its last line the error shows, in bytes.
	lineLimit = 512
	// drainWait is how long a hook's outputs are read after it has exited: a daemon that it left behind
	// may hold them open for ever.
	drainWait = time.Second
)

// Run runs the hooks of one kind ("createRuntime", …) in order, each with state on its standard input,
// and stops at the first that fails. ctx and the hook's own timeout bound each; then its process group
// is killed.
func Run(ctx context.Context, kind string, hooks []specs.Hook, state specs.State) error {
	for i, h := range hooks {
		if err := run(ctx, h, state); err != nil {
			return fmt.Errorf("hook %s[%d] %s: %w", kind, i, h.Path, err)
		}
	}
	return nil
}

// RunCreate runs the hooks that belong before the container's own code, in the caller's namespaces, which are the
// runtime's (runtime-spec, config.md, "POSIX-platform Hooks"), as Run does.
func RunCreate(ctx context.Context, hooks specs.Hooks, state specs.State) error {
	for _, set := range []struct {
		kind  string
		hooks []specs.Hook
	}{
		{"prestart", hooks.Prestart}, //nolint:staticcheck // deprecated, and Docker uses it
		{"createRuntime", hooks.CreateRuntime},
		{"createContainer", hooks.CreateContainer},
	} {
		if err := Run(ctx, set.kind, set.hooks, state); err != nil {
			return err
		}
	}
	return nil
}

// RunAll runs every hook, whatever the others return: the OCI has poststart and poststop hooks go on
// after a failure.
func RunAll(ctx context.Context, kind string, hooks []specs.Hook, state specs.State) error {
	var errs []error
	for i, h := range hooks {
		if err := run(ctx, h, state); err != nil {
			errs = append(errs, fmt.Errorf("hook %s[%d] %s: %w", kind, i, h.Path, err))
		}
	}
	return errors.Join(errs...)
}

func run(ctx context.Context, h specs.Hook, state specs.State) error {
	input, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	if h.Timeout != nil {
		timeout := time.Duration(*h.Timeout) * time.Second
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("timed out after %v", timeout))
		defer cancel()
	}
	var stdout, stderr tail
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = append([]string{}, h.Env...) // nil would mean the caller's own
	cmd.Dir = "/"
	if info, err := os.Stat(state.Bundle); err == nil && info.IsDir() {
		cmd.Dir = state.Bundle
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = drainWait
	err = cmd.Run()
	if ctx.Err() != nil && err != nil {
		err = context.Cause(ctx)
	}
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	line := stderr.lastLine()
	if line == "" {
		line = stdout.lastLine()
	}
	if line == "" {
		return err
	}
	return fmt.Errorf("%w: %s", err, line)
}

// tail keeps the last outputLimit bytes of what is written to it.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	if n >= outputLimit {
		t.kept = append(t.kept[:0], p[n-outputLimit:]...)
		return n, nil
	}
	if drop := len(t.kept) + n - outputLimit; drop > 0 {
		t.kept = append(t.kept[:0], t.kept[drop:]...)
	}
	t.kept = append(t.kept, p...)
	return n, nil
}

// lastLine is the last line that is not blank, fit for a message.
func (t *tail) lastLine() string {
	lines := strings.Split(strings.TrimSpace(string(t.kept)), "\n")
	line := strings.TrimSpace(lines[len(lines)-1])
	if len(line) > lineLimit {
		line = line[:lineLimit]
	}
	return strings.ToValidUTF8(line, "?")
}
