// Command inside runs in the test host, from the disk with the tree: it starts the commands that it is told to, and hands on
// what they print.
package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"husk.dev/husk/test/host/wire"
)

func main() {
	fmt.Fprintln(os.Stderr, "test host:", serve()) // which goes on until the host ends, or something fails
	os.Exit(1)
}

// serve does what it is told to.
func serve() error {
	const upper, scratch = "/var/lib/husk-test/upper", "/var/lib/husk-test/scratch"
	for _, dir := range []string{wire.Source, upper, scratch} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := syscall.Mount("overlay", wire.Source, "overlay", 0, "lowerdir=/tree,upperdir="+upper+",workdir="+scratch); err != nil {
		return fmt.Errorf("mount the tree at %s: %w", wire.Source, err)
	}
	port, err := os.OpenFile("/dev/virtio-ports/"+wire.Port, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	conn := wire.New(port)
	go beat(conn)
	var running commands
	for {
		m, err := conn.Receive()
		if err != nil {
			return err
		}
		switch m.Kind {
		case wire.Clock:
			now := syscall.NsecToTimeval(m.Time)
			if err := syscall.Settimeofday(&now); err != nil {
				return fmt.Errorf("set the clock: %w", err)
			}
		case wire.Start:
			go running.run(conn, m)
		case wire.Kill:
			running.kill(m.ID)
		}
	}
}

// beat says that the host is alive, for as long as it is.
func beat(conn *wire.Conn) {
	for start := time.Now(); ; time.Sleep(time.Second) {
		if conn.Send(wire.Message{Kind: wire.Alive, Time: int64(time.Since(start))}) != nil {
			return
		}
	}
}

// commands are those that run, by their numbers.
type commands struct {
	mu  sync.Mutex // guards all
	all map[int]*exec.Cmd
}

func (c *commands) run(conn *wire.Conn, m wire.Message) {
	end := wire.Message{Kind: wire.Exit, ID: m.ID}
	cmd := exec.Command(m.Args[0], m.Args[1:]...)
	cmd.Env = append(os.Environ(), m.Env...)
	cmd.Dir = m.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out := output{conn: conn, id: m.ID}
	cmd.Stdout, cmd.Stderr = out, out
	// What a command leaves behind may hold its output open.
	cmd.WaitDelay = 10 * time.Second
	if err := c.start(m.ID, cmd); err != nil {
		end.Code, end.Data = 127, []byte(err.Error())
	} else {
		err := cmd.Wait()
		if end.Code = cmd.ProcessState.ExitCode(); end.Code != 0 && err != nil {
			end.Data = []byte(err.Error())
		}
	}
	_ = conn.Send(end)
}

func (c *commands) start(id int, cmd *exec.Cmd) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = map[int]*exec.Cmd{}
	}
	c.all[id] = cmd
	return cmd.Start()
}

func (c *commands) kill(id int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cmd := c.all[id]; cmd != nil && cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
}

// output sends what a command prints.
type output struct {
	conn *wire.Conn
	id   int
}

var _ io.Writer = output{}

func (o output) Write(p []byte) (int, error) {
	return len(p), o.conn.Send(wire.Message{Kind: wire.Output, ID: o.id, Data: p})
}
