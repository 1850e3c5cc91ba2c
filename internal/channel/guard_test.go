package channel

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// yamuxFrame is one of yamux' frames.
func yamuxFrame(kind byte, flags uint16, stream, length uint32) []byte {
	f := make([]byte, 12)
	f[1] = kind
	binary.BigEndian.PutUint16(f[2:], flags)
	binary.BigEndian.PutUint32(f[4:], stream)
	binary.BigEndian.PutUint32(f[8:], length)
	return f
}

// TestGuestMayNotOpenOrPing has a guest send what would cost the host a goroutine each: the session must
// end at the first such frame, wherever in the bytes it lies.
func TestGuestMayNotOpenOrPing(t *testing.T) {
	const ack, ping = 2, 2
	data := append(yamuxFrame(typeData, 0, 1, 5), "hello"...)
	for name, sent := range map[string][]byte{
		"ping":                  yamuxFrame(ping, flagSYN, 0, 7),
		"stream by data":        yamuxFrame(typeData, flagSYN, 2, 0),
		"stream by window":      yamuxFrame(1, flagSYN, 2, 0),
		"ping after data":       append(append([]byte{}, data...), yamuxFrame(ping, flagSYN, 0, 7)...),
		"ping that looks small": append(yamuxFrame(1, ack, 1, 0), yamuxFrame(ping, flagSYN|ack, 0, 1<<31)...),
	} {
		for _, chunk := range []int{1, 5, 4096} {
			host, guest := net.Pipe()
			go func() {
				for rest := sent; len(rest) > 0; {
					n := min(chunk, len(rest))
					if _, err := guest.Write(rest[:n]); err != nil {
						return
					}
					rest = rest[n:]
				}
			}()
			_ = host.SetReadDeadline(time.Now().Add(10 * time.Second))
			_, err := io.ReadAll(&guard{ReadWriteCloser: host})
			if err == nil || !strings.Contains(err.Error(), "the guest opened a stream or asked for a ping") {
				t.Errorf("%s in chunks of %d: %v, want it refused", name, chunk, err)
			}
			host.Close()
			guest.Close()
		}
	}
}

// TestGuardPassesData lets payloads through that look like forbidden frames.
func TestGuardPassesData(t *testing.T) {
	payload := yamuxFrame(2, flagSYN, 0, 7)
	sent := append(yamuxFrame(typeData, 0, 1, uint32(len(payload))), payload...)
	sent = append(sent, yamuxFrame(1, 2, 1, 100)...)
	got, err := io.ReadAll(&guard{ReadWriteCloser: struct {
		io.Reader
		io.Writer
		io.Closer
	}{Reader: strings.NewReader(string(sent))}})
	if err != nil || string(got) != string(sent) {
		t.Errorf("got %d bytes, %v; want all %d", len(got), err, len(sent))
	}
}
