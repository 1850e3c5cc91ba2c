package sandbox

import (
	"context"
	"net"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// Connect opens a TCP connection to a port of the guest's loopback: what listens there is the containers'.
func (s *Sandbox) Connect(ctx context.Context, port uint16) (net.Conn, error) {
	client := s.client()
	if client == nil {
		return nil, ErrState
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	token, conn, err := client.Stream(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := client.Connect(ctx, &agentv1.ConnectRequest{Port: uint32(port), Stream: token}); err != nil {
		conn.Close()
		return nil, explain(err, "connect to port %d of the guest", port)
	}
	return conn, nil
}
