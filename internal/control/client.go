package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/fdpass"
)

// Names of an owner's sockets in the state directory of its container.
const (
	RPCSocket   = "owner.sock" // ttrpc, service Control
	FilesSocket = "files.sock" // fdpass
)

// ErrGone is matched when no owner serves the socket (any more).
var ErrGone = errors.New("the sandbox is not running")

// Client calls a sandbox owner.
type Client struct {
	controlv1.ControlClient
	rpc *ttrpc.Client
}

// Dial connects to the owner whose sockets lie in dir.
func Dial(dir string) (*Client, error) {
	conn, err := dial(dir, RPCSocket)
	if err != nil {
		return nil, err
	}
	rpc := ttrpc.NewClient(conn)
	return &Client{ControlClient: controlv1.NewControlClient(rpc), rpc: rpc}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.rpc.Close() }

// SendStdio hands stdin, stdout and stderr to the owner whose sockets lie in dir, for a request that names
// token. The connection must stay open for as long as this process stands for the one in the guest: its
// end kills that one.
func SendStdio(dir, token string, files [3]*os.File) (net.Conn, error) {
	conn, err := dial(dir, FilesSocket)
	if err != nil {
		return nil, err
	}
	if err := fdpass.Send(conn, token, files[:]...); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// Listen makes one of the owner's sockets in dir, to be handed to the owner as a file.
func Listen(dir, name string) (*os.File, error) {
	var listener *net.UnixListener
	err := at(dir, func(short string) (err error) {
		listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(short, name), Net: "unix"})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make socket %s: %w", name, err)
	}
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	return listener.File()
}

func dial(dir, name string) (conn *net.UnixConn, err error) {
	err = at(dir, func(short string) (err error) {
		conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(short, name), Net: "unix"})
		return err
	})
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("connect to the sandbox: %w", err)
	}
	return conn, nil
}

// at calls use with a name for dir that is short enough for a socket's address (108 bytes, unix(7)),
// however deep dir lies.
func at(dir string, use func(short string) error) error {
	f, err := os.OpenFile(dir, syscall.O_DIRECTORY|os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return use("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
}

// Plain takes an error of a call apart: the owner's words and their class. A lost connection is ErrGone.
func Plain(err error) (codes.Code, error) {
	if err == nil {
		return codes.OK, nil
	}
	if errors.Is(err, ttrpc.ErrClosed) {
		return codes.Unavailable, ErrGone
	}
	if s, ok := status.FromError(err); ok {
		return s.Code(), errors.New(s.Message())
	}
	return codes.Unknown, err
}
