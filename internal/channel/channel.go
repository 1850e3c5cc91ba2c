// Package channel carries the ports of a guest over one byte stream, for a VM whose only way in is a
// serial port: yamux streams that each open with the number of the port they want.
package channel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	// window is how much of one stream may be in flight, in bytes.
	window = 1 << 20
	// headerWait bounds how long the guest waits for a new stream's port number.
	headerWait = 10 * time.Second
	// listenWait is how long a stream waits for somebody to listen on its port: the host may dial
	// before the guest runs, and then the stream is there before the agent's first Listen.
	listenWait = 2 * time.Second
	// backlog is how many streams of one port may wait to be accepted.
	backlog = 64
	// maxStreams bounds the streams that the host keeps: a guest may leave its ends of old ones open.
	maxStreams = 4096
)

// config is yamux' configuration for both ends. Keep-alives are off: the owner pings the agent itself,
// with a patience that suits an emulated guest.
func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.MaxStreamWindowSize = window
	c.StreamOpenTimeout = 0 // Dial has its own
	c.StreamCloseTimeout = 0
	c.ConnectionWriteTimeout = 5 * time.Minute // an emulated guest under load is slow, not dead
	c.LogOutput = io.Discard
	return c
}

// Client is the host's end.
type Client struct{ session *yamux.Session }

// NewClient runs the host's end over conn, which it owns from then on.
func NewClient(conn io.ReadWriteCloser) (*Client, error) {
	s, err := yamux.Client(&guard{ReadWriteCloser: conn}, config())
	if err != nil {
		return nil, fmt.Errorf("open guest channel: %w", err)
	}
	return &Client{session: s}, nil
}

// Dial opens a stream to a port of the guest. It does not wait for the guest to accept it.
func (c *Client) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if n := c.session.NumStreams(); n >= maxStreams {
		return nil, fmt.Errorf("dial guest port %d: %d streams are open", port, n)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	opened := make(chan result, 1)
	go func() {
		stream, err := c.session.OpenStream()
		if err != nil {
			opened <- result{err: err}
			return
		}
		var header [4]byte
		binary.BigEndian.PutUint32(header[:], port)
		if _, err := stream.Write(header[:]); err != nil {
			stream.Close()
			opened <- result{err: err}
			return
		}
		opened <- result{conn: stream}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, fmt.Errorf("dial guest port %d: %w", port, r.err)
		}
		return r.conn, nil
	case <-ctx.Done():
		go func() {
			if r := <-opened; r.conn != nil {
				r.conn.Close()
			}
		}()
		return nil, fmt.Errorf("dial guest port %d: %w", port, ctx.Err())
	}
}

// Close ends every stream and the connection under them.
func (c *Client) Close() error { return c.session.Close() }

// Server is the guest's end.
type Server struct {
	session *yamux.Session
	done    chan struct{}

	mu     sync.Mutex
	ports  map[uint32]*listener // guarded by mu
	change chan struct{}        // guarded by mu: closed and replaced by each Listen
}

// NewServer runs the guest's end over conn, which it owns from then on.
func NewServer(conn io.ReadWriteCloser) (*Server, error) {
	session, err := yamux.Server(conn, config())
	if err != nil {
		return nil, fmt.Errorf("open host channel: %w", err)
	}
	s := &Server{session: session, done: make(chan struct{}), ports: map[uint32]*listener{}, change: make(chan struct{})}
	go s.dispatch()
	return s, nil
}

// Listen returns the streams that the host opens to port.
func (s *Server) Listen(port uint32) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.ports[port]; taken {
		return nil, fmt.Errorf("port %d is taken", port)
	}
	l := &listener{server: s, port: port, conns: make(chan net.Conn, backlog), closed: make(chan struct{})}
	s.ports[port] = l
	close(s.change)
	s.change = make(chan struct{})
	return l, nil
}

// Done is closed when the connection to the host is gone.
func (s *Server) Done() <-chan struct{} { return s.done }

// Streams is how many streams are open. When it is 0 and stays so, another host may take the place of this one.
func (s *Server) Streams() int { return s.session.NumStreams() }

// Close ends every stream and the connection under them.
func (s *Server) Close() error { return s.session.Close() }

func (s *Server) dispatch() {
	defer close(s.done)
	for {
		stream, err := s.session.AcceptStream()
		if err != nil {
			return
		}
		go s.route(stream)
	}
}

func (s *Server) route(stream *yamux.Stream) {
	var header [4]byte
	_ = stream.SetReadDeadline(time.Now().Add(headerWait)) // a stream has no state in which this fails
	if _, err := io.ReadFull(stream, header[:]); err != nil {
		stream.Close()
		return
	}
	_ = stream.SetReadDeadline(time.Time{})
	l := s.listener(binary.BigEndian.Uint32(header[:]))
	if l == nil {
		stream.Close()
		return
	}
	select {
	case l.conns <- stream:
	case <-l.closed:
		stream.Close()
	case <-s.done:
		stream.Close()
	}
}

// listener returns who listens on port, and waits a moment for somebody to.
func (s *Server) listener(port uint32) *listener {
	late := time.NewTimer(listenWait)
	defer late.Stop()
	for {
		s.mu.Lock()
		l, change := s.ports[port], s.change
		s.mu.Unlock()
		if l != nil {
			return l
		}
		select {
		case <-change:
		case <-late.C:
			return nil
		case <-s.done:
			return nil
		}
	}
}

type listener struct {
	server *Server
	port   uint32
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

var errClosed = errors.Join(net.ErrClosed, io.EOF)

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, errClosed
	case <-l.server.done:
		return nil, errClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.server.mu.Lock()
		delete(l.server.ports, l.port)
		l.server.mu.Unlock()
	})
	return nil
}

func (l *listener) Addr() net.Addr { return addr(l.port) }

type addr uint32

func (a addr) Network() string { return "husk-channel" }
func (a addr) String() string  { return fmt.Sprintf("port %d", uint32(a)) }
