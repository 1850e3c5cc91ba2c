// Package echo is the service of a test guest: it sends back what it gets.
package echo

import (
	"context"
	"io"
	"net"

	"husk.dev/husk/internal/channel"
)

const (
	// Port is where the guest echoes.
	Port = 7
	// ConsoleMark is the line that the guest prints on its console when it is about to serve.
	ConsoleMark = "husk test guest is up"
)

// Serve echoes on Port until the channel closes or ctx ends.
func Serve(ctx context.Context, s *channel.Server) error {
	l, err := s.Listen(Port)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	return ServeListener(l)
}

// ServeListener echoes on every connection to l until it closes.
func ServeListener(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // a client that goes away in the middle is no concern of ours
		}()
	}
}
