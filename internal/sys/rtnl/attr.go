package rtnl

import "bytes"

const (
	headerSize = 4
	// flagBits of an attribute's type are NLA_F_NESTED and NLA_F_NET_BYTEORDER (linux/netlink.h).
	flagBits = 0xc000
)

func align(n int) int { return (n + 3) &^ 3 }

// Attr is one attribute of a message.
type Attr struct {
	Type  uint16 // without flags
	Value []byte // part of the message it was found in
}

// Attrs takes a row of attributes apart; what is cut short at the end is left out.
func Attrs(b []byte) []Attr {
	var list []Attr
	for len(b) >= headerSize {
		length := int(native.Uint16(b))
		if length < headerSize || length > len(b) {
			break
		}
		list = append(list, Attr{native.Uint16(b[2:]) &^ flagBits, b[headerSize:length]})
		b = b[min(align(length), len(b)):]
	}
	return list
}

// Find returns the value of the first attribute of a type in a row, nil without one.
func Find(b []byte, kind uint16) []byte {
	for _, a := range Attrs(b) {
		if a.Type == kind {
			return a.Value
		}
	}
	return nil
}

// Add appends an attribute to a message.
func Add(b []byte, kind uint16, value []byte) []byte {
	b = native.AppendUint16(b, uint16(headerSize+len(value)))
	b = native.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}

// Add32 appends an attribute that is a number in the machine's byte order.
func Add32(b []byte, kind uint16, value uint32) []byte {
	return Add(b, kind, native.AppendUint32(nil, value))
}

// AddString appends an attribute that is a string with a final zero.
func AddString(b []byte, kind uint16, value string) []byte {
	return Add(b, kind, append([]byte(value), 0))
}

// Uint32 is the number that an attribute's value is, 0 where it is none.
func Uint32(value []byte) uint32 {
	if len(value) < 4 {
		return 0
	}
	return native.Uint32(value)
}

// String is the string that an attribute's value is.
func String(value []byte) string {
	text, _, _ := bytes.Cut(value, []byte{0})
	return string(text)
}
