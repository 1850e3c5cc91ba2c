package stdio

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
)

const (
	// pipeSize is how much output a process can leave in a pipe before it must wait, in bytes: the most
	// that the kernel gives without asking (/proc/sys/fs/pipe-max-size).
	pipeSize = 1 << 20
	// chunk is how much output is read at once, in bytes.
	chunk = 256 << 10
	// inputChunk is how much input is read at once. Every open stdin holds that much.
	inputChunk = 32 << 10
)

// chunks are buffers for output. A stream holds one only while it has data, so idle processes cost none.
var chunks = sync.Pool{New: func() any { return new([chunk]byte) }}

// output carries what a process writes to its stream.
type output struct {
	src *os.File // read end of a pipe, or the master of a terminal; for Go's poller
	dst net.Conn // nil throws the output away
}

// copy runs until the process' side is closed, the host closes the stream, or a read deadline on src
// says that the process has exited.
func (o *output) copy() {
	defer o.close()
	raw, err := o.src.SyscallConn()
	if err != nil {
		return
	}
	if o.dst != nil {
		go o.watch()
	}
	for {
		var buf *[chunk]byte
		var n int // 0 at the end, -1 on an error
		err := raw.Read(func(fd uintptr) bool {
			buf = chunks.Get().(*[chunk]byte)
			var failed error
			n, failed = readNow(fd, buf[:])
			if failed == syscall.EAGAIN {
				chunks.Put(buf)
				return false
			}
			return true
		})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			o.drain(raw)
			return
		}
		if err != nil {
			return // closed by watch
		}
		if !o.pass(buf, n) {
			return
		}
	}
}

// pass writes the first n bytes of buf to the stream and gives buf back. false says that the stream or
// the process' side has ended.
func (o *output) pass(buf *[chunk]byte, n int) bool {
	defer chunks.Put(buf)
	if n <= 0 {
		return false
	}
	if o.dst == nil {
		return true
	}
	_, err := o.dst.Write(buf[:n])
	return err == nil
}

// drain passes on what an exited process has left to be read, and no more: its children may hold the
// other end open for ever, and write to it.
func (o *output) drain(raw syscall.RawConn) {
	for left := pipeSize; left > 0; {
		buf := chunks.Get().(*[chunk]byte)
		var n int
		var failed error
		// Control reads whatever the deadline, which Read would return before it tried.
		err := raw.Control(func(fd uintptr) { n, failed = readNow(fd, buf[:]) })
		if err != nil || failed != nil {
			chunks.Put(buf)
			return
		}
		if !o.pass(buf, n) {
			return
		}
		left -= n
	}
}

// readNow reads what is there. A terminal whose other side is closed gives EIO, which is its end of file.
func readNow(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

// watch notices that the host has closed the stream, and closes the pipe, so that the process learns it.
func (o *output) watch() {
	_, _ = io.Copy(io.Discard, o.dst) // nothing is sent this way
	o.src.Close()
}

func (o *output) close() {
	o.src.Close()
	if o.dst != nil {
		o.dst.Close()
	}
}

// input carries what the host sends to a process' standard input.
type input struct {
	src net.Conn
	dst *os.File // write end of a pipe, or the master of a terminal
	// keep leaves dst open at the end of src: a terminal's output goes on.
	keep bool
}

// copy runs until the host closes the stream, or the process its end.
func (i *input) copy() {
	defer i.src.Close()
	if !i.keep {
		defer i.dst.Close()
	}
	// Not io.Copy, which would hand the copy to the file's ReadFrom, for splice(2), with a buffer of its own.
	buf := make([]byte, inputChunk)
	for {
		n, err := i.src.Read(buf)
		if n > 0 {
			if _, err := i.dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
