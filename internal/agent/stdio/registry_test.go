package stdio

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener whose connections tests make.
type pipes struct{ conns chan net.Conn }

func (p pipes) Accept() (net.Conn, error) {
	c, open := <-p.conns
	if !open {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { close(p.conns); return nil }
func (p pipes) Addr() net.Addr { return nil }

// open makes a connection that has not said its token.
func (p pipes) open() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

func say(t *testing.T, c net.Conn, token uint64) {
	t.Helper()
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, token)); err != nil {
		t.Fatal(err)
	}
}

// closed tells whether the registry has closed its end.
func closed(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond)) // of a pipe: fails on a closed one only
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

// bubble runs a test of a registry in a bubble of its own time.
func bubble(t *testing.T, test func(*testing.T, *Registry, pipes)) {
	synctest.Test(t, func(t *testing.T) {
		r, l := NewRegistry(), pipes{make(chan net.Conn)}
		served := make(chan struct{})
		go func() { defer close(served); _ = r.Serve(l) }()
		test(t, r, l)
		l.Close()
		<-served
		time.Sleep(2 * keepUnclaimed) // what is left goes
	})
}

func TestClaim(t *testing.T) {
	bubble(t, func(t *testing.T, r *Registry, l pipes) {
		early := l.open()
		say(t, early, 7)
		synctest.Wait()
		conn, err := r.Claim(t.Context(), 7)
		if err != nil {
			t.Fatal(err)
		}
		go io.WriteString(early, "data")
		buf := make([]byte, 4)
		if _, err := io.ReadFull(conn, buf); err != nil || string(buf) != "data" {
			t.Errorf("read %q, %v", buf, err)
		}
		time.Sleep(2 * keepUnclaimed)
		if closed(early) {
			t.Error("a claimed stream was closed")
		}
		conn.Close()
		if _, err := r.Claim(t.Context(), 7); !errors.Is(err, ErrNoStream) {
			t.Errorf("claimed twice: %v", err)
		}
	})
}

func TestClaimWaits(t *testing.T) {
	bubble(t, func(t *testing.T, r *Registry, l pipes) {
		go func() {
			time.Sleep(claimWait / 2)
			late := l.open()
			say(t, late, 8)
		}()
		conn, err := r.Claim(t.Context(), 8)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		began := time.Now()
		if _, err := r.Claim(t.Context(), 9); !errors.Is(err, ErrNoStream) || time.Since(began) != claimWait {
			t.Errorf("claim of what does not come: %v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Claim(ctx, 9); !errors.Is(err, ErrNoStream) {
			t.Errorf("claim that is cancelled: %v", err)
		}
	})
}

func TestUnclaimed(t *testing.T) {
	bubble(t, func(t *testing.T, r *Registry, l pipes) {
		one, twin, zero, silent := l.open(), l.open(), l.open(), l.open()
		say(t, one, 1)
		synctest.Wait()
		say(t, twin, 1)
		say(t, zero, 0)
		synctest.Wait()
		if closed(one) || !closed(twin) || !closed(zero) || closed(silent) {
			t.Error("want the second of a token, and token 0, closed, and no other")
		}
		time.Sleep(tokenWait)
		if !closed(silent) {
			t.Error("a stream that says nothing is kept")
		}
		time.Sleep(keepUnclaimed)
		if !closed(one) {
			t.Error("a stream that nobody claims is kept")
		}
	})
}

func TestBound(t *testing.T) {
	bubble(t, func(t *testing.T, r *Registry, l pipes) {
		for i := range maxUnclaimed {
			c := l.open()
			if i%2 == 0 { // those that say nothing count too
				say(t, c, uint64(i)+1)
			}
		}
		synctest.Wait()
		if more := l.open(); !closed(more) {
			t.Errorf("more than %d streams wait", maxUnclaimed)
		}
		conn, err := r.Claim(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if more := l.open(); closed(more) {
			t.Error("no room after a claim")
		}
	})
}
