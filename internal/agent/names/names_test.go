package names

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// start serves on ports of loopback with an owner that answers every query with its kind and the query.
func start(t *testing.T) (udp, tcp string, owner net.Conn) {
	t.Helper()
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	serve(packets, listen, theirs)
	t.Cleanup(func() { ours.Close() })
	return packets.LocalAddr().String(), listen.Addr().String(), ours
}

func TestForward(t *testing.T) {
	udp, tcp, owner := start(t)
	go func() {
		for {
			m, err := agentv1.ReadName(owner)
			if err != nil {
				return
			}
			kind := "udp:"
			if m.Stream {
				kind = "tcp:"
			}
			_ = agentv1.WriteName(owner, agentv1.NameMessage{ID: m.ID + 1000, Data: []byte("nobody asked")})
			_ = agentv1.WriteName(owner, agentv1.NameMessage{ID: m.ID, Data: append([]byte(kind), m.Data...)})
		}
	}()
	conn, err := net.Dial("udp4", udp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	buf := make([]byte, 100)
	for _, query := range []string{"one", "two"} {
		if _, err := conn.Write([]byte(query)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(buf); err != nil || string(buf[:n]) != "udp:"+query {
			t.Errorf("%q: %q, %v", query, buf[:n], err)
		}
	}
	stream, err := net.Dial("tcp4", tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	_ = stream.SetDeadline(time.Now().Add(30 * time.Second))
	for _, query := range []string{"one", "two"} {
		if _, err := stream.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
			t.Fatal(err)
		}
		answer := make([]byte, 2+len("tcp:")+len(query))
		if _, err := io.ReadFull(stream, answer); err != nil || string(answer[2:]) != "tcp:"+query {
			t.Errorf("%q: %q, %v", query, answer, err)
		}
	}
	// What the owner ends, ends.
	owner.Close()
	end := time.Now().Add(30 * time.Second)
	for {
		again, err := net.Dial("tcp4", tcp)
		if err != nil {
			break
		}
		again.Close()
		if time.Now().After(end) {
			t.Fatal("still listening after the owner has gone")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestForwardBounds: queries that the owner leaves without an answer do not add up.
func TestForwardBounds(t *testing.T) {
	udp, _, owner := start(t)
	conn, err := net.Dial("udp4", udp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range maxWaiting {
		if _, err := conn.Write([]byte("q")); err != nil {
			t.Fatal(err)
		}
		_ = owner.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := agentv1.ReadName(owner); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Write([]byte("one more")); err != nil {
		t.Fatal(err)
	}
	_ = owner.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if m, err := agentv1.ReadName(owner); err == nil {
		t.Errorf("the owner was asked once more: %q", m.Data)
	}
}

func TestForwardRefuses(t *testing.T) {
	for _, address := range []string{"", "10.0.0.1", "::1", "0.0.0.0", "x"} {
		if err := Forward(address, nil); err == nil {
			t.Errorf("%q: no error", address)
		}
	}
}
