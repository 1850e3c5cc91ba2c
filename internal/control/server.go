// Package control is the socket of a running sandbox: the owner's server and the command line's client.
package control

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/fdpass"
	"husk.dev/husk/internal/logfile"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/tracing"
)

const (
	// unclaimed bounds the descriptors that were sent and not asked for yet.
	unclaimed = 64
	// unclaimedWait is how long they may wait, and how long a request waits for its own.
	unclaimedWait = 30 * time.Second
	// logLimit bounds the log of a detached container's output, in bytes.
	logLimit = 64 << 20
)

// Server serves one sandbox.
type Server struct {
	sandbox *sandbox.Sandbox
	log     *slog.Logger
	dir     func(id string) (*state.Dir, error)
	program func() ([]byte, error)
	rpc     *ttrpc.Server

	mu      sync.Mutex             // guards the fields below
	changed *sync.Cond             // one of them has changed
	sent    map[string]*descriptor // by token
	// audiences are those of the containers whose output goes to a log, by id.
	audiences map[string]*audience
	open      int // connections of clients
}

// descriptor is one message of fdpass that waits for the request that names it.
type descriptor struct {
	files []*os.File
	gone  chan struct{} // closed when its sender is
}

// NewServer serves s and tells log what no client can be told. dir opens a container's state directory, program reads the debug
// shell that is carried into a guest.
func NewServer(s *sandbox.Sandbox, log *slog.Logger, dir func(id string) (*state.Dir, error), program func() ([]byte, error)) (*Server, error) {
	server := &Server{sandbox: s, log: log, dir: dir, program: program, sent: map[string]*descriptor{}, audiences: map[string]*audience{}}
	rpc, err := ttrpc.NewServer(ttrpc.WithServerHandshaker(counter{server}), ttrpc.WithUnaryServerInterceptor(tracing.Interceptor()))
	if err != nil {
		return nil, fmt.Errorf("make control server: %w", err)
	}
	server.rpc = rpc
	server.changed = sync.NewCond(&server.mu)
	controlv1.RegisterControlService(rpc, server)
	return server, nil
}

// Serve answers calls on rpc and takes descriptors on files until Shutdown.
func (s *Server) Serve(rpc, files net.Listener) error {
	go s.receive(files)
	err := s.rpc.Serve(context.Background(), rpc)
	if errors.Is(err, ttrpc.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown waits until every client has taken its answers and gone, or until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.mu.Lock(); s.changed.Broadcast(); s.mu.Unlock() })
	defer stop()
	s.mu.Lock()
	for s.open > 0 && ctx.Err() == nil {
		s.changed.Wait()
	}
	s.mu.Unlock()
	return s.rpc.Shutdown(ctx)
}

// counter lets in clients of our own user and counts them: ttrpc's Shutdown takes a connection whose first
// call is being answered for an idle one and closes it.
type counter struct{ server *Server }

func (c counter) Handshake(ctx context.Context, conn net.Conn) (net.Conn, any, error) {
	conn, info, err := ttrpc.UnixSocketRequireSameUser().Handshake(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	c.server.count(1)
	return &countedConn{Conn: conn, closed: sync.OnceFunc(func() { c.server.count(-1) })}, info, nil
}

// countedConn is a client's connection that tells of its end.
type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}

func (s *Server) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open += n
	s.changed.Broadcast()
}

func (s *Server) receive(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go s.take(conn.(*net.UnixConn))
	}
}

// take receives one message of descriptors and then watches the sender, which keeps its connection open
// for as long as it stands for the process.
func (s *Server) take(conn *net.UnixConn) {
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(unclaimedWait))
	token, files, err := fdpass.Receive(conn, 3)
	if err != nil {
		return
	}
	d := &descriptor{files: files, gone: make(chan struct{})}
	s.mu.Lock()
	if len(s.sent) >= unclaimed || s.sent[token] != nil {
		s.mu.Unlock()
		d.close()
		return
	}
	s.sent[token] = d
	s.changed.Broadcast()
	s.mu.Unlock()
	expire := time.AfterFunc(unclaimedWait, func() {
		if d := s.claimNow(token); d != nil {
			d.close()
		}
	})
	_ = conn.SetReadDeadline(time.Time{})
	_, _ = conn.Read(make([]byte, 1)) // ends when the sender does
	expire.Stop()
	if d := s.claimNow(token); d != nil {
		d.close()
	}
	close(d.gone)
}

func (d *descriptor) close() {
	for _, f := range d.files {
		f.Close()
	}
}

// claimNow takes what was sent with token, nil if it is not there.
func (s *Server) claimNow(token string) *descriptor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.claimLocked(token)
}

// claimLocked is claimNow. Preconditions: mu is held.
func (s *Server) claimLocked(token string) *descriptor {
	for sent, d := range s.sent {
		if subtle.ConstantTimeCompare([]byte(sent), []byte(token)) == 1 {
			delete(s.sent, sent)
			return d
		}
	}
	return nil
}

// claim waits, boundedly, for what was sent with token.
func (s *Server) claim(ctx context.Context, token string) (*descriptor, error) {
	ctx, cancel := context.WithTimeout(ctx, unclaimedWait)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { s.mu.Lock(); s.changed.Broadcast(); s.mu.Unlock() })
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if d := s.claimLocked(token); d != nil {
			return d, nil
		}
		if ctx.Err() != nil {
			return nil, status.Error(codes.InvalidArgument, "the files that the request names were not sent")
		}
		s.changed.Wait()
	}
}

// stdio turns what a request names into files.
func (s *Server) stdio(ctx context.Context, named *controlv1.Stdio) (sandbox.Stdio, error) {
	if named == nil {
		return sandbox.Stdio{}, nil
	}
	out := sandbox.Stdio{Terminal: named.Terminal, Rows: named.Rows, Columns: named.Columns}
	if named.Log != "" {
		if err := s.kept(named, &out); err != nil {
			return out, err
		}
	}
	if named.Token == "" {
		return out, nil
	}
	d, err := s.claim(ctx, named.Token)
	if err != nil {
		out.Close()
		return out, err
	}
	out.Gone = d.gone
	if named.Log != "" {
		d.close()
		return out, nil
	}
	out.In, out.Out, out.Err = d.files[0], d.files[1], d.files[2]
	return out, nil
}

// kept has the output go to a log, and to who attaches.
func (s *Server) kept(named *controlv1.Stdio, out *sandbox.Stdio) error {
	if err := os.MkdirAll(filepath.Dir(named.Log), 0o700); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	log, err := logfile.Open(named.Log, logLimit)
	if err != nil {
		return err
	}
	log.Failed = func(err error) { s.log.Warn("output of a container is missing in its log", "error", err) }
	a, in, err := newAudience(named.OpenStdin)
	if err != nil {
		log.Close()
		return err
	}
	out.In = in
	out.Out = &shown{a, logfile.Stdout, log.Stream(logfile.Stdout)}
	out.Err = &shown{a, logfile.Stderr, log.Stream(logfile.Stderr)}
	return nil
}

// Create implements the protocol.
func (s *Server) Create(ctx context.Context, r *controlv1.CreateRequest) (*controlv1.CreateResponse, error) {
	stdio, err := s.stdio(ctx, r.Stdio)
	if err != nil {
		return nil, failed(err)
	}
	dir, err := s.dir(r.Id)
	if err != nil {
		stdio.Close()
		return nil, failed(err)
	}
	request := sandbox.CreateRequest{
		ID: r.Id, Dir: dir, Bundle: r.Bundle, Spec: r.Spec, Stdio: stdio, Start: r.Start, HostPID: int(r.HostPid),
		AutoRemove: r.AutoRemove,
	}
	if e := r.Engine; e != nil {
		request.Engine = sandbox.Engine{OOMFiles: e.OomFiles, Events: e.Events, Namespace: e.Namespace}
	}
	if r.CallerPid != 0 {
		request.MountNS = fmt.Sprintf("/proc/%d/ns/mnt", r.CallerPid)
	}
	if r.UserNetwork != nil {
		request.User = &sandbox.UserNetwork{Publish: r.UserNetwork.Publish, Optional: r.UserNetwork.Optional, DNS: r.UserNetwork.Dns}
	}
	for _, f := range r.Files {
		request.Files = append(request.Files, sandbox.File{Path: f.Path, Content: f.Content, ReadOnly: f.Readonly})
	}
	if r.Image != nil {
		request.Layers, request.WritableMiB = r.Image.Layers, int(r.Image.WritableBytes>>20)
	}
	if err := s.sandbox.Create(ctx, request); err != nil {
		return nil, failed(err)
	}
	if out, is := stdio.Out.(*shown); is {
		s.admit(r.Id, out.audience)
	}
	return &controlv1.CreateResponse{Timeline: s.timeline(), Warnings: s.sandbox.Warnings(r.Id)}, nil
}

func (s *Server) timeline() []*controlv1.Phase {
	var out []*controlv1.Phase
	for _, p := range s.sandbox.Timeline() {
		out = append(out, &controlv1.Phase{
			Name: p.Name, StartUnixNanos: p.Start.UnixNano(), EndUnixNanos: p.End.UnixNano(),
		})
	}
	return out
}

// Start implements the protocol.
func (s *Server) Start(ctx context.Context, r *controlv1.ContainerRequest) (*controlv1.Empty, error) {
	return done(s.sandbox.Start(ctx, r.Id))
}

// State implements the protocol.
func (s *Server) State(_ context.Context, r *controlv1.ContainerRequest) (*controlv1.StateResponse, error) {
	c, err := s.sandbox.State(r.Id)
	if err != nil {
		return nil, failed(err)
	}
	return &controlv1.StateResponse{
		Status: string(c.Status), GuestPid: uint32(c.GuestPID), Isolation: c.Isolation,
	}, nil
}

// Wait implements the protocol.
func (s *Server) Wait(ctx context.Context, r *controlv1.WaitRequest) (*controlv1.WaitResponse, error) {
	exit, err := s.sandbox.Wait(ctx, r.Id, r.Exec)
	if err != nil {
		return nil, failed(err)
	}
	return &controlv1.WaitResponse{
		Status: exit.Status, TimeUnixNanos: exit.Time.UnixNano(), Reason: exit.Reason, Timeline: s.timeline(),
	}, nil
}

// Exec implements the protocol.
func (s *Server) Exec(ctx context.Context, r *controlv1.ExecRequest) (*controlv1.ExecResponse, error) {
	var process specs.Process
	if err := json.Unmarshal(r.Process, &process); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "read process: %v", err)
	}
	stdio, err := s.stdio(ctx, r.Stdio)
	if err != nil {
		return nil, failed(err)
	}
	pid, err := s.sandbox.Exec(ctx, r.Id, r.Exec, process, stdio)
	if err != nil {
		return nil, failed(err)
	}
	return &controlv1.ExecResponse{GuestPid: uint32(pid)}, nil
}

// Shell implements the protocol.
func (s *Server) Shell(ctx context.Context, r *controlv1.ShellRequest) (*controlv1.ExecResponse, error) {
	program, err := s.program()
	if err != nil {
		return nil, failed(err)
	}
	stdio, err := s.stdio(ctx, r.Stdio)
	if err != nil {
		return nil, failed(err)
	}
	if err := s.sandbox.Shell(ctx, r.Id, r.Exec, r.Args, program, stdio); err != nil {
		return nil, failed(err)
	}
	return &controlv1.ExecResponse{}, nil
}

// Copy implements the protocol.
func (s *Server) Copy(ctx context.Context, r *controlv1.CopyRequest) (*controlv1.ExecResponse, error) {
	stdio, err := s.stdio(ctx, r.Stdio)
	if err != nil {
		return nil, failed(err)
	}
	if err := s.sandbox.Copy(ctx, r.Id, r.Exec, r.Request, stdio); err != nil {
		return nil, failed(err)
	}
	return &controlv1.ExecResponse{}, nil
}

// Signal implements the protocol.
func (s *Server) Signal(ctx context.Context, r *controlv1.SignalRequest) (*controlv1.Empty, error) {
	return done(s.sandbox.Signal(ctx, r.Id, r.Exec, r.Signal, r.All))
}

// Resize implements the protocol.
func (s *Server) Resize(ctx context.Context, r *controlv1.ResizeRequest) (*controlv1.Empty, error) {
	return done(s.sandbox.Resize(ctx, r.Id, r.Exec, r.Rows, r.Columns))
}

// Pause implements the protocol.
func (s *Server) Pause(ctx context.Context, r *controlv1.ContainerRequest) (*controlv1.Empty, error) {
	return done(s.sandbox.Pause(ctx, r.Id))
}

// Resume implements the protocol.
func (s *Server) Resume(ctx context.Context, r *controlv1.ContainerRequest) (*controlv1.Empty, error) {
	return done(s.sandbox.Resume(ctx, r.Id))
}

// Update implements the protocol.
func (s *Server) Update(ctx context.Context, r *controlv1.UpdateRequest) (*controlv1.Empty, error) {
	var resources specs.LinuxResources
	if err := json.Unmarshal(r.Resources, &resources); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "read resources: %v", err)
	}
	return done(s.sandbox.Update(ctx, r.Id, resources))
}

// Stats implements the protocol.
func (s *Server) Stats(ctx context.Context, r *controlv1.ContainerRequest) (*controlv1.Encoded, error) {
	answer, err := s.sandbox.Stats(ctx, r.Id)
	return encoded(answer, err)
}

// Processes implements the protocol.
func (s *Server) Processes(ctx context.Context, r *controlv1.ContainerRequest) (*controlv1.Encoded, error) {
	answer, err := s.sandbox.Processes(ctx, r.Id)
	return encoded(answer, err)
}

// Events implements the protocol.
func (s *Server) Events(ctx context.Context, r *controlv1.ContainerRequest, out controlv1.Control_EventsServer) error {
	events, cancel, err := s.sandbox.Events(r.Id)
	if err != nil {
		return failed(err)
	}
	defer cancel()
	for {
		select {
		case e := <-events:
			if err := out.Send(&controlv1.Event{Id: r.Id, Kind: string(e.Kind), TimeUnixNanos: e.Time.UnixNano()}); err != nil {
				return err
			}
			if e.Kind == sandbox.ExitKind {
				return nil
			}
		case <-s.sandbox.Done():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Delete implements the protocol.
func (s *Server) Delete(ctx context.Context, r *controlv1.DeleteRequest) (*controlv1.DeleteResponse, error) {
	if err := s.sandbox.Delete(ctx, r.Id, r.Force); err != nil {
		return nil, failed(err)
	}
	select {
	case <-s.sandbox.Done():
		return &controlv1.DeleteResponse{}, nil
	default:
		return &controlv1.DeleteResponse{Lives: true}, nil
	}
}

func encoded(m proto.Message, err error) (*controlv1.Encoded, error) {
	if err != nil {
		return nil, failed(err)
	}
	data, err := proto.Marshal(m)
	if err != nil {
		return nil, failed(err)
	}
	return &controlv1.Encoded{Message: data}, nil
}

func done(err error) (*controlv1.Empty, error) {
	if err != nil {
		return nil, failed(err)
	}
	return &controlv1.Empty{}, nil
}

// failed gives an error the class that the client tells errors apart by.
func failed(err error) error {
	code := codes.Unknown
	if s, ok := status.FromError(err); ok {
		code = s.Code() // also of a wrapped one
	}
	switch {
	case errors.Is(err, sandbox.ErrState):
		code = codes.FailedPrecondition
	case errors.Is(err, sandbox.ErrNotFound):
		code = codes.NotFound
	}
	return status.Error(code, err.Error())
}
