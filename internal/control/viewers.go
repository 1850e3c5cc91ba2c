package control

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/logfile"
	"husk.dev/husk/internal/sys"
)

const (
	// maxViewers bounds who is attached to one container.
	maxViewers = 32
	// viewerBytes bounds the output that waits for one viewer. Who has not read so much is let go of.
	viewerBytes = 4 << 20
	// pieceBytes is what one piece of waiting output counts for beside its length.
	pieceBytes = 64
	// viewerGrace is how long a viewer may take for what waits for it when the container has ended.
	viewerGrace = time.Second
	// inputChunk is how much input of a viewer is read at once, in bytes.
	inputChunk = 32 << 10
)

// audience is the stdio of a container whose output goes to a log: who is attached gets it too, and may type.
type audience struct {
	input chan []byte   // nil: the container has no stdin
	ended chan struct{} // closed with the container's stdio

	mu      sync.Mutex // guards the fields below; taken before a viewer's
	viewers map[*viewer]struct{}
}

// newAudience makes one. in is what the container reads, nil unless stdin is open.
func newAudience(stdin bool) (a *audience, in *os.File, err error) {
	a = &audience{ended: make(chan struct{}), viewers: map[*viewer]struct{}{}}
	if !stdin {
		return a, nil, nil
	}
	in, to, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make stdin: %w", err)
	}
	a.input = make(chan []byte)
	go a.feed(to)
	return a, in, nil
}

// feed writes what is typed. It is open until the container ends, whoever comes and goes.
func (a *audience) feed(to *os.File) {
	go func() {
		<-a.ended
		to.Close() // ends a write, where the container does not read
	}()
	for {
		select {
		case data := <-a.input:
			if _, err := to.Write(data); err != nil {
				return
			}
		case <-a.ended:
			return
		}
	}
}

// shown is one stream of the container's output.
type shown struct {
	audience *audience
	name     string // logfile.Stdout or Stderr
	log      io.WriteCloser
}

// Write takes all of p: neither the log nor a viewer holds up the container.
func (s *shown) Write(p []byte) (int, error) {
	_, _ = s.log.Write(p)
	s.audience.show(s.name, p)
	return len(p), nil
}

func (s *shown) Close() error {
	s.audience.close()
	return s.log.Close()
}

func (a *audience) show(stream string, p []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.viewers) == 0 {
		return
	}
	data := bytes.Clone(p)
	for v := range a.viewers {
		v.put(stream, data)
	}
}

// close lets every viewer have what waits for it, and go.
func (a *audience) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-a.ended:
		return
	default:
	}
	close(a.ended)
	for v := range a.viewers {
		v.end(false)
	}
}

// join adds a viewer; an error where there are too many, or the container has ended.
func (a *audience) join(v *viewer) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	select {
	case <-a.ended:
		return errNoAudience
	default:
	}
	if len(a.viewers) >= maxViewers {
		return status.Errorf(codes.ResourceExhausted, "%d are attached to the container, which is the most", maxViewers)
	}
	a.viewers[v] = struct{}{}
	return nil
}

func (a *audience) leave(v *viewer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.viewers, v)
}

// hear passes on what a viewer types until it has gone.
func (a *audience) hear(v *viewer) {
	if a.input == nil {
		return
	}
	buffer := make([]byte, inputChunk)
	for {
		n, err := v.in.Read(buffer)
		if n > 0 {
			select {
			case a.input <- bytes.Clone(buffer[:n]):
			case <-v.gone:
				return
			case <-a.ended:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// viewer is one who is attached.
type viewer struct {
	in, out, err *os.File // pipes
	gone         <-chan struct{}

	mu      sync.Mutex // guards the fields below
	changed *sync.Cond // one of them has changed
	queue   []piece
	waiting int  // what is in the queue, and being written, bytes
	over    bool // nothing is added to the queue any more
	slow    bool // because it was full
}

type piece struct {
	to   *os.File
	data []byte
}

// newViewer takes over what a viewer has sent.
func newViewer(d *descriptor) (*viewer, error) {
	v := &viewer{gone: d.gone}
	v.changed = sync.NewCond(&v.mu)
	for i, to := range []**os.File{&v.in, &v.out, &v.err} {
		f, err := sys.PollableFile(d.files[i])
		if err != nil {
			d.close()
			v.close()
			return nil, err
		}
		*to = f
	}
	return v, nil
}

func (v *viewer) close() {
	for _, f := range []*os.File{v.in, v.out, v.err} {
		if f != nil {
			f.Close()
		}
	}
}

// put adds output to what waits for the viewer, who is let go of when that is too much.
func (v *viewer) put(stream string, data []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.over {
		return
	}
	defer v.changed.Broadcast()
	if v.waiting > 0 && v.waiting+len(data)+pieceBytes > viewerBytes {
		v.slow = true
		v.dropLocked()
		return
	}
	to := v.out
	if stream == logfile.Stderr {
		to = v.err
	}
	v.queue = append(v.queue, piece{to, data})
	v.waiting += len(data) + pieceBytes
}

// end lets the viewer go: at once, or after what waits for it.
func (v *viewer) end(now bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.over = true
	if now {
		v.dropLocked()
	} else {
		v.deadline(viewerGrace)
	}
	v.changed.Broadcast()
}

// dropLocked gives up what waits for the viewer, and a write that waits. Preconditions: mu is held.
func (v *viewer) dropLocked() {
	v.over, v.queue = true, nil
	v.deadline(0)
}

func (v *viewer) deadline(after time.Duration) {
	for _, f := range []*os.File{v.out, v.err} {
		_ = f.SetWriteDeadline(time.Now().Add(after)) // fails on what is no pipe, which does not make writers wait
	}
}

// serve writes what comes until it has written all that it was to get.
func (v *viewer) serve() {
	for {
		v.mu.Lock()
		for len(v.queue) == 0 && !v.over {
			v.changed.Wait()
		}
		if len(v.queue) == 0 {
			v.mu.Unlock()
			return
		}
		next := v.queue[0]
		v.queue = v.queue[1:]
		v.mu.Unlock()
		_, err := next.to.Write(next.data)
		v.mu.Lock()
		v.waiting -= len(next.data) + pieceBytes
		if err != nil {
			v.dropLocked() // it reads no more
		}
		v.mu.Unlock()
	}
}

// errNoAudience is that of a container that nobody can attach to.
var errNoAudience = status.Error(codes.FailedPrecondition, "the container has ended, or its output is not kept")

// admit lets viewers come to a container until it ends.
func (s *Server) admit(id string, a *audience) {
	s.mu.Lock()
	s.audiences[id] = a
	s.mu.Unlock()
	go func() {
		<-a.ended
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.audiences[id] == a {
			delete(s.audiences, id)
		}
	}()
}

// Attach implements the protocol.
func (s *Server) Attach(ctx context.Context, r *controlv1.AttachRequest, out controlv1.Control_AttachServer) error {
	d, err := s.claim(ctx, r.Token)
	if err != nil {
		return failed(err)
	}
	v, err := newViewer(d)
	if err != nil {
		return failed(err)
	}
	defer v.close()
	s.mu.Lock()
	a := s.audiences[r.Id]
	s.mu.Unlock()
	if a == nil {
		return errNoAudience
	}
	if err := a.join(v); err != nil {
		return err
	}
	defer a.leave(v)
	defer context.AfterFunc(ctx, func() { v.end(true) })()
	served := make(chan struct{})
	defer close(served)
	go func() {
		select {
		case <-v.gone:
			v.end(true)
		case <-served:
		}
	}()
	if err := out.Send(&controlv1.Attached{}); err != nil {
		return err
	}
	go a.hear(v)
	v.serve()
	v.close() // the viewer sees the end of its output first
	if v.slow {
		return out.Send(&controlv1.Attached{Slow: true})
	}
	return nil
}
