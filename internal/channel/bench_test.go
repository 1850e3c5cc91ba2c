package channel

import (
	"io"
	"testing"
)

// BenchmarkStream is one way of a stream: what stdio is carried by.
func BenchmarkStream(b *testing.B) {
	client, server := both(b, socketPair)
	l := listen(b, server, 1)
	from := dial(b, client, 1)
	to := accept(b, l)
	buf := make([]byte, 64<<10)
	b.SetBytes(int64(len(buf)))
	b.ReportAllocs()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, to)
		done <- err
	}()
	for b.Loop() {
		if _, err := from.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	from.Close()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRoundTrip is a byte there and back on an open stream: the least that a call costs.
func BenchmarkRoundTrip(b *testing.B) {
	client, server := both(b, socketPair)
	l := listen(b, server, 1)
	here := dial(b, client, 1)
	there := accept(b, l)
	go func() { _, _ = io.Copy(there, there) }() // it ends with the channel
	buf := []byte{1}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := here.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(here, buf); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDial is a new stream, as each call to the guest opens three for stdio.
func BenchmarkDial(b *testing.B) {
	client, server := both(b, socketPair)
	l := listen(b, server, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		conn, err := client.Dial(b.Context(), 1)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
			b.Fatalf("read %v, want the stream's end", err)
		}
		conn.Close()
	}
}
