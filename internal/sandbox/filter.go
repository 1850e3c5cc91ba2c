package sandbox

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/seccomp"
)

// compileFilter compiles the container's seccomp filter while the guest boots, which takes an emulated guest
// longer than all else that creating a container takes. The function that it returns waits for the program,
// which is nil where the guest has to see to it: crun then says what is wrong with a filter.
func (s *Sandbox) compileFilter(ctx context.Context, spec *specs.Spec) func() []byte {
	compiler := s.options.Guest.FilterCompiler
	if compiler == "" || spec.Linux == nil || !seccomp.Compilable(spec.Linux.Seccomp) {
		return func() []byte { return nil }
	}
	compiled := make(chan []byte, 1)
	go func() {
		program, err := seccomp.Compile(ctx, compiler, spec.Linux.Seccomp)
		if err != nil {
			s.log.Warn("the guest compiles its seccomp filter", "error", err)
		}
		compiled <- program
	}()
	return func() []byte { return <-compiled }
}

// withoutFilter returns a configuration for a guest that is given the program of its filter.
func withoutFilter(spec *specs.Spec) *specs.Spec {
	changed, linux := *spec, *spec.Linux
	linux.Seccomp = nil
	changed.Linux = &linux
	return &changed
}
