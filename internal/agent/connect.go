package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// dialWait bounds the connection to a port of the guest's own loopback.
const dialWait = 5 * time.Second

// Connect joins a stream to a port of the guest's loopback.
func (s service) Connect(ctx context.Context, r *agentv1.ConnectRequest) (*agentv1.Empty, error) {
	if r.GetPort() == 0 || r.GetPort() > 65535 {
		return nil, fail(codes.InvalidArgument, "port %d: must be from 1 to 65535", r.GetPort())
	}
	stream, err := s.agent.streams.Claim(ctx, r.GetStream())
	if err != nil {
		return nil, err
	}
	conn, err := dialLoopback(ctx, r.GetPort())
	if err != nil {
		stream.Close()
		return nil, err
	}
	go joinConns(stream, conn)
	return empty, nil
}

// dialLoopback tries both families: servers listen on one or the other.
func dialLoopback(ctx context.Context, port uint32) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: dialWait}
	var first error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		if first == nil {
			first = err
		}
	}
	if errors.Is(first, syscall.ECONNREFUSED) {
		return nil, fail(codes.NotFound, "nothing listens on port %d", port)
	}
	return nil, first
}

// joinConns passes on what comes on either side until both have ended. A stream has no half that ends alone, so the end
// of what conn sends is that of the stream.
func joinConns(stream net.Conn, conn *net.TCPConn) {
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, stream) // an error is an end
		_ = conn.CloseWrite()
	}()
	_, _ = io.Copy(stream, conn)
	stream.Close()
}
