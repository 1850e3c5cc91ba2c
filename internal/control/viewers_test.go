package control

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/logfile"
)

// seen is a viewer of a test: the other ends of its pipes.
type seen struct {
	viewer   *viewer
	in       *os.File
	out, err *os.File
	gone     chan struct{}
	served   chan struct{}
}

func attach(t *testing.T, a *audience) *seen {
	t.Helper()
	s := &seen{gone: make(chan struct{}), served: make(chan struct{})}
	d := &descriptor{gone: s.gone}
	for i, ours := range []**os.File{&s.in, &s.out, &s.err} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		*ours = r
		if i == 0 {
			*ours, w = w, r
		}
		f := *ours
		t.Cleanup(func() { f.Close() })
		d.files = append(d.files, w)
	}
	v, err := newViewer(d)
	if err != nil {
		t.Fatal(err)
	}
	s.viewer = v
	if err := a.join(v); err != nil {
		t.Fatal(err)
	}
	go a.hear(v)
	go func() {
		v.serve()
		a.leave(v)
		v.close()
		close(s.served)
	}()
	return s
}

// performing is a container's stdio with its log.
func performing(t *testing.T, stdin bool) (a *audience, in *os.File, out, err *shown, log string) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "log")
	w, e := logfile.Open(log, 64<<20)
	if e != nil {
		t.Fatal(e)
	}
	a, in, e = newAudience(stdin)
	if e != nil {
		t.Fatal(e)
	}
	t.Cleanup(a.close)
	return a, in, &shown{a, logfile.Stdout, w.Stream(logfile.Stdout)}, &shown{a, logfile.Stderr, w.Stream(logfile.Stderr)}, log
}

// within ends a test that hangs.
func within(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("hangs: %s", what)
	}
}

func TestViewersSeeAndType(t *testing.T) {
	a, in, out, err, _ := performing(t, true)
	first, second := attach(t, a), attach(t, a)
	_, _ = out.Write([]byte("out"))
	_, _ = err.Write([]byte("err"))
	for _, v := range []*seen{first, second} {
		if _, e := v.in.WriteString("typed"); e != nil {
			t.Fatal(e)
		}
		typed := make([]byte, 5)
		if _, e := io.ReadFull(in, typed); e != nil || string(typed) != "typed" {
			t.Errorf("the container read %q (%v)", typed, e)
		}
	}
	first.in.Close() // the end of a viewer's input is not that of the container's
	if _, e := second.in.WriteString("more"); e != nil {
		t.Fatal(e)
	}
	typed := make([]byte, 4)
	if _, e := io.ReadFull(in, typed); e != nil || string(typed) != "more" {
		t.Errorf("the container read %q (%v)", typed, e)
	}
	out.Close()
	for _, v := range []*seen{first, second} {
		o, _ := io.ReadAll(v.out)
		e, _ := io.ReadAll(v.err)
		if string(o) != "out" || string(e) != "err" {
			t.Errorf("a viewer saw %q and %q", o, e)
		}
		within(t, "a viewer at the end", v.served)
	}
	if e := a.join(first.viewer); e == nil {
		t.Error("one could attach to a container that has ended")
	}
	if rest, e := io.ReadAll(in); len(rest) > 0 || e != nil {
		t.Errorf("the container's stdin ends with %q, %v", rest, e)
	}
}

// TestViewerThatDoesNotRead is let go of; the container, its log and another viewer go on.
func TestViewerThatDoesNotRead(t *testing.T) {
	a, _, out, _, log := performing(t, false)
	lazy, good := attach(t, a), attach(t, a)
	read := make(chan int)
	go func() {
		n, _ := io.Copy(io.Discard, good.out)
		read <- int(n)
	}()
	block := bytes.Repeat([]byte("0123456789abcde\n"), 4<<10)
	total := 0
	for range 4 * viewerBytes / len(block) {
		// The reader is a good one: it is given the time to read.
		for held := viewerBytes; held > viewerBytes/2; time.Sleep(time.Millisecond) {
			good.viewer.mu.Lock()
			held = good.viewer.waiting
			good.viewer.mu.Unlock()
		}
		n, err := out.Write(block)
		if n != len(block) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		total += n
	}
	within(t, "the viewer that does not read", lazy.served)
	if !lazy.viewer.slow || good.viewer.slow {
		t.Errorf("slow: %v who does not read, %v who does", lazy.viewer.slow, good.viewer.slow)
	}
	out.Close()
	if n := <-read; n != total {
		t.Errorf("the other viewer has %d bytes of %d", n, total)
	}
	r, err := logfile.OpenReader(log)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if lines, err := r.Count(); err != nil || lines != total/16 {
		t.Errorf("the log has %d lines (%v), want %d", lines, err, total/16)
	}
}

// TestEndWithViewerThatDoesNotRead ends a container under one.
func TestEndWithViewerThatDoesNotRead(t *testing.T) {
	a, _, out, _, _ := performing(t, true)
	v := attach(t, a)
	_, _ = out.Write(make([]byte, 1<<20))
	if _, err := v.in.Write(make([]byte, 60<<10)); err != nil { // which the container does not read
		t.Fatal(err)
	}
	out.Close()
	within(t, "the viewer", v.served)
}

func TestTooManyViewers(t *testing.T) {
	a, _, _, _, _ := performing(t, false)
	for range maxViewers {
		attach(t, a)
	}
	err := a.join(&viewer{})
	if err == nil || !strings.Contains(err.Error(), "32 are attached") {
		t.Errorf("one more: %v", err)
	}
}
