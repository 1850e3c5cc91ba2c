package sandbox

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/sys"
)

// copyBuffer is the size of one read of a stream, in bytes.
const copyBuffer = 256 << 10

// Stdio is what a process of a container reads and writes on the host. A nil part is /dev/null.
type Stdio struct {
	In       *os.File
	Out, Err io.WriteCloser
	// Terminal asks for a terminal in the guest; then Out carries its output and Err is unused.
	Terminal      bool
	Rows, Columns uint32
	// Gone is closed when the process that stands for this one on the host has died: whoever waited
	// for it will not come back, so it is killed. Nil: never.
	Gone <-chan struct{}
}

// Close closes the files, for a caller whose Stdio nobody took.
func (s Stdio) Close() {
	if s.In != nil {
		s.In.Close()
	}
	for _, w := range []io.WriteCloser{s.Out, s.Err} {
		if w != nil {
			w.Close()
		}
	}
}

// streams moves a process' stdio between the host's files and the guest.
type streams struct {
	stdio  Stdio
	in     net.Conn
	output sync.WaitGroup
	stop   *sys.Interrupt // ends the reading of stdin; nil without stdin
	conns  []net.Conn
}

// openStreams opens the guest's streams for stdio and returns what names them in a request. It owns the
// files of stdio from then on, also when it fails.
func openStreams(ctx context.Context, client *guest.Client, stdio Stdio) (_ *streams, _ *agentv1.Stdio, err error) {
	s := &streams{stdio: stdio}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	names := &agentv1.Stdio{Terminal: stdio.Terminal, Rows: stdio.Rows, Columns: stdio.Columns}
	open := func(token *uint64) (conn net.Conn, err error) {
		if *token, conn, err = client.Stream(ctx); err == nil {
			s.conns = append(s.conns, conn)
		}
		return conn, err
	}
	if stdio.In != nil {
		if s.stop, err = sys.NewInterrupt(); err != nil {
			return nil, nil, err
		}
		if s.in, err = open(&names.Stdin); err != nil {
			s.stop.Close()
			return nil, nil, err
		}
	}
	type output struct {
		to    io.Writer
		token *uint64
	}
	outputs := []output{{stdio.Out, &names.Stdout}}
	if !stdio.Terminal {
		outputs = append(outputs, output{stdio.Err, &names.Stderr})
	}
	for _, o := range outputs {
		if o.to == nil || o.to == (*os.File)(nil) {
			continue
		}
		conn, err := open(o.token)
		if err != nil {
			return nil, nil, err
		}
		s.output.Go(func() { copyOut(o.to, conn) })
	}
	if s.in != nil {
		go s.copyIn()
	}
	return s, names, nil
}

// copyOut moves what the guest writes. When the reader on the host is gone, closing the stream tells the
// guest, whose process then gets SIGPIPE.
func copyOut(to io.Writer, conn net.Conn) {
	defer conn.Close()
	// The plain interfaces keep io.CopyBuffer to our buffer.
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{conn}, make([]byte, copyBuffer))
}

// copyIn moves stdin to the guest until its end, or until the process has exited: what a terminal's user
// types after that belongs to somebody else.
func (s *streams) copyIn() {
	defer s.stop.Close()
	defer s.in.Close()
	go func() { // the guest closes the stream when nobody reads it
		_, _ = s.in.Read(make([]byte, 1))
		s.stop.Fire()
	}()
	buffer := make([]byte, copyBuffer)
	for s.stop.Readable(s.stdio.In) {
		n, err := s.stdio.In.Read(buffer)
		if n > 0 {
			if _, err := s.in.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// readerGrace is how long the reader of a lost VM's output may take for what has arrived.
const readerGrace = time.Second

// drain waits until all output has been handed on, which ends when the guest closes its streams or is
// gone. After hurry a reader that takes nothing is given up. Stdin is no longer read after it.
func (s *streams) drain(hurry <-chan struct{}) {
	if s.stop != nil {
		s.stop.Fire()
	}
	handed := make(chan struct{})
	go func() {
		s.output.Wait()
		close(handed)
	}()
	select {
	case <-handed:
	case <-hurry:
		select {
		case <-handed:
		case <-time.After(readerGrace):
		}
	}
	s.close()
}

// close ends every stream and closes the files.
func (s *streams) close() {
	for _, c := range s.conns {
		c.Close()
	}
	if s.stop != nil {
		s.stop.Fire()
	}
	s.stdio.Close()
}
