// Package seccomp compiles seccomp filters on the host, with the code that would compile them in the guest.
package seccomp

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/child"
)

const (
	// instruction is the size of one instruction of a filter, in bytes (struct sock_filter, bpf(2)).
	instruction = 8
	// maxFilter bounds a filter, in bytes: the kernel takes 4096 instructions (BPF_MAXINSNS).
	maxFilter = 4096 * instruction
	// maxMessage bounds what is kept of what the compiler has to say, in bytes.
	maxMessage = 1 << 10
	// timeout bounds one compilation, which takes some 10 ms.
	timeout = 10 * time.Second
)

// Compilable tells whether a filter's program is all there is to it, so that who is given the program needs
// nothing else of linux.seccomp.
func Compilable(filter *specs.LinuxSeccomp) bool {
	return filter != nil && len(filter.Flags) == 0 && filter.ListenerPath == ""
}

// Compile returns the program of a filter, in the form that seccomp(2) takes, for this machine's
// architecture. compiler is the program that is built beside the container runner (guest/image/filter/filter.c).
func Compile(ctx context.Context, compiler string, filter *specs.LinuxSeccomp) ([]byte, error) {
	config, err := json.Marshal(specs.Spec{Version: specs.Version, Linux: &specs.Linux{Seccomp: filter}})
	if err != nil {
		return nil, fmt.Errorf("compile seccomp filter: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, compiler)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Dir = "/"
	cmd.Stdin = bytes.NewReader(config)
	program, message := &bounded{left: maxFilter + 1}, &bounded{left: maxMessage}
	cmd.Stdout, cmd.Stderr = program, message
	if err := child.Start(cmd); err != nil {
		return nil, fmt.Errorf("compile seccomp filter: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("compile seccomp filter: %w: %q", err, message.text)
	}
	if size := len(program.text); size == 0 || size > maxFilter || size%instruction != 0 {
		return nil, fmt.Errorf("compile seccomp filter: %s made a program of %d bytes", compiler, size)
	}
	return program.text, nil
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	text []byte
	left int // how much more is kept, in bytes
}

// Write never fails.
func (b *bounded) Write(p []byte) (int, error) {
	kept := p[:min(len(p), b.left)]
	b.text = append(b.text, kept...)
	b.left -= len(kept)
	return len(p), nil
}
