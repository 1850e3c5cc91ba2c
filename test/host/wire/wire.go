// Package wire is what the test host and what drives it say to each other: messages on a serial port, one JSON object a line.
package wire

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// Port is the name of the virtio serial port, and Disk the serial number of the disk with the tree.
const (
	Port = "husk-test"
	Disk = "husk-tree"
)

// Source is where in the host the tree is, writable, as tests expect it.
const Source = "/src"

// Kinds of messages. Alive, Output and Exit come from the host.
const (
	Clock  = "clock"  // Time is the time of day, in nanoseconds since 1970
	Start  = "start"  // start a command: ID, Args, Env, Dir
	Kill   = "kill"   // kill the command ID with all of its process group
	Alive  = "alive"  // once a second: Time is how long the host is up, in nanoseconds
	Output = "output" // Data came from the command ID
	Exit   = "exit"   // the command ID ended with Code, or could not be started: then Data says why
)

// Message is one line.
type Message struct {
	Kind string   `json:"kind"`
	ID   int      `json:"id,omitempty"`
	Args []string `json:"args,omitempty"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	Data []byte   `json:"data,omitempty"`
	Code int      `json:"code,omitempty"`
	Time int64    `json:"time,omitempty"`
}

// Conn sends and receives messages. One goroutine may receive; any may send.
type Conn struct {
	receive *json.Decoder
	mu      sync.Mutex // guards w
	w       io.Writer
}

// New makes a connection of rw.
func New(rw io.ReadWriter) *Conn { return &Conn{receive: json.NewDecoder(rw), w: rw} }

// Send writes m.
func (c *Conn) Send(m Message) error {
	line, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive waits for a message.
func (c *Conn) Receive() (m Message, err error) {
	if err := c.receive.Decode(&m); err != nil {
		return m, fmt.Errorf("receive message: %w", err)
	}
	return m, nil
}
