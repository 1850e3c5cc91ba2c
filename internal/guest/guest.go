// Package guest is the host's client of the agent in a guest, which it treats as hostile: every call has
// a deadline, every frame a bound.
package guest

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// CallTimeout bounds a call that names no bound of its own. An emulated guest under load is slow.
const CallTimeout = 2 * time.Minute

// Dialer connects to a port of the guest; vmm.VM is one.
type Dialer interface {
	Dial(ctx context.Context, port uint32) (net.Conn, error)
}

// Client talks to one guest's agent.
type Client struct {
	agentv1.AgentClient // the calls, each to be bounded by the caller's ctx; see Bound

	dialer Dialer
	rpc    *ttrpc.Client
	hello  *agentv1.HelloResponse
}

// ErrProtocol is matched by the refusal of an agent that speaks another version.
var ErrProtocol = errors.New("agent speaks another protocol version")

// Options say what the guest is told of itself.
type Options struct {
	Hostname string
	// Disks is how many of the disks without a driver, that a template has, get theirs.
	Disks int
	// Rescan lets the guest look for devices that it was not booted with.
	Rescan bool
	// MoreMemoryMiB is how much memory, in MiB, the guest must find among them.
	MoreMemoryMiB int
}

// entropyBytes is how much randomness a guest is given.
const entropyBytes = 64

// Connect waits, until ctx ends, for the agent to answer and greets it.
func Connect(ctx context.Context, dialer Dialer, o Options) (*Client, error) {
	conn, err := dialer.Dial(ctx, agentv1.PortRPC)
	if err != nil {
		return nil, fmt.Errorf("connect to the agent: %w", err)
	}
	rpc := ttrpc.NewClient(impatient{conn})
	c := &Client{AgentClient: agentv1.NewAgentClient(rpc), dialer: dialer, rpc: rpc}
	entropy := make([]byte, entropyBytes)
	if _, err := rand.Read(entropy); err != nil {
		rpc.Close()
		return nil, fmt.Errorf("greet the agent: %w", err)
	}
	c.hello, err = c.Hello(ctx, &agentv1.HelloRequest{
		NowUnixNanos: time.Now().UnixNano(), Hostname: o.Hostname, Entropy: entropy, Rescan: o.Rescan, Disks: uint32(o.Disks),
		MoreMemoryMib: uint32(o.MoreMemoryMiB),
	})
	if err != nil {
		rpc.Close()
		return nil, fmt.Errorf("greet the agent: %w", err)
	}
	if c.hello.Version != agentv1.Version {
		rpc.Close()
		return nil, fmt.Errorf("%w: %d, this husk speaks %d", ErrProtocol, c.hello.Version, agentv1.Version)
	}
	return c, nil
}

// impatient is a connection that ends when a write is not taken: a guest that does not read would hold up every call that
// comes after, whatever their deadlines.
type impatient struct{ net.Conn }

// writeWait is how long a write may take.
var writeWait = CallTimeout

func (c impatient) Write(data []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(writeWait)) // a connection that is closed already fails below
	n, err := c.Conn.Write(data)
	if err != nil {
		c.Close()
	}
	return n, err
}

// Greeting is what the agent said of itself and its guest in Connect.
func (c *Client) Greeting() *agentv1.HelloResponse { return c.hello }

// Bound gives a call the usual deadline.
func Bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, CallTimeout)
}

// Stream opens a stdio stream and returns the token that a request names it by.
func (c *Client) Stream(ctx context.Context) (token uint64, conn net.Conn, err error) {
	var header [8]byte
	for token == 0 { // 0 means no stream
		if _, err := rand.Read(header[:]); err != nil {
			return 0, nil, fmt.Errorf("make stream token: %w", err)
		}
		token = binary.BigEndian.Uint64(header[:])
	}
	conn, err = c.dialer.Dial(ctx, agentv1.PortIO)
	if err != nil {
		return 0, nil, fmt.Errorf("open stdio stream: %w", err)
	}
	if _, err := conn.Write(header[:]); err != nil {
		conn.Close()
		return 0, nil, fmt.Errorf("open stdio stream: %w", err)
	}
	return token, conn, nil
}

// Watch calls handle with each event of the guest until the connection ends or ctx does, and returns why.
func (c *Client) Watch(ctx context.Context, handle func(*agentv1.Event)) error {
	events, err := c.Events(ctx, &agentv1.Empty{})
	if err != nil {
		return fmt.Errorf("watch the guest: %w", err)
	}
	for {
		event, err := events.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("watch the guest: the agent ended the stream")
		}
		if err != nil {
			return fmt.Errorf("watch the guest: %w", err)
		}
		handle(event)
	}
}

// Close ends the connection.
func (c *Client) Close() error { return c.rpc.Close() }

// Answered tells whether the error of a call is what the agent answered, and not that of a connection that broke.
func Answered(err error) bool {
	_, ok := status.FromError(err)
	return ok
}

// Reason takes an error of a call apart: the agent's own words, and the class it gave them.
func Reason(err error) (string, codes.Code) {
	if s, ok := status.FromError(err); ok {
		return s.Message(), s.Code()
	}
	return err.Error(), codes.Unknown
}
