package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// writeWait bounds the sending of a command: QEMU reads its monitor whenever it is alive.
const writeWait = 10 * time.Second

// qmpClient talks to QEMU's monitor.
type qmpClient struct {
	conn    net.Conn
	greeted chan struct{} // closed by the greeting
	resumed chan struct{} // closed when the guest runs for the first time after it was loaded
	done    chan struct{} // closed when nothing more comes

	mu      sync.Mutex
	next    uint64                   // guarded by mu: id of the last command
	pending map[uint64]chan message  // guarded by mu: commands without a reply
	running bool                     // guarded by mu: resumed is closed
	leaving map[string]chan struct{} // guarded by mu: closed when the device of that id is gone
	reason  string                   // guarded by mu: the last event that told why the VM ends
	failed  error                    // guarded by mu: why nothing more comes
}

// newQMP runs a client on conn, which it owns from then on.
func newQMP(conn net.Conn) *qmpClient {
	c := &qmpClient{
		conn: conn, greeted: make(chan struct{}), resumed: make(chan struct{}), done: make(chan struct{}),
		pending: map[uint64]chan message{}, leaving: map[string]chan struct{}{},
	}
	go c.read()
	return c
}

// handshake waits for the greeting and leaves the negotiation.
func (c *qmpClient) handshake(ctx context.Context) error {
	select {
	case <-c.greeted:
	case <-c.done:
		return fmt.Errorf("wait for QMP greeting: %w", c.err())
	case <-ctx.Done():
		return fmt.Errorf("wait for QMP greeting: %w", ctx.Err())
	}
	return c.execute(ctx, "qmp_capabilities", nil, nil)
}

// awaitResume waits until a loaded guest runs.
func (c *qmpClient) awaitResume(ctx context.Context) error {
	select {
	case <-c.resumed:
		return nil
	case <-c.done:
		return fmt.Errorf("load the saved VM: %w", c.err())
	case <-ctx.Done():
		return fmt.Errorf("load the saved VM: %w", ctx.Err())
	}
}

// left returns what is closed when the device with an id is gone, and what ends the wait for it.
func (c *qmpClient) left(id string) (gone <-chan struct{}, forget func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wait := make(chan struct{})
	c.leaving[id] = wait
	return wait, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.leaving, id)
	}
}

// execute runs a command and decodes what it returns into result, unless that is nil.
func (c *qmpClient) execute(ctx context.Context, name string, arguments, result any) error {
	return c.executeWith(ctx, nil, name, arguments, result)
}

// executeWith is execute of a command that takes an open file.
func (c *qmpClient) executeWith(ctx context.Context, file *os.File, name string, arguments, result any) error {
	reply, id, err := c.send(file, name, arguments)
	if err != nil {
		return fmt.Errorf("execute %s: %w", name, err)
	}
	var m message
	select {
	case m = <-reply:
	case <-c.done:
		select {
		case m = <-reply: // it came with the last bytes
		default:
			return fmt.Errorf("execute %s: %w", name, c.err())
		}
	case <-ctx.Done():
		c.forget(id)
		return fmt.Errorf("execute %s: %w", name, ctx.Err())
	}
	if m.Error != nil {
		return fmt.Errorf("execute %s: %w", name, m.Error)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("execute %s: decode result: %w", name, err)
	}
	return nil
}

func (c *qmpClient) send(file *os.File, name string, arguments any) (<-chan message, uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		return nil, 0, c.failed
	}
	c.next++
	line, err := json.Marshal(command{Execute: name, Arguments: arguments, ID: c.next})
	if err != nil {
		return nil, 0, err
	}
	reply := make(chan message, 1)
	c.pending[c.next] = reply
	err = c.conn.SetWriteDeadline(time.Now().Add(writeWait))
	if err == nil {
		err = write(c.conn, append(line, '\n'), file)
	}
	if err != nil {
		c.failed = fmt.Errorf("write QMP: %w", err) // half a command may be on its way
		c.conn.Close()
		return nil, 0, c.failed
	}
	return reply, c.next, nil
}

// write sends a command, with a file where it takes one.
func write(conn net.Conn, line []byte, file *os.File) error {
	if file == nil {
		_, err := conn.Write(line)
		return err
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("the connection carries no files")
	}
	_, _, err := socket.WriteMsgUnix(line, syscall.UnixRights(int(file.Fd())), nil)
	return err
}

func (c *qmpClient) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, id)
}

// read delivers messages until the connection ends or QEMU sends what is none.
func (c *qmpClient) read() {
	defer close(c.done)
	lines := bufio.NewScanner(c.conn)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	greeted := false
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		m, err := decode(lines.Bytes())
		if err == nil && m.Greeting != nil && greeted {
			err = errors.New("QMP greeting in mid-conversation")
		}
		if err != nil {
			c.broke(err)
			return
		}
		if m.Greeting != nil {
			greeted = true
			close(c.greeted)
			continue
		}
		c.deliver(m)
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		c.broke(fmt.Errorf("read QMP: message of more than %d bytes: %w", maxLine, err))
	case err != nil:
		c.fail(fmt.Errorf("read QMP: %w", err))
	default:
		c.fail(fmt.Errorf("read QMP: %w", io.EOF))
	}
}

// broke ends the conversation with something that does not speak QMP and remembers that as the reason.
func (c *qmpClient) broke(err error) {
	c.mu.Lock()
	c.reason = "its monitor broke the protocol: " + err.Error()
	c.mu.Unlock()
	c.fail(err)
}

func (c *qmpClient) deliver(m message) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.Event != "" {
		if reason := endReason(m); reason != "" {
			c.reason = reason
		}
		if m.Event == "RESUME" && !c.running {
			c.running = true
			close(c.resumed)
		}
		if id := deletedDevice(m); c.leaving[id] != nil {
			close(c.leaving[id])
			delete(c.leaving, id)
		}
		return
	}
	// A reply that nobody waits for any more is dropped.
	if reply, ok := c.pending[*m.ID]; ok {
		delete(c.pending, *m.ID)
		reply <- m
	}
}

func (c *qmpClient) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed == nil {
		c.failed = err
	}
	c.conn.Close()
}

// err says why nothing more comes. Valid once done is closed.
func (c *qmpClient) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// endReason says why QEMU said that the VM ends, if it said so.
func (c *qmpClient) endReason() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// Close ends the conversation; QEMU runs on.
func (c *qmpClient) Close() error { return c.conn.Close() }
