package channel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// pair is a connection that buffers nothing.
func pair(testing.TB) (host, guest net.Conn) { return net.Pipe() }

// socketPair is the connection that a monitor holds the other end of.
func socketPair(t testing.TB) (host, guest net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "channel")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	return conns[0], conns[1]
}

// both runs the two ends of a channel until the test ends.
func both(t testing.TB, connect func(testing.TB) (host, guest net.Conn)) (*Client, *Server) {
	t.Helper()
	host, guest := connect(t)
	c, err := NewClient(host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s, err := NewServer(guest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return c, s
}

func listen(t testing.TB, s *Server, port uint32) net.Listener {
	t.Helper()
	l, err := s.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t testing.TB, c *Client, port uint32) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := c.Dial(ctx, port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func accept(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// exchange sends text one way and wants it at the other end.
func exchange(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := from.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != text {
		t.Fatalf("got %q, %v, want %q", got, err, text)
	}
}

func TestPortsLeadToTheirListeners(t *testing.T) {
	c, s := both(t, pair)
	a, b := listen(t, s, 1), listen(t, s, 1<<32-1)
	toB, toA := dial(t, c, 1<<32-1), dial(t, c, 1)
	atA, atB := accept(t, a), accept(t, b)
	exchange(t, toA, atA, "for a")
	exchange(t, toB, atB, "for b")
	exchange(t, atB, toB, "from b")
	if a.Addr().String() != "port 1" {
		t.Errorf("address %q", a.Addr())
	}
}

func TestListenTwice(t *testing.T) {
	_, s := both(t, pair)
	l := listen(t, s, 5)
	if _, err := s.Listen(5); err == nil {
		t.Error("two listeners on one port")
	}
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Errorf("Close twice: %v", err)
	}
	listen(t, s, 5)
}

// TestDialBeforeListen: the host dials while the guest still boots.
func TestDialBeforeListen(t *testing.T) {
	c, s := both(t, socketPair)
	early := dial(t, c, 9)
	if _, err := early.Write([]byte("early")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	listen(t, s, 8) // another port's listener must not take it
	late := accept(t, listen(t, s, 9))
	got := make([]byte, 5)
	if _, err := io.ReadFull(late, got); err != nil || string(got) != "early" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	c, _ := both(t, pair)
	closedAfter(t, dial(t, c, 9), listenWait)
}

// TestStreamWithoutPort: a stream that never says where it wants to go does not stay for ever.
func TestStreamWithoutPort(t *testing.T) {
	if testing.Short() {
		t.Skipf("waits %v", headerWait)
	}
	t.Parallel()
	c, _ := both(t, pair)
	stream, err := c.session.OpenStream()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write([]byte{0, 0, 0}); err != nil { // a port has four bytes
		t.Fatal(err)
	}
	closedAfter(t, stream, headerWait)
}

// closedAfter wants the other side to close conn after a time, give or take a busy machine.
func closedAfter(t *testing.T, conn net.Conn, want time.Duration) {
	t.Helper()
	start := time.Now()
	_ = conn.SetReadDeadline(start.Add(want + 20*time.Second))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read %d, %v, want EOF", n, err)
	}
	if took := time.Since(start); took < want-time.Second || took > want+10*time.Second {
		t.Errorf("the stream was closed after %v, want %v", took, want)
	}
}

func TestClosingAListenerEndsAccept(t *testing.T) {
	c, s := both(t, pair)
	l := listen(t, s, 5)
	failed := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		failed <- err
	}()
	l.Close()
	if err := <-failed; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v, want net.ErrClosed", err)
	}
	other := listen(t, s, 6)
	exchange(t, dial(t, c, 6), accept(t, other), "the channel lives")
}

func TestOneEndClosesStream(t *testing.T) {
	c, s := both(t, pair)
	l := listen(t, s, 5)
	host := dial(t, c, 5)
	guest := accept(t, l)
	exchange(t, host, guest, "last words")
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("guest reads %v after the host closed, want EOF", err)
	}
	exchange(t, guest, host, "what was on its way still arrives")
}

func TestChannelEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(*Client, *Server) error
	}{
		{"host closes", func(c *Client, _ *Server) error { return c.Close() }},
		{"guest closes", func(_ *Client, s *Server) error { return s.Close() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, server := both(t, socketPair)
			l := listen(t, server, 5)
			host := dial(t, client, 5)
			guest := accept(t, l)
			if err := c.end(client, server); err != nil {
				t.Fatal(err)
			}
			for name, end := range map[string]net.Conn{"host": host, "guest": guest} {
				_ = end.SetReadDeadline(time.Now().Add(10 * time.Second))
				var late net.Error
				if _, err := end.Read(make([]byte, 1)); err == nil || errors.As(err, &late) && late.Timeout() {
					t.Errorf("%s's stream: %v", name, err)
				}
			}
			select {
			case <-server.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("Done is not closed")
			}
			if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Accept: %v, want net.ErrClosed", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if conn, err := client.Dial(ctx, 5); err == nil {
				conn.Close()
				t.Error("dialed through a closed channel")
			}
		})
	}
}

// TestDialGivesUp: a guest that reads nothing holds a Dial up only as long as its context lasts.
func TestDialGivesUp(t *testing.T) {
	host, guest := net.Pipe()
	defer guest.Close()
	c, err := NewClient(host)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if conn, err := c.Dial(ctx, 5); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial: %v", err)
		if err == nil {
			conn.Close()
		}
	}
}

func TestLargeTransferArrivesWhole(t *testing.T) {
	c, s := both(t, socketPair)
	l := listen(t, s, 5)
	host := dial(t, c, 5)
	guest := accept(t, l)
	const size = 64 << 20
	var sum [2][sha256.Size]byte
	var transfers sync.WaitGroup
	for i, ends := range [][2]net.Conn{{host, guest}, {guest, host}} {
		transfers.Go(func() {
			h := sha256.New()
			source := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{byte(i)}), size), h)
			if n, err := io.Copy(ends[0], source); n != size || err != nil {
				t.Errorf("sent %d bytes, %v", n, err)
			}
			sum[i] = [sha256.Size]byte(h.Sum(nil))
		})
	}
	var got [2][]byte
	for i, end := range []net.Conn{guest, host} {
		transfers.Go(func() {
			h := sha256.New()
			if n, err := io.CopyN(h, end, size); n != size || err != nil {
				t.Errorf("got %d bytes, %v", n, err)
			}
			got[i] = h.Sum(nil)
		})
	}
	transfers.Wait()
	for i := range sum {
		if !bytes.Equal(sum[i][:], got[i]) {
			t.Errorf("direction %d: what arrived is not what was sent", i)
		}
	}
}

func TestManyStreamsAtOnce(t *testing.T) {
	c, s := both(t, socketPair)
	l := listen(t, s, 5)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	var all sync.WaitGroup
	for i := range 500 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			conn, err := c.Dial(ctx, 5)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			var sent, got [8]byte
			binary.BigEndian.PutUint64(sent[:], uint64(i))
			if _, err := conn.Write(sent[:]); err != nil {
				t.Error(err)
			}
			if _, err := io.ReadFull(conn, got[:]); err != nil || got != sent {
				t.Errorf("stream %d: %v, %v", i, got, err)
			}
		})
	}
	all.Wait()
}

// frame is a yamux header: version, type, flags, stream, length.
func frame(version, kind byte, flags uint16, stream, length uint32) []byte {
	b := []byte{version, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return binary.BigEndian.AppendUint32(b, length)
}

// TestHostileGuest: whatever a guest sends leaves the host with no memory held for it and ends the channel
// at worst.
func TestHostileGuest(t *testing.T) {
	flood := func(n int, one func(i uint32) []byte) []byte {
		var b []byte
		for i := range n {
			b = append(b, one(uint32(i))...)
		}
		return b
	}
	for _, c := range []struct {
		name string
		says []byte
		ends bool
	}{
		{"noise", bytes.Repeat([]byte("\xff\x00noise"), 1000), true},
		{"another version", frame(1, 0, 0, 1, 0), true},
		{"data for a stream that is not there", frame(0, 0, 0, 77, 0), false},
		{"more data than the window", frame(0, 0, 0, 1, 1<<31), true},
		{"endless data for no stream", frame(0, 0, 0, 77, 1<<32-1), false},
		{"a going-away that fails", frame(0, 3, 0, 0, 2), true},
		{"streams that the host never asked for", flood(100000, func(i uint32) []byte { return frame(0, 1, 1, 2*i+2, 0) }), false},
		{"pings", flood(10000, func(i uint32) []byte { return frame(0, 2, 1, 0, i) }), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			host, guest := socketPair(t)
			client, err := NewClient(host)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			conn := dial(t, client, 5) // stream 1
			go func() { _, _ = io.Copy(io.Discard, guest) }()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_ = guest.SetWriteDeadline(time.Now().Add(5 * time.Second))
			_, _ = guest.Write(c.says) // the host may have had enough
			if !c.ends {
				guest.Close()
			}
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			var late net.Error
			if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || errors.As(err, &late) && late.Timeout() {
				t.Errorf("read %d, %v from a guest that sent %s", n, err, c.name)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
				t.Errorf("the host holds %d MiB more", grown>>20)
			}
			guest.Close()
		})
	}
}

// FuzzHostFromGuest feeds the host's end whatever a guest may send.
func FuzzHostFromGuest(f *testing.F) {
	f.Add([]byte("garbage"))
	f.Add(frame(0, 1, 2, 1, 0))
	f.Add(append(frame(0, 0, 0, 1, 3), "abc"...))
	f.Add(append(frame(0, 1, 2, 1, 100), frame(0, 0, 4, 1, 0)...))
	f.Fuzz(func(t *testing.T, says []byte) {
		host, guest := net.Pipe()
		client, err := NewClient(host)
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(io.Discard, guest) }()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		conn, err := client.Dial(ctx, 5)
		if err != nil {
			t.Fatal(err)
		}
		_ = guest.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, _ = guest.Write(says)
		guest.Close()
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		got, err := io.ReadAll(conn)
		if len(got) > len(says) {
			t.Errorf("%d bytes came out of %d", len(got), len(says))
		}
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			t.Error("the stream outlives its connection")
		}
		if err := client.Close(); err != nil && !errors.Is(err, yamux.ErrSessionShutdown) && !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("Close: %v", err)
		}
	})
}
