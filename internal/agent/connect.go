package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys"
)

// Connect joins a stream to a port of the guest's loopback.
func (s service) Connect(ctx context.Context, r *agentv1.ConnectRequest) (*agentv1.Empty, error) {
	if r.GetPort() == 0 || r.GetPort() > 65535 {
		return nil, fail(codes.InvalidArgument, "port %d: must be from 1 to 65535", r.GetPort())
	}
	stream, err := s.agent.streams.Claim(ctx, r.GetStream())
	if err != nil {
		return nil, err
	}
	conn, err := sys.DialLoopback(uint16(r.GetPort()))
	if err != nil {
		stream.Close()
		if errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fail(codes.NotFound, "nothing listens on port %d", r.GetPort())
		}
		return nil, err
	}
	go joinConns(stream, conn)
	return empty, nil
}

// joinConns passes on what comes on either side until both have ended. A stream has no half that ends alone, so the end
// of what conn sends is that of the stream.
func joinConns(stream net.Conn, conn sys.Loopback) {
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, stream) // an error is an end
		_ = conn.CloseWrite()
	}()
	_, _ = io.Copy(stream, conn)
	stream.Close()
}
