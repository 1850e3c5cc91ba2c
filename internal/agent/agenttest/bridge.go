package agenttest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/channel"
)

// Serve is a guest for a fake VM (vmmtest.Fake.Serve) in which the real agent runs, until ctx ends. The VM's
// shares are directories of this machine by their tags.
func Serve(shares map[string]string) func(ctx context.Context, s *channel.Server) error {
	return func(ctx context.Context, s *channel.Server) error {
		g, err := New(os.Stderr, shares)
		if err != nil {
			return err
		}
		failed := make(chan error, 2)
		for _, port := range []uint32{agentv1.PortRPC, agentv1.PortIO} {
			l, err := s.Listen(port)
			if err != nil {
				return errors.Join(err, g.Stop())
			}
			defer l.Close()
			go func() { failed <- g.forward(ctx, l, port) }()
		}
		select {
		case err = <-failed:
		case <-ctx.Done():
		case <-g.Exited():
		case <-s.Done():
		}
		return errors.Join(err, g.Stop())
	}
}

// forward joins the streams of l with streams to a port of the agent.
func (g *Guest) forward(ctx context.Context, l net.Listener, port uint32) error {
	for {
		outer, err := l.Accept()
		if err != nil {
			return err
		}
		inner, err := g.Dial(ctx, port)
		if err != nil {
			outer.Close()
			return err
		}
		go join(outer, inner)
		go join(inner, outer)
	}
}

// join copies one way. The end of either side ends both, as with one stream.
func join(dst, src net.Conn) {
	_, _ = io.Copy(dst, src)
	dst.Close()
	src.Close()
}
