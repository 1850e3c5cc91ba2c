// Package names answers the guest's DNS queries with what the owner's side of a stream says to them, for engines whose
// name server listens on a loopback address of the container's network namespace on the host.
package names

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
)

const (
	port = 53
	// maxWaiting bounds the queries that have no answer yet; further ones are not taken.
	maxWaiting = 64
	// answerWait is after how long a query without an answer is forgotten.
	answerWait = 15 * time.Second
	// acceptPause is how long no connection is taken after an error.
	acceptPause = 100 * time.Millisecond
	// maxConnections bounds the connections over TCP.
	maxConnections = 16
)

// forwarder is one name server's place in the guest.
type forwarder struct {
	packets net.PacketConn
	listen  net.Listener
	turns   chan struct{} // one for each connection that is served

	writing sync.Mutex     // held to write to stream, without mu: answers are taken while a query waits to be written
	stream  io.WriteCloser // written to under writing

	mu      sync.Mutex                   // guards the fields below
	next    uint32                       // the last id
	waiting map[uint32]func(data []byte) // who gets an answer
}

// Forward listens on a loopback address and serves until the stream ends, which is its own from then on. An error is
// told before anything is served.
func Forward(address string, stream io.ReadWriteCloser) error {
	ip, err := netip.ParseAddr(address)
	if err != nil || !ip.Is4() || !ip.IsLoopback() {
		return fmt.Errorf("%q is no loopback address", address)
	}
	at := netip.AddrPortFrom(ip, port).String()
	packets, err := net.ListenPacket("udp4", at)
	if err != nil {
		return err
	}
	listen, err := net.Listen("tcp4", at)
	if err != nil {
		return errors.Join(err, packets.Close())
	}
	serve(packets, listen, stream)
	return nil
}

func serve(packets net.PacketConn, listen net.Listener, stream io.ReadWriteCloser) {
	f := &forwarder{
		packets: packets, listen: listen, stream: stream, turns: make(chan struct{}, maxConnections), waiting: map[uint32]func([]byte){},
	}
	go f.fromPackets()
	go f.fromConnections()
	go f.answers(stream)
}

// answers hands on what the owner says until the stream ends, and everything with it.
func (f *forwarder) answers(stream io.Reader) {
	for {
		m, err := agentv1.ReadName(stream)
		if err != nil {
			break
		}
		f.mu.Lock()
		reply := f.waiting[m.ID]
		delete(f.waiting, m.ID)
		f.mu.Unlock()
		if reply != nil {
			reply(m.Data)
		}
	}
	_ = f.packets.Close() // ends fromPackets
	_ = f.listen.Close()
	_ = f.stream.Close()
}

// ask sends a query to the owner; reply is called with the answer, at most once.
func (f *forwarder) ask(data []byte, overTCP bool, reply func([]byte)) {
	f.mu.Lock()
	if len(f.waiting) >= maxWaiting {
		f.mu.Unlock()
		return
	}
	f.next++
	id := f.next
	f.waiting[id] = reply
	f.mu.Unlock()
	forget := func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.waiting, id)
	}
	time.AfterFunc(answerWait, forget)
	f.writing.Lock()
	defer f.writing.Unlock()
	if agentv1.WriteName(f.stream, agentv1.NameMessage{ID: id, Stream: overTCP, Data: data}) != nil {
		forget()
	}
}

func (f *forwarder) fromPackets() {
	buf := make([]byte, 0xffff)
	for {
		n, from, err := f.packets.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // of one packet, such as a port that nobody listens on any more
		}
		f.ask(append([]byte(nil), buf[:n]...), false, func(data []byte) {
			_, _ = f.packets.WriteTo(data, from) // who asked asks again
		})
	}
}

func (f *forwarder) fromConnections() {
	for {
		conn, err := f.listen.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(acceptPause)
			continue
		}
		select {
		case f.turns <- struct{}{}:
			go f.connection(conn)
		default:
			conn.Close()
		}
	}
}

// connection serves the queries of one connection, each after its length (RFC 1035, "TCP usage").
func (f *forwarder) connection(conn net.Conn) {
	defer func() { <-f.turns }()
	defer conn.Close()
	for {
		_ = conn.SetDeadline(time.Now().Add(2 * answerWait)) // an error comes again at once
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		answer := make(chan []byte, 1)
		f.ask(query, true, func(data []byte) { answer <- data })
		select {
		case data := <-answer:
			if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(data))), data...)); err != nil {
				return
			}
		case <-time.After(answerWait):
			return
		}
	}
}
