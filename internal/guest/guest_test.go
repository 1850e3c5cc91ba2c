package guest

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// pipe is a guest with one connection.
type pipe struct{ conn net.Conn }

func (p pipe) Dial(context.Context, uint32) (net.Conn, error) { return p.conn, nil }

// deafens is the guest's end of a connection, which can stop to read.
type deafens struct {
	net.Conn
	deaf atomic.Bool
	end  chan struct{}
}

func (d *deafens) Read(data []byte) (int, error) {
	n, err := d.Conn.Read(data)
	if d.deaf.Load() {
		<-d.end
	}
	return n, err
}

// agent answers what Connect asks.
type agent struct{ agentv1.AgentService }

func (agent) Hello(context.Context, *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	return &agentv1.HelloResponse{Version: agentv1.Version}, nil
}

func (agent) Ping(context.Context, *agentv1.PingRequest) (*agentv1.PingResponse, error) {
	return &agentv1.PingResponse{}, nil
}

// TestDeafGuest calls a guest that reads no more: the calls end, also the one that nobody has taken from the connection.
func TestDeafGuest(t *testing.T) {
	defer func(before time.Duration) { writeWait = before }(writeWait)
	writeWait = 200 * time.Millisecond
	ours, theirs := net.Pipe()
	end := &deafens{Conn: theirs, end: make(chan struct{})}
	defer close(end.end)
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	agentv1.RegisterAgentService(server, agent{})
	listener := &once{conns: make(chan net.Conn, 1)}
	listener.conns <- end
	go server.Serve(t.Context(), listener)
	c, err := Connect(t.Context(), pipe{ours}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	end.deaf.Store(true)
	failed := make(chan error, 3)
	for range cap(failed) {
		go func() {
			_, err := c.Ping(context.Background(), &agentv1.PingRequest{}) // it has no deadline of its own
			failed <- err
		}()
	}
	for range cap(failed) {
		select {
		case err := <-failed:
			if err == nil {
				t.Error("a guest that does not read has answered")
			}
		case <-time.After(time.Minute):
			t.Fatal("a call waits for ever")
		}
	}
}

// once accepts one connection.
type once struct {
	conns  chan net.Conn
	closed sync.Once
}

func (o *once) Accept() (net.Conn, error) {
	if c, ok := <-o.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (o *once) Close() error {
	o.closed.Do(func() { close(o.conns) })
	return nil
}
func (o *once) Addr() net.Addr { return &net.UnixAddr{} }
