package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"husk.dev/husk/internal/agent/cgroup"
	"husk.dev/husk/internal/agent/mnt"
	"husk.dev/husk/internal/agent/nic"
	"husk.dev/husk/internal/agent/runner"
	"husk.dev/husk/internal/agent/spec"
	"husk.dev/husk/internal/agent/stdio"
)

// failure is an error with the class that it has for the host.
type failure struct {
	code codes.Code
	text string
}

func (f *failure) Error() string { return f.text }

func fail(code codes.Code, format string, args ...any) error {
	return &failure{code: code, text: fmt.Sprintf(format, args...)}
}

// classes are the errors of packages below and what they are for the host, the first match counts.
var classes = []struct {
	err  error
	code codes.Code
}{
	{runner.ErrNoCommand, codes.NotFound},
	{runner.ErrNotAllowed, codes.PermissionDenied},
	{runner.ErrNoCwd, codes.InvalidArgument},
	{spec.ErrInvalid, codes.InvalidArgument},
	{nic.ErrInvalid, codes.InvalidArgument},
	{nic.ErrNoCard, codes.Unavailable},
	{mnt.ErrInvalid, codes.InvalidArgument},
	{mnt.ErrNoDevice, codes.NotFound},
	{stdio.ErrNoStream, codes.InvalidArgument},
	{stdio.ErrNoTerminal, codes.FailedPrecondition},
	{cgroup.ErrNone, codes.FailedPrecondition},
	{os.ErrProcessDone, codes.NotFound},
	{syscall.ESRCH, codes.NotFound},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
}

// toStatus gives an error the class that crosses the channel.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	var f *failure
	if errors.As(err, &f) {
		return status.Error(f.code, err.Error())
	}
	for _, class := range classes {
		if errors.Is(err, class.err) {
			return status.Error(class.code, err.Error())
		}
	}
	return status.Error(codes.Internal, err.Error())
}

// answer runs one call, and turns its error, or a panic in it, into an answer. A panic would end PID 1 and
// with it every container.
func answer(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (reply any, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = status.Error(codes.Internal, fmt.Sprintf("%s: panic: %v", info.FullMethod, p))
		}
	}()
	reply, err = method(ctx, unmarshal)
	if _, done := status.FromError(err); done {
		return reply, err // nil, or ttrpc's own
	}
	return reply, toStatus(err)
}
