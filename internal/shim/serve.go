package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/ttrpc"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/tracing"
)

const (
	// EventsEnv names containerd's socket for events, in the environment of its shims.
	EventsEnv = "TTRPC_ADDRESS"
	// logWait bounds a write to containerd's fifo: without a reader it fills up, and what does not fit is lost.
	logWait = 100 * time.Millisecond
	// answerWait bounds the wait for the last answers to be taken.
	answerWait = 2 * time.Second
	// idleWait is how long a shim that serves nothing waits for a request: containerd makes its first at once, and the
	// last one, Shutdown, once the last container is deleted.
	idleWait = 2 * time.Minute
)

// serve is the shim itself: the owner of the virtual machine.
func (p Program) serve(a arguments) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP, syscall.SIGPIPE)
	if err := sys.PrivateMounts(); err != nil {
		return err
	}
	log, err := logger(a.debug)
	if err != nil {
		return err
	}
	defer tracing.Start(Name, p.Version, log)()
	syscall.CloseOnExec(inheritedMounts)
	file := os.NewFile(inheritedSocket, "listener")
	listener, err := net.FileListener(file)
	file.Close()
	if err != nil {
		return fmt.Errorf("take over socket: %w", err)
	}
	s := &service{
		program: p, namespace: a.namespace, id: a.id, log: log, containers: map[string]*container{},
		socket: listener.Addr().String(), events: newPublisher(os.Getenv(EventsEnv), a.namespace, log), end: make(chan struct{}),
	}
	if s.events.address == "" { // CRI-O mounts roots itself; containerd has the shim do it
		s.engine = EngineMounts
	}
	server, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()),
		ttrpc.WithChainUnaryServerInterceptor(tracing.Interceptor(), s.intercept))
	if err != nil {
		return fmt.Errorf("make task server: %w", err)
	}
	s.register(server)
	s.registerSandbox(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), listener) }()

	select {
	case <-s.end:
	case <-s.idle(idleWait):
		s.endAll("there is nothing to serve, and no request comes")
	case sig := <-signals:
		s.endAll("the shim got " + sig.String())
	case err = <-served:
		s.endAll(fmt.Sprintf("task server failed: %v", err))
	}
	s.unlisten()
	ctx, cancel := context.WithTimeout(context.Background(), answerWait)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		log.Warn("stop task server", "error", err)
	}
	_ = server.Close()
	return errors.Join(err, s.events.close())
}

// unlisten takes the socket away, once, so that it is no successor's: containerd may start one as soon as it has the
// answer to Shutdown.
func (s *service) unlisten() {
	s.unlistenOnce.Do(func() {
		if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.log.Warn("remove socket", "error", err)
		}
	})
}

// idle is closed when the shim has had nothing to serve and no request for at least that long. A containerd that is
// busy or restarts may lose the request that should have ended it.
func (s *service) idle(wait time.Duration) <-chan struct{} {
	idle := make(chan struct{})
	go func() {
		for before := int64(0); ; {
			select {
			case <-s.end:
				return
			case <-time.After(wait):
			}
			called := s.called.Load()
			unused := func() bool { return s.called.Load() == before && s.calls.Load() == 0 && s.empty() }
			if unused() {
				s.closing.Store(true) // a request that comes from now on is refused
				if unused() {
					close(idle)
					return
				}
				s.closing.Store(false)
			}
			before = called
		}
	}()
	return idle
}

// empty tells whether the shim has neither a container nor a pod, which has an end of its own.
func (s *service) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.containers) == 0 && s.pod == nil
}

// logger writes to what start has made of standard error: containerd's fifo.
func logger(debug bool) (*slog.Logger, error) {
	fd, err := syscall.Dup(int(os.Stderr.Fd()))
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	syscall.CloseOnExec(fd)
	file, err := sys.Pollable(fd, "log")
	if err != nil {
		return nil, err
	}
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(patient{file}, &slog.HandlerOptions{Level: level})), nil
}

// patient is a fifo that nobody may read: what cannot be written in time is lost.
type patient struct{ *os.File }

func (w patient) Write(line []byte) (int, error) {
	_ = w.SetWriteDeadline(time.Now().Add(logWait)) // a log that is a file has none and does not block
	_, _ = w.File.Write(line)
	return len(line), nil
}

// message is a request in its wire form.
type message[T any] interface {
	*T
}

// method makes a ttrpc method of one of the service's.
func method[T, R any, P message[T]](f func(context.Context, P) (*R, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		var request T
		if err := unmarshal(&request); err != nil {
			return nil, err
		}
		if span := trace.SpanFromContext(ctx); span.IsRecording() {
			span.SetAttributes(about(&request)...)
		}
		return f(ctx, &request)
	}
}

// about is what a trace says of a request.
func about(request any) (all []attribute.KeyValue) {
	if r, ok := request.(interface{ GetID() string }); ok {
		all = append(all, semconv.ContainerID(r.GetID()))
	}
	if r, ok := request.(interface{ GetExecID() string }); ok && r.GetExecID() != "" {
		all = append(all, attribute.String("husk.exec.id", r.GetExecID()))
	}
	if r, ok := request.(interface{ GetSandboxID() string }); ok {
		all = append(all, attribute.String("husk.sandbox.id", r.GetSandboxID()))
	}
	return all
}

// register serves the Task API. Versions 2 and 3 have the same messages under two names.
func (s *service) register(server *ttrpc.Server) {
	methods := map[string]ttrpc.Method{
		"State": method(s.State), "Create": method(s.Create), "Start": method(s.Start), "Delete": method(s.Delete),
		"Pids": method(s.Pids), "Pause": method(s.Pause), "Resume": method(s.Resume),
		"Checkpoint": method(s.Checkpoint), "Kill": method(s.Kill), "Exec": method(s.Exec),
		"ResizePty": method(s.ResizePty), "CloseIO": method(s.CloseIO), "Update": method(s.Update),
		"Wait": method(s.Wait), "Stats": method(s.Stats), "Connect": method(s.Connect), "Shutdown": method(s.Shutdown),
	}
	for _, name := range []string{"containerd.task.v2.Task", "containerd.task.v3.Task"} {
		server.RegisterService(name, &ttrpc.ServiceDesc{Methods: methods})
	}
}

// intercept gives every error its class and notes that the shim is called.
func (s *service) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, call ttrpc.Method) (any, error) {
	s.called.Add(1)
	s.calls.Add(1)
	defer s.calls.Add(-1)
	if s.closing.Load() {
		return nil, status.Error(codes.Unavailable, "the shim is ending: it had nothing to serve")
	}
	answer, err := call(ctx, unmarshal)
	if err != nil {
		s.log.Debug("call failed", "method", info.FullMethod, "error", err)
		return nil, failed(err)
	}
	return answer, nil
}

// Shutdown ends the shim once it has no container any more, or at once when that is asked for.
func (s *service) Shutdown(_ context.Context, r *task.ShutdownRequest) (*emptypb.Empty, error) {
	if !s.empty() && !r.Now {
		return &emptypb.Empty{}, nil // it serves others of the pod
	}
	s.endAll("containerd has shut it down") // a VM may be there without a container too
	s.unlisten()
	s.endOnce.Do(func() { close(s.end) })
	return &emptypb.Empty{}, nil
}
