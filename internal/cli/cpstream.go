package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"

	agentv1 "husk.dev/husk/api/agent/v1"
	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/filetar"
	"husk.dev/husk/internal/image"
)

const (
	// copyEnd bounds the wait for what copies in a guest once nobody here reads or writes its stream.
	copyEnd = 20 * time.Second
	// copyBuffer is how much of a stream is read or written at once, in bytes.
	copyBuffer = 256 << 10
	// maxSaid bounds what a guest may say of a copy, in bytes, and maxLeftOut how many lines of it are shown.
	maxSaid, maxLeftOut = 64 << 10, 10
)

var errInterrupted = errors.New("interrupted")

// copier is the process of a guest that copies, as this side of the tar stream sees it.
type copier struct {
	*copying
	exec   string
	client *control.Client
	conn   net.Conn        // its end is that of the process, some time later
	data   *os.File        // this side's end of the stream
	source *filetar.Source // what is copied into the container; nil for a stream of others
	said   chan []byte     // on its standard error

	over   chan struct{} // closed when it has ended, or nobody waits for that any more
	answer *controlv1.WaitResponse
	err    error  // of the wait; like answer valid once over is closed
	giveUp func() // ends the wait
}

// start has the guest begin. An ErrGone says that there is none.
func (c *copying) start(ctx context.Context) (_ *copier, err error) {
	var undo, sent cleanup.Stack
	defer undo.Clean()
	defer sent.Clean() // the files that were handed over
	g := &copier{copying: c, said: make(chan []byte, 1)}
	request := &agentv1.CopyRequest{Path: c.inside.Path, Into: c.into, Archive: c.options.archive, Follow: c.options.follow}
	if err := g.find(request, &undo); err != nil {
		return nil, err
	}
	files, said, err := g.pipes(&undo, &sent)
	if err != nil {
		return nil, err
	}
	token, err := newToken()
	if err != nil {
		return nil, err
	}
	g.exec = "cp-" + token[:16]
	if g.conn, err = control.SendStdio(c.dir.Path(""), token, files); err != nil {
		return nil, err
	}
	undo.Add(g.conn.Close)
	if g.client, err = control.Dial(c.dir.Path("")); err != nil {
		return nil, err
	}
	undo.Add(g.client.Close)
	data, err := proto.Marshal(request)
	if err != nil {
		return nil, err
	}
	_, err = g.client.Copy(ctx, &controlv1.CopyRequest{Id: c.dir.ID(), Exec: g.exec, Stdio: &controlv1.Stdio{Token: token}, Request: data})
	if _, err = control.Plain(err); err != nil {
		return nil, err
	}
	undo.Release()
	g.await(ctx)
	go func() {
		defer said.Close()
		text, _ := io.ReadAll(io.LimitReader(said, maxSaid))
		_, _ = io.Copy(io.Discard, said) // what comes after that is nobody's
		g.said <- text
	}()
	return g, nil
}

// await waits, beside this goroutine, until the guest's process has ended.
func (g *copier) await(ctx context.Context) {
	g.over = make(chan struct{})
	ctx, g.giveUp = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(g.over)
		answer, err := g.client.Wait(ctx, &controlv1.WaitRequest{Id: g.dir.ID(), Exec: g.exec})
		_, g.err = control.Plain(err)
		g.answer = answer
	}()
}

// find looks for what is copied into a container, and says so in the request.
func (g *copier) find(request *agentv1.CopyRequest, undo *cleanup.Stack) error {
	if !g.into || g.outside == stream {
		return nil
	}
	root, err := os.Open("/")
	if err != nil {
		return err
	}
	defer root.Close()
	named := filetar.Name(g.outside)
	source, info, err := filetar.FindSource(root, named, g.options.follow)
	if err != nil {
		return err
	}
	undo.Add(source.Dir.Close)
	source.Warn = func(text string) { g.app.warn("%s", text) }
	g.source, request.First, request.Directory = source, named.First(), info.IsDir()
	return nil
}

// pipes makes the files that the guest's process is given, and this side's ends of them.
func (g *copier) pipes(undo, sent *cleanup.Stack) (files [3]*os.File, said *os.File, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return files, nil, err
	}
	sent.Add(null.Close)
	read, write, err := os.Pipe()
	if err != nil {
		return files, nil, err
	}
	said, errors, err := os.Pipe()
	if err != nil {
		read.Close()
		write.Close()
		return files, nil, err
	}
	undo.Add(said.Close)
	sent.Add(errors.Close)
	files, g.data = [3]*os.File{null, write, errors}, read
	theirs := write
	if g.into {
		files, g.data, theirs = [3]*os.File{read, null, errors}, write, read
	}
	undo.Add(g.data.Close)
	sent.Add(theirs.Close)
	return files, said, nil
}

// move moves the stream, until it has ended or ctx has.
func (g *copier) move(ctx context.Context) error {
	done := make(chan error, 1)
	var over <-chan struct{} // a guest that takes nothing more; one that sends nothing more has what it sent to be read
	if g.into {
		over = g.over
		go func() { done <- g.send() }()
	} else {
		go func() { done <- g.receive() }()
	}
	select {
	case err := <-done:
		return err
	case <-over:
		if g.outside == stream && (g.err != nil || g.answer.Status != 0) { // whoever writes it may go on
			return syscall.EPIPE
		}
		g.data.Close()
		return <-done
	case <-ctx.Done():
	}
	g.data.Close()
	if g.outside != stream { // whose other end may keep us waiting
		<-done // nothing half is left
	}
	return errInterrupted
}

// send writes the stream for the guest.
func (g *copier) send() error {
	defer g.data.Close()
	if g.source == nil {
		plain, err := image.Decompress(g.app.in)
		if err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
		defer plain.Close()
		g.bytes, err = io.CopyBuffer(struct{ io.Writer }{g.data}, struct{ io.Reader }{plain}, make([]byte, copyBuffer))
		return err
	}
	defer g.source.Dir.Close()
	out := bufio.NewWriterSize(g.data, copyBuffer)
	err := g.source.Write(out)
	g.bytes = g.source.Bytes
	if err == nil {
		err = out.Flush()
	}
	return err
}

// receive unpacks the guest's stream, or hands it on.
func (g *copier) receive() (err error) {
	defer g.data.Close()
	in := tar.NewReader(bufio.NewReaderSize(g.data, copyBuffer))
	first := g.inside.First()
	if g.outside == stream {
		g.bytes, err = filetar.Relay(os.Stdout, in, first)
		return err
	}
	header, err := in.Next()
	if err != nil {
		return fmt.Errorf("read tar stream: %w", err)
	}
	root, err := os.Open("/")
	if err != nil {
		return err
	}
	defer root.Close()
	target, err := filetar.FindTarget(root, filetar.Name(g.outside), header.Typeflag == tar.TypeDir, first)
	if err != nil {
		return err
	}
	defer target.Dir.Close()
	target.Warn = g.leftOut()
	if g.options.archive {
		target.SetID, target.Fifos = true, os.Geteuid() == 0
		target.IDs = func(uid, gid int) (int, int, error) { return uid, gid, nil }
	}
	err = target.Read(header, in)
	g.bytes = target.Bytes
	return err
}

// leftOut shows what is left out, but not without end: the guest says it.
func (c *copying) leftOut() func(text string) {
	n := 0
	return func(text string) {
		switch n++; {
		case n <= maxLeftOut:
			c.app.warn("%s", printable(text))
		case n == maxLeftOut+1:
			c.app.warn("and more is left out")
		}
	}
}

// printable is a line of a guest without what a terminal would obey.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, text[:min(len(text), 2*filetar.MaxName)])
}

// end waits for the guest's process, and tells what the copy failed at: moved is what this side says.
func (g *copier) end(ctx context.Context, moved error) error {
	defer g.client.Close()
	defer g.conn.Close()
	g.data.Close()
	hurry := func() { // the guest's process is ended if it does not end by itself
		g.conn.Close()
		time.AfterFunc(copyEnd, g.giveUp)
	}
	if moved != nil {
		hurry()
	}
	defer context.AfterFunc(ctx, hurry)()
	<-g.over
	g.giveUp()
	if errors.Is(moved, errInterrupted) || moved == nil && ctx.Err() != nil {
		return errInterrupted
	}
	if g.err != nil {
		if moved == nil || follows(moved) {
			moved = fmt.Errorf("container %q has ended meanwhile", g.dir.ID())
		}
		return moved
	}
	return g.verdict(moved)
}

// verdict is end once the guest's process has ended.
func (g *copier) verdict(moved error) error {
	answer := g.answer
	var lines []string
	select {
	case text := <-g.said:
		lines = strings.Split(strings.TrimRight(string(bytes.ToValidUTF8(text, nil)), "\n"), "\n")
	case <-time.After(copyEnd): // the process has ended, so this is there
	}
	reason := ""
	if n := len(lines); answer.Status != 0 && n > 0 {
		reason, lines = printable(lines[n-1]), lines[:n-1]
	}
	show := g.leftOut()
	for _, line := range lines {
		if line != "" {
			show(line)
		}
	}
	switch {
	case moved != nil && !(answer.Status != 0 && follows(moved)):
		return moved
	case answer.Status == 0:
		return nil
	case answer.Reason != "":
		return fmt.Errorf("container %q has ended meanwhile: %s", g.dir.ID(), answer.Reason)
	case reason == "":
		return fmt.Errorf("what copies files in the guest ended with %d", answer.Status)
	}
	return errors.New(reason)
}

// follows tells whether an error is that of a stream whose other side has ended.
func follows(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, os.ErrClosed)
}
