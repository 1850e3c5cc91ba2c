package logfile

import (
	"bytes"
	"io"
	"sync"
	"time"
)

// The format of a container's output is the CRI's, which log collectors for Kubernetes read: a record a line, of the time
// (RFC 3339), the stream, F for a whole line or P for a part of one that goes on, and the text. See the design
// proposal "kubelet-cri-logging" of Kubernetes.

// Names of streams in records.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

const (
	// partBytes is the most text of one record, as containerd has it. A longer line is several.
	partBytes = 16 << 10
	// writeBytes is about how much is written at once.
	writeBytes = 64 << 10
	// headBytes is the most that a record has before its text.
	headBytes = len(TimeForm) + len(" stdout F ")
)

// TimeForm is the form of times in records: RFC 3339, in UTC and with all nanoseconds.
const TimeForm = "2006-01-02T15:04:05.000000000Z"

// buffers are for records that are being made. A stream holds one only while it writes.
var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// stream writes one stream of a container as records.
type stream struct {
	log  *Writer
	name string
}

// Stream returns what writes a stream (Stdout, Stderr) to the log as records. Text without a newline at its end is written at
// once too, as a part of a line. To close it closes the log.
func (w *Writer) Stream(name string) io.WriteCloser { return &stream{log: w, name: name} }

// Write takes all of p, as Writer.Write does.
func (s *stream) Write(p []byte) (int, error) {
	buffer := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(buffer)
	buffer.Reset()
	head := time.Now().UTC().Format(TimeForm) + " " + s.name + " "
	for rest := p; len(rest) > 0; {
		text, kind := rest[:min(len(rest), partBytes)], "P "
		end := bytes.IndexByte(text, '\n')
		if end >= 0 {
			text, kind = text[:end], "F "
		}
		rest = rest[len(text)+min(1, end+1):]
		buffer.WriteString(head)
		buffer.WriteString(kind)
		buffer.Write(text)
		buffer.WriteByte('\n')
		if buffer.Len() >= writeBytes {
			_, _ = s.log.Write(buffer.Bytes())
			buffer.Reset()
		}
	}
	if buffer.Len() > 0 {
		_, _ = s.log.Write(buffer.Bytes())
	}
	return len(p), nil
}

func (s *stream) Close() error { return s.log.Close() }

// Record is an entry of the log of a container's output.
type Record struct {
	Stream string // Stdout or Stderr
	Time   time.Time
	Part   bool   // the line goes on in the next record of the stream
	Text   []byte // without the line's newline; valid until the next one is read
}

// parse reads a record without its newline; false for what is none.
func parse(line []byte) (r Record, ok bool) {
	at, rest, _ := bytes.Cut(line, []byte(" "))
	name, rest, _ := bytes.Cut(rest, []byte(" "))
	kind, text, ok := bytes.Cut(rest, []byte(" "))
	if !ok || len(kind) != 1 || kind[0] != 'F' && kind[0] != 'P' {
		return Record{}, false
	}
	switch string(name) {
	case Stdout:
		r.Stream = Stdout
	case Stderr:
		r.Stream = Stderr
	default:
		return Record{}, false
	}
	var err error
	if r.Time, err = time.Parse(time.RFC3339Nano, string(at)); err != nil {
		return Record{}, false
	}
	r.Part, r.Text = kind[0] == 'P', text
	return r, true
}

// Lines counts lines that records are parts of. A line counts from where it begins, so that those of two streams may be
// interleaved.
type Lines struct {
	begun int
	open  map[string]int // by stream, the line that goes on
}

// Of returns the number of the line that a record belongs to, from 0, and whether the line begins there.
func (l *Lines) Of(r Record) (number int, begins bool) {
	number, goesOn := l.open[r.Stream]
	if !goesOn {
		number = l.begun
		l.begun++
	}
	switch {
	case r.Part && l.open == nil:
		l.open = map[string]int{r.Stream: number}
	case r.Part:
		l.open[r.Stream] = number
	default:
		delete(l.open, r.Stream)
	}
	return number, !goesOn
}
