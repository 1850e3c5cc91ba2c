package stdio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/sys"
)

// hangup is how long a terminal's output may take to end after its process has: what the process wrote
// last passes through a work queue of the kernel, and a session's end hangs the terminal up anyway.
const hangup = 2 * time.Second

// ErrNoTerminal is what Resize returns for a process without a terminal.
var ErrNoTerminal = errors.New("process has no terminal")

// IO is the standard input and output of one process.
type IO struct {
	terminal bool
	stdin    net.Conn // nil: /dev/null
	stdout   net.Conn
	stderr   net.Conn

	child [3]*os.File // what the process gets; closed by Started
	pipes [3]*os.File // the other ends

	mu sync.Mutex
	// size, master and ended are guarded by mu.
	size   sys.Winsize
	master *os.File
	ended  bool
}

// Open claims the streams that a request names and makes the pipes for them. With a terminal there are
// none; Attach brings its master.
func (r *Registry) Open(ctx context.Context, want *agentv1.Stdio) (*IO, error) {
	p := &IO{
		terminal: want.GetTerminal(),
		size:     sys.Winsize{Rows: clamp(want.GetRows()), Columns: clamp(want.GetColumns())},
	}
	var undo cleanup.Stack
	defer undo.Clean()
	undo.Add(func() error { p.Abort(); return nil })
	for _, s := range []struct {
		token uint64
		conn  *net.Conn
	}{{want.GetStdin(), &p.stdin}, {want.GetStdout(), &p.stdout}, {want.GetStderr(), &p.stderr}} {
		if s.token == 0 {
			continue
		}
		conn, err := r.Claim(ctx, s.token)
		if err != nil {
			return nil, err
		}
		*s.conn = conn
	}
	if err := p.plumb(); err != nil {
		return nil, err
	}
	undo.Release()
	return p, nil
}

// plumb makes the pipes, and opens /dev/null where there is none.
func (p *IO) plumb() error {
	for i, conn := range []net.Conn{p.stdin, p.stdout, p.stderr} {
		var err error
		if conn == nil || p.terminal {
			p.child[i], err = os.OpenFile(os.DevNull, os.O_RDWR, 0)
		} else {
			p.pipes[i], p.child[i], err = sys.NewPipe(i == 0, pipeSize)
		}
		if err != nil {
			return fmt.Errorf("make stdio: %w", err)
		}
	}
	return nil
}

func clamp(n uint32) uint16 { return uint16(min(n, 1<<16-1)) }

// Terminal tells whether the process gets a terminal.
func (p *IO) Terminal() bool { return p.terminal }

// Size is the window size that the terminal begins with.
func (p *IO) Size() sys.Winsize {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.size
}

// Files are the standard input, output and error of the process.
func (p *IO) Files() []uintptr {
	return []uintptr{p.child[0].Fd(), p.child[1].Fd(), p.child[2].Fd()}
}

// SetFiles replaces what Files gives, all three by one file that is p's from then on.
func (p *IO) SetFiles(f *os.File) {
	for i := range p.child {
		p.child[i].Close()
		p.child[i] = f
	}
}

// Attach takes over the master of the process' terminal and sets its window size.
func (p *IO) Attach(master *os.File) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.master = master
	if p.size == (sys.Winsize{}) {
		return nil
	}
	return sys.ResizePTY(master, p.size)
}

// Resize sets the window size of the terminal.
func (p *IO) Resize(rows, columns uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.master == nil {
		return ErrNoTerminal
	}
	if p.ended {
		return os.ErrProcessDone
	}
	return sys.ResizePTY(p.master, sys.Winsize{Rows: clamp(rows), Columns: clamp(columns)})
}

// Run starts the copying, once the process has its ends. Finish must follow when it has exited.
func (p *IO) Run() {
	p.closeChild()
	if p.terminal {
		go (&output{src: p.master, dst: p.stdout}).copy()
		if p.stdin != nil {
			go (&input{src: p.stdin, dst: p.master, keep: true}).copy()
		}
		if p.stderr != nil {
			p.stderr.Close() // the protocol has none with a terminal
		}
		return
	}
	if p.stdin != nil {
		go (&input{src: p.stdin, dst: p.pipes[0]}).copy()
	}
	if p.stdout != nil {
		go (&output{src: p.pipes[1], dst: p.stdout}).copy()
	}
	if p.stderr != nil {
		go (&output{src: p.pipes[2], dst: p.stderr}).copy()
	}
}

// Finish ends the streams of a process that has exited: output after what it wrote has been passed on,
// even while its children hold the pipes, input at once.
func (p *IO) Finish() {
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	if p.stdin != nil {
		p.stdin.Close()
	}
	now := time.Now()
	if p.terminal {
		_ = p.master.SetReadDeadline(now.Add(hangup)) // fails on a closed file: ended already
		return
	}
	for _, pipe := range p.pipes[1:] {
		if pipe != nil {
			_ = pipe.SetReadDeadline(now)
		}
	}
}

// Abort closes everything of a process that was not started.
func (p *IO) Abort() {
	p.closeChild()
	for _, conn := range []net.Conn{p.stdin, p.stdout, p.stderr} {
		if conn != nil {
			conn.Close()
		}
	}
	for _, pipe := range p.pipes {
		if pipe != nil {
			pipe.Close()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.master != nil {
		p.master.Close()
	}
}

func (p *IO) closeChild() {
	for _, f := range p.child {
		if f != nil {
			f.Close()
		}
	}
}
