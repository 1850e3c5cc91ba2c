// Package stdio connects processes to the streams that the host opened for them.
package stdio

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// maxUnclaimed bounds the streams that no request has claimed.
	maxUnclaimed = 256
	// keepUnclaimed is how long a stream waits for the request that names it.
	keepUnclaimed = 30 * time.Second
	// tokenWait bounds how long a new stream may take to say its token.
	tokenWait = 10 * time.Second
	// claimWait bounds how long a request waits for a stream that is still on its way.
	claimWait = 10 * time.Second
)

// ErrNoStream is matched by a claim whose stream did not come.
var ErrNoStream = errors.New("no such stream")

// Registry holds the streams that the host has opened until requests claim them by their tokens.
type Registry struct {
	mu sync.Mutex
	// ready holds the unclaimed streams by token. Guarded by mu.
	ready map[uint64]net.Conn
	// waiting holds who claims a stream that is not there yet. Guarded by mu.
	waiting map[uint64]chan net.Conn
	// opening counts the streams that have not said their token. Guarded by mu.
	opening int
}

// NewRegistry makes an empty registry.
func NewRegistry() *Registry {
	return &Registry{ready: map[uint64]net.Conn{}, waiting: map[uint64]chan net.Conn{}}
}

// Serve takes streams from l until it fails or is closed.
func (r *Registry) Serve(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept stdio stream: %w", err)
		}
		r.mu.Lock()
		full := r.opening+len(r.ready) >= maxUnclaimed
		if !full {
			r.opening++
		}
		r.mu.Unlock()
		if full {
			conn.Close()
			continue
		}
		go r.admit(conn)
	}
}

// admit reads a stream's token and hands the stream to who waits for it, or keeps it for a while.
func (r *Registry) admit(conn net.Conn) {
	var header [8]byte
	err := conn.SetReadDeadline(time.Now().Add(tokenWait))
	if err == nil {
		_, err = io.ReadFull(conn, header[:])
	}
	if err == nil {
		err = conn.SetReadDeadline(time.Time{})
	}
	token := binary.BigEndian.Uint64(header[:])

	r.mu.Lock()
	defer r.mu.Unlock()
	r.opening--
	_, taken := r.ready[token]
	if err != nil || token == 0 || taken {
		conn.Close()
		return
	}
	if claim, found := r.waiting[token]; found {
		delete(r.waiting, token)
		claim <- conn
		return
	}
	r.ready[token] = conn
	time.AfterFunc(keepUnclaimed, func() { r.expire(token, conn) })
}

func (r *Registry) expire(token uint64, conn net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ready[token] == conn {
		delete(r.ready, token)
		conn.Close()
	}
}

// Claim returns the stream with this token, which is the caller's from then on. It waits for a while for
// one that is on its way.
func (r *Registry) Claim(ctx context.Context, token uint64) (net.Conn, error) {
	r.mu.Lock()
	if conn, found := r.ready[token]; found {
		delete(r.ready, token)
		r.mu.Unlock()
		return conn, nil
	}
	if _, taken := r.waiting[token]; taken {
		r.mu.Unlock()
		return nil, fmt.Errorf("stream %x is claimed twice: %w", token, ErrNoStream)
	}
	arrived := make(chan net.Conn, 1)
	r.waiting[token] = arrived
	r.mu.Unlock()

	timer := time.NewTimer(claimWait)
	defer timer.Stop()
	select {
	case conn := <-arrived:
		return conn, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	r.mu.Lock()
	delete(r.waiting, token)
	r.mu.Unlock()
	select { // it may have come between the timer and the lock
	case conn := <-arrived:
		return conn, nil
	default:
		return nil, fmt.Errorf("stream %x did not come: %w", token, ErrNoStream)
	}
}
