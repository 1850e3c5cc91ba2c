package agentv1

import (
	"encoding/binary"
	"fmt"
	"io"
)

// NameMessage is a DNS message on its way between the guest and the owner. On the stream it is its number (4 bytes, big
// endian), 1 where it goes over TCP and else 0, its length (2 bytes), and the message.
type NameMessage struct {
	ID     uint32 // the guest numbers its queries; an answer has its query's number
	Stream bool   // over TCP
	Data   []byte // RFC 1035, "Messages"
}

// nameHeader is how many bytes stand before a message.
const nameHeader = 7

// ReadName reads a message.
func ReadName(r io.Reader) (NameMessage, error) {
	var header [nameHeader]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return NameMessage{}, err
	}
	m := NameMessage{ID: binary.BigEndian.Uint32(header[:]), Stream: header[4] == 1}
	m.Data = make([]byte, binary.BigEndian.Uint16(header[5:]))
	_, err := io.ReadFull(r, m.Data)
	return m, err
}

// WriteName writes a message with one call.
func WriteName(w io.Writer, m NameMessage) error {
	if len(m.Data) > 0xffff {
		return fmt.Errorf("a DNS message of %d bytes is too long", len(m.Data))
	}
	out := binary.BigEndian.AppendUint32(make([]byte, 0, nameHeader+len(m.Data)), m.ID)
	kind := byte(0)
	if m.Stream {
		kind = 1
	}
	out = binary.BigEndian.AppendUint16(append(out, kind), uint16(len(m.Data)))
	_, err := w.Write(append(out, m.Data...))
	return err
}
