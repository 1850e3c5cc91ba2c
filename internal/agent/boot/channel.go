package boot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/sys/vsock"
)

const (
	// portName is the name of the serial port that the host gave the agent.
	portName = "husk.agent"
	// portWait bounds how long the port may take to appear: its driver learns of it from a work queue.
	portWait = 10 * time.Second
	// pause is how long to wait between two looks. The guest has nothing else to do.
	pause = time.Millisecond
)

// Channel is the way to the host: listeners for agentv1's ports.
type Channel struct {
	RPC, IO net.Listener
	// Done is closed when the host is gone; nil where only the listeners tell.
	Done <-chan struct{}
	// Streams is how many streams are open; nil where that does not outlive a change of hosts.
	Streams func() int
}

// OpenChannel opens the channel that the kernel's command line names with husk.channel: serial, the
// default, or vsock.
func OpenChannel(ctx context.Context, cmdline Cmdline) (*Channel, error) {
	switch kind := cmdline.Value("husk.channel", "serial"); kind {
	case "serial":
		return openSerial(ctx)
	case "vsock":
		return openVsock()
	default:
		return nil, fmt.Errorf("open channel: unknown kind %q", kind)
	}
}

func openVsock() (*Channel, error) {
	rpc, err := vsock.Listen(agentv1.PortRPC)
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", err)
	}
	io, err := vsock.Listen(agentv1.PortIO)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open channel: %w", err), rpc.Close())
	}
	return &Channel{RPC: rpc, IO: io}, nil
}

func openSerial(ctx context.Context) (*Channel, error) {
	f, err := openPort(ctx)
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", err)
	}
	server, err := channel.NewServer(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open channel: %w", err), f.Close())
	}
	rpc, err := server.Listen(agentv1.PortRPC)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open channel: %w", err), server.Close())
	}
	io, err := server.Listen(agentv1.PortIO)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open channel: %w", err), server.Close())
	}
	return &Channel{RPC: rpc, IO: io, Done: server.Done(), Streams: server.Streams}, nil
}

// openPort opens the agent's serial port once the host is at the other end: until then a read would say
// that the stream has ended.
func openPort(ctx context.Context) (*os.File, error) {
	node, err := findPort(ctx)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(node, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	for sys.PollHangup(f) {
		select {
		case <-time.After(pause): // no notice comes of the host's arrival but a signal
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		}
	}
	return f, nil
}

// findPort finds the port by its name.
func findPort(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, portWait)
	defer cancel()
	for {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", err
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err == nil && strings.TrimSpace(string(text)) == portName {
				return "/dev/" + filepath.Base(filepath.Dir(name)), nil
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return "", fmt.Errorf("no serial port is named %s", portName)
		}
	}
}
