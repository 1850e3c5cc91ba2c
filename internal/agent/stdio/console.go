package stdio

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"husk.dev/husk/internal/sys"
)

// consoleWait bounds how long the master of a terminal may take to come after the container runner is
// done, which has sent it by then.
const consoleWait = 5 * time.Second

// Console is the socket over which the container runner sends the master of a terminal that it made
// (runc's and crun's --console-socket: one message with the descriptor as SCM_RIGHTS).
type Console struct {
	path     string
	listener *net.UnixListener
}

// ListenConsole makes the socket at path, which must be at most 100 bytes long.
func ListenConsole(path string) (*Console, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make console socket: %w", err)
	}
	return &Console{path: path, listener: l}, nil
}

// Path is what the container runner is told.
func (c *Console) Path() string { return c.path }

// Master returns the terminal's master, for Go's poller. It is the caller's.
func (c *Console) Master() (*os.File, error) {
	fd, err := c.receive()
	if err != nil {
		return nil, fmt.Errorf("receive terminal: %w", err)
	}
	return sys.Pollable(fd, "terminal")
}

func (c *Console) receive() (int, error) {
	deadline := time.Now().Add(consoleWait)
	if err := c.listener.SetDeadline(deadline); err != nil {
		return -1, err
	}
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return -1, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return -1, err
	}
	name := make([]byte, 4096) // of the terminal; not used
	oob := make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return -1, err
	}
	messages, err := syscall.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	if len(messages) != 1 {
		return -1, errors.New("no descriptor in the message")
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	if len(fds) != 1 {
		return -1, fmt.Errorf("%d descriptors in the message", len(fds))
	}
	syscall.CloseOnExec(fds[0])
	return fds[0], nil
}

// Close removes the socket.
func (c *Console) Close() error { return c.listener.Close() }
