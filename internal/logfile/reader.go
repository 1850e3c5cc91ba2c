package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// rotationWait bounds the wait for a log that is just then beginning a new file.
const rotationWait = time.Second

// Reader reads the log of a container's output while it is being written: first what is there when it is opened, then, once
// asked to, what comes. However long the log is, it holds one buffer.
type Reader struct {
	path   string
	follow bool
	now    *os.File   // being read
	later  []*os.File // follow it
	left   int64      // of now when not following, bytes
	size   int64      // of the newest when it was opened
	buffer [writeBytes]byte
	start  int // of what is in buffer and was not returned
	end    int
	gap    bool
}

// OpenReader opens the log at path. One that does not exist (yet) is empty.
func OpenReader(path string) (*Reader, error) {
	r := &Reader{path: path}
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		whole, err := r.open()
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("read log: %w", err)
		}
		if whole || time.Since(began) > rotationWait {
			break
		}
		r.Close()
	}
	return r, r.begin()
}

// open opens both halves; false says that the log began a new file meanwhile.
func (r *Reader) open() (whole bool, err error) {
	newest, err := openLog(r.path)
	if err != nil {
		return false, err
	}
	older, err := openLog(r.path + oldSuffix)
	if err != nil {
		closeAll(newest)
		return false, err
	}
	for _, f := range []*os.File{older, newest} {
		if f != nil {
			r.later = append(r.later, f)
		}
	}
	if newest == nil {
		return older == nil, nil
	}
	return same(newest, r.path), nil
}

// begin takes the first file to read, and remembers where the last one ends.
func (r *Reader) begin() error {
	if len(r.later) == 0 {
		return nil
	}
	info, err := r.later[len(r.later)-1].Stat()
	if err != nil {
		r.Close()
		return fmt.Errorf("read log: %w", err)
	}
	r.size = info.Size()
	r.next()
	return nil
}

// next goes on to the next file.
func (r *Reader) next() {
	closeAll(r.now)
	r.now, r.later = r.later[0], r.later[1:]
	r.start, r.end = 0, 0 // no more of a record that was cut off by a crash
	r.left = 1<<63 - 1
	if len(r.later) == 0 {
		r.left = r.size
	}
}

// openLog opens a file; nil for one that does not exist.
func openLog(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return f, err
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// same tells whether the file is the one at path.
func same(f *os.File, path string) bool {
	there, err := os.Stat(path)
	if err != nil || f == nil {
		return false
	}
	info, err := f.Stat()
	return err == nil && os.SameFile(info, there)
}

// Close ends the reading.
func (r *Reader) Close() {
	closeAll(r.now)
	closeAll(r.later...)
	r.now, r.later = nil, nil
}

// Follow has Next return what was written after the log was opened, too.
func (r *Reader) Follow() { r.follow = true }

// Gap tells, once, that records may be missing: the log has begun new files twice or more while one was being read.
func (r *Reader) Gap() bool {
	was := r.gap
	r.gap = false
	return was
}

// Count returns the number of lines that are there. It is called before the first Next.
func (r *Reader) Count() (int, error) {
	var lines Lines
	files := append([]*os.File{r.now}, r.later...)
	for i, f := range files {
		if f == nil {
			continue
		}
		size := int64(1<<63 - 1)
		if i == len(files)-1 {
			size = r.size
		}
		one := &Reader{now: f, left: size}
		for {
			record, err := one.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return 0, err
			}
			lines.Of(record)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return 0, fmt.Errorf("read log: %w", err)
		}
	}
	return lines.begun, nil
}

// Next returns the next record, or io.EOF where there is none; then there may be one later, for a reader that follows. What is no
// record, as a crash may leave it, is passed over.
func (r *Reader) Next() (Record, error) {
	for {
		if r.now == nil {
			if !r.follow || !r.look() {
				return Record{}, io.EOF
			}
			r.next()
		}
		line, err := r.line()
		if err == nil {
			if record, ok := parse(line); ok {
				return record, nil
			}
			continue
		}
		if err != io.EOF {
			return Record{}, fmt.Errorf("read log: %w", err)
		}
		switch {
		case len(r.later) > 0: // this one gets no more
			r.next()
		case !r.follow || !r.look():
			return Record{}, io.EOF
		default: // it may have got more before the next one began, and is read to its end again
		}
	}
}

// look finds what the log has begun after the file that is read.
func (r *Reader) look() bool {
	for began := time.Now(); time.Since(began) < rotationWait; {
		if same(r.now, r.path) {
			return false
		}
		newest, err := openLog(r.path)
		if newest == nil || err != nil {
			return false // removed, or just then beginning a new file: it is looked for again
		}
		older, _ := openLog(r.path + oldSuffix)
		if !same(newest, r.path) || older != nil && !same(older, r.path+oldSuffix) {
			closeAll(newest, older)
			continue
		}
		if older != nil && same(r.now, r.path+oldSuffix) {
			older.Close()
			older = nil
		}
		if older != nil {
			r.later = append(r.later, older)
			r.gap = r.now != nil
		}
		r.later = append(r.later, newest)
		return true
	}
	return false
}

// line returns the next line of the file without its newline.
func (r *Reader) line() ([]byte, error) {
	for {
		if end := bytes.IndexByte(r.buffer[r.start:r.end], '\n'); end >= 0 {
			line := r.buffer[r.start : r.start+end]
			r.start += end + 1
			return line, nil
		}
		if r.end-r.start > headBytes+partBytes {
			r.start = r.end // no record is so long
		}
		copy(r.buffer[:], r.buffer[r.start:r.end])
		r.start, r.end = 0, r.end-r.start
		if r.follow && len(r.later) == 0 {
			r.look() // what follows is opened as soon as it is there, before it is lost to a reader that is slow
		}
		room := int64(len(r.buffer) - r.end)
		if !r.follow {
			room = min(room, r.left)
		}
		if room == 0 {
			return nil, io.EOF
		}
		n, err := r.now.Read(r.buffer[r.end : r.end+int(room)])
		r.end += n
		r.left -= int64(n)
		if n == 0 {
			if err == nil {
				err = io.EOF
			}
			return nil, err
		}
	}
}
