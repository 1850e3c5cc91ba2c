package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	netTime    = 500 * time.Millisecond // that each measure takes
	netWait    = 20 * time.Second       // bounds every wait for the other end
	netBlock   = 64 << 10               // bytes of a write
	netPacket  = 1400                   // bytes of a datagram
	netStreams = 8
	netMost    = 64 // connections that a server serves at once
)

// What a client asks for with the first byte of a connection.
const (
	askSink   = 's' // read until the end, then say how much
	askSource = 'd' // write until the connection ends
	askEcho   = 'e' // return every byte
	askCount  = 'c' // say how many bytes of datagrams came
)

// serve is the other end of network: it listens on TCP and UDP until it is killed, and prints a line first.
func serve(address string, out io.Writer) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	defer listener.Close()
	packets, err := net.ListenPacket("udp", address)
	if err != nil {
		return err
	}
	defer packets.Close()
	var counted atomic.Int64
	go func() {
		block := make([]byte, netBlock)
		for {
			n, _, err := packets.ReadFrom(block)
			if err != nil {
				return
			}
			counted.Add(int64(n))
		}
	}()
	fmt.Fprintln(out, "serving")
	places := make(chan struct{}, netMost)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		places <- struct{}{}
		go func() {
			defer func() { conn.Close(); <-places }()
			_ = answer(conn, &counted) // the client sees that it ended
		}()
	}
}

func answer(conn net.Conn, counted *atomic.Int64) error {
	if err := conn.SetDeadline(time.Now().Add(netWait)); err != nil {
		return err
	}
	block := make([]byte, netBlock)
	if _, err := io.ReadFull(conn, block[:1]); err != nil {
		return err
	}
	switch block[0] {
	case askSink:
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{conn}, block)
		if err != nil {
			return err
		}
		return binary.Write(conn, binary.BigEndian, n)
	case askSource:
		for {
			if _, err := conn.Write(block); err != nil {
				return err
			}
		}
	case askEcho:
		for {
			if _, err := conn.Read(block[:1]); err != nil {
				return err
			}
			if _, err := conn.Write(block[:1]); err != nil {
				return err
			}
		}
	case askCount:
		return binary.Write(conn, binary.BigEndian, counted.Load())
	}
	return errors.New("unknown request")
}

// network sends to and receives from a server at address.
func network(address string) ([]Sample, error) {
	var samples []Sample
	for _, m := range []struct {
		name string
		take func(string) (float64, error)
	}{
		{"tcp.send", func(a string) (float64, error) { return streams(a, 1, send) }},
		{"tcp.receive", func(a string) (float64, error) { return streams(a, 1, receive) }},
		{"tcp.send.8", func(a string) (float64, error) { return streams(a, netStreams, send) }},
		{"tcp.receive.8", func(a string) (float64, error) { return streams(a, netStreams, receive) }},
		{"udp.send", datagrams},
		{"tcp.request", requests},
	} {
		value, err := m.take(address)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.name, err)
		}
		samples = append(samples, Sample{m.name, value})
	}
	return samples, nil
}

// ask connects and says what for. A container's network may come up after it.
func ask(address string, what byte) (*net.TCPConn, error) {
	conn, err := net.DialTimeout("tcp", address, netWait)
	if err != nil {
		return nil, err
	}
	err = conn.SetDeadline(time.Now().Add(netWait))
	if err == nil {
		_, err = conn.Write([]byte{what})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

// streams runs several streams at once and returns how much they moved, in Mbit/s.
func streams(address string, count int, run func(string) (int64, error)) (float64, error) {
	var all sync.WaitGroup
	var bytes atomic.Int64
	failed := make(chan error, count)
	began := time.Now()
	for range count {
		all.Go(func() {
			n, err := run(address)
			bytes.Add(n)
			if err != nil {
				failed <- err
			}
		})
	}
	all.Wait()
	took := time.Since(began)
	select {
	case err := <-failed:
		return 0, err
	default:
		return megabits(bytes.Load(), took), nil
	}
}

func megabits(bytes int64, took time.Duration) float64 { return perSecond(float64(bytes)*8/1e6, took) }

// send writes for a while, and then has the server say that it came.
func send(address string) (int64, error) {
	conn, err := ask(address, askSink)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	block := make([]byte, netBlock)
	for end := time.Now().Add(netTime); time.Now().Before(end); {
		if _, err := conn.Write(block); err != nil {
			return 0, err
		}
	}
	if err := conn.CloseWrite(); err != nil {
		return 0, err
	}
	var came int64
	err = binary.Read(conn, binary.BigEndian, &came)
	return came, err
}

// receive reads for a while.
func receive(address string) (total int64, err error) {
	conn, err := ask(address, askSource)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	block := make([]byte, netBlock)
	for end := time.Now().Add(netTime); time.Now().Before(end); {
		n, err := conn.Read(block)
		total += int64(n)
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// datagrams sends datagrams for a while and returns how much of them came, in Mbit/s.
func datagrams(address string) (float64, error) {
	before, err := came(address)
	if err != nil {
		return 0, err
	}
	conn, err := net.Dial("udp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	packet := make([]byte, netPacket)
	began := time.Now()
	for time.Since(began) < netTime {
		if _, err := conn.Write(packet); err != nil {
			return 0, err
		}
	}
	after, err := came(address) // by the same way, behind them
	return megabits(after-before, time.Since(began)), err
}

func came(address string) (n int64, err error) {
	conn, err := ask(address, askCount)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	err = binary.Read(conn, binary.BigEndian, &n)
	return n, err
}

// requests sends a byte and waits for it, again and again, and returns how often in a second.
func requests(address string) (float64, error) {
	conn, err := ask(address, askEcho)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	one := []byte{1}
	count, took, err := repeat(1, func() error {
		if _, err := conn.Write(one); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, one)
		return err
	})
	return perSecond(float64(count), took), err
}
