package channel

import (
	"encoding/binary"
	"fmt"
	"io"
)

// guard reads what a guest sends and lets only frames through that a guest of ours has reason to send:
// it never opens a stream nor asks for a ping, and each of those would cost the host a goroutine. The
// frames are yamux' (hashicorp/yamux, spec.md): version, type, flags (2 bytes), stream and length (4 bytes
// each, big endian), and for type data so many bytes more.
type guard struct {
	io.ReadWriteCloser

	header [12]byte
	have   int    // bytes of the header so far
	body   uint32 // bytes of the frame still to come
}

const (
	typeData = 0
	flagSYN  = 1
)

// Read implements io.Reader. It passes on what it read before a frame that it refuses.
func (g *guard) Read(p []byte) (int, error) {
	n, err := g.ReadWriteCloser.Read(p)
	for at := 0; at < n; {
		if g.body > 0 {
			skip := min(uint32(n-at), g.body)
			g.body -= skip
			at += int(skip)
			continue
		}
		copied := copy(g.header[g.have:], p[at:n])
		g.have += copied
		at += copied
		if g.have < len(g.header) {
			break
		}
		g.have = 0
		if binary.BigEndian.Uint16(g.header[2:])&flagSYN != 0 {
			return 0, fmt.Errorf("the guest opened a stream or asked for a ping (frame type %d)", g.header[1])
		}
		if g.header[1] == typeData {
			g.body = binary.BigEndian.Uint32(g.header[8:])
		}
	}
	return n, err
}
