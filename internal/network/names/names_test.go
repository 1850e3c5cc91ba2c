package names

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/testenv"
)

// server answers every query with "re:" and the query, over UDP and TCP, on one port of loopback.
func server(t *testing.T) string {
	t.Helper()
	packets, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := packets.LocalAddr().String()
	listen, err := net.Listen("tcp4", at)
	if err != nil {
		t.Skipf("the port is taken: %v", err)
	}
	t.Cleanup(func() { packets.Close(); listen.Close() })
	go func() {
		buf := make([]byte, 0xffff)
		for {
			n, from, err := packets.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = packets.WriteTo(append([]byte("re:"), buf[:n]...), from)
		}
	}()
	go func() {
		for {
			conn, err := listen.Accept()
			if err != nil {
				return
			}
			var length [2]byte
			if _, err := io.ReadFull(conn, length[:]); err == nil {
				query := make([]byte, binary.BigEndian.Uint16(length[:]))
				_, _ = io.ReadFull(conn, query)
				answer := append([]byte("re:"), query...)
				_, _ = conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
			}
			conn.Close()
		}
	}()
	return at
}

// TestServe asks a name server from this process' own network namespace.
func TestServe(t *testing.T) {
	testenv.NeedRoot(t)
	ours, theirs := net.Pipe()
	ended := make(chan error, 1)
	at := server(t)
	go func() { ended <- serve(theirs, "/proc/self/ns/net", at) }()
	if err := ours.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for i, overTCP := range []bool{false, true, false} {
		query := agentv1.NameMessage{ID: uint32(7 + i), Stream: overTCP, Data: []byte("name?")}
		if err := agentv1.WriteName(ours, query); err != nil {
			t.Fatal(err)
		}
		answer, err := agentv1.ReadName(ours)
		if err != nil || answer.ID != query.ID || string(answer.Data) != "re:name?" {
			t.Errorf("over TCP %v: %+v, %v", overTCP, answer, err)
		}
	}
	ours.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
