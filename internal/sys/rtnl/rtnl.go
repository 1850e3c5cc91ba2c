// Package rtnl speaks rtnetlink(7), the kernel's protocol for interfaces, addresses, routes, neighbours and
// traffic control, in whole messages: what was read in one network namespace can be written in another.
package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize is more than the kernel puts into one datagram (32 KiB, NLMSG_GOODSIZE in netlink.h).
	bufferSize = 64 << 10
	// replyWait bounds the wait for an answer, which the kernel gives at once.
	replyWait = 10 * time.Second
	// dumpTries is how often a list is read again because it changed meanwhile.
	dumpTries = 5
	// MaxDump bounds the messages of one list.
	MaxDump = 1 << 16
)

var native = binary.NativeEndian

// errChanged is a list that is not consistent (NLM_F_DUMP_INTR).
var errChanged = errors.New("it keeps changing")

// Conn is a connection to the kernel of one network namespace, for one goroutine at a time.
type Conn struct {
	fd  int
	seq uint32
	buf []byte
}

// Open connects to the network namespace that the calling thread is in. The connection stays with that
// namespace, and keeps it in being.
func Open() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	c := &Conn{fd: fd, buf: make([]byte, bufferSize)}
	wait := unix.NsecToTimeval(replyWait.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return c, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return os.NewSyscallError("close rtnetlink", unix.Close(c.fd)) }

// Do has the kernel do what a message of the kind (RTM_NEWADDR, …) with the flags (NLM_F_CREATE, …) and the
// body asks for. A refusal is the kernel's errno, with the kernel's reason where it gives one.
func (c *Conn) Do(kind int, flags int, body []byte) error {
	if err := c.send(kind, flags|unix.NLM_F_ACK, body); err != nil {
		return err
	}
	return c.receive(func(uint16, []byte) error { return nil })
}

// Dump returns the bodies of all messages that the kernel answers the list request kind (RTM_GETADDR, …)
// with.
func (c *Conn) Dump(kind int, body []byte) ([][]byte, error) {
	for range dumpTries {
		var list [][]byte
		if err := c.send(kind, unix.NLM_F_DUMP, body); err != nil {
			return nil, err
		}
		err := c.receive(func(_ uint16, body []byte) error {
			if len(list) >= MaxDump {
				return fmt.Errorf("list by rtnetlink: more than %d entries", MaxDump)
			}
			list = append(list, append([]byte(nil), body...))
			return nil
		})
		if !errors.Is(err, errChanged) {
			return list, err
		}
	}
	return nil, fmt.Errorf("list by rtnetlink: %w", errChanged)
}

func (c *Conn) send(kind, flags int, body []byte) error {
	c.seq++
	length := unix.SizeofNlMsghdr + len(body)
	m := make([]byte, 0, length)
	m = native.AppendUint32(m, uint32(length))
	m = native.AppendUint16(m, uint16(kind))
	m = native.AppendUint16(m, uint16(flags|unix.NLM_F_REQUEST))
	m = native.AppendUint32(m, c.seq)
	m = native.AppendUint32(m, 0)
	m = append(m, body...)
	if err := unix.Sendto(c.fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask rtnetlink: %w", err)
	}
	return nil
}

// receive takes messages up to the last one of the answer to the last request.
func (c *Conn) receive(take func(kind uint16, body []byte) error) error {
	var failed error
	changed := false
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("hear rtnetlink: %w", err)
		}
		for rest := c.buf[:n]; len(rest) >= unix.SizeofNlMsghdr; {
			length := int(native.Uint32(rest))
			if length < unix.SizeofNlMsghdr || length > len(rest) {
				return errors.New("hear rtnetlink: a message is cut short")
			}
			kind, flags, seq := native.Uint16(rest[4:]), native.Uint16(rest[6:]), native.Uint32(rest[8:])
			body := rest[unix.SizeofNlMsghdr:length]
			rest = rest[min(align(length), len(rest)):]
			if seq != c.seq {
				continue // of a request that was given up
			}
			changed = changed || flags&unix.NLM_F_DUMP_INTR != 0
			switch kind {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				if err := verdict(flags, body); err != nil {
					return err
				}
				if changed {
					return errChanged
				}
				return failed
			case unix.NLMSG_NOOP:
			default:
				if failed == nil {
					failed = take(kind, body)
				}
			}
		}
	}
}

// extAck are the attributes of an answer (linux/netlink.h, nlmsgerr_attrs).
const extAckMessage = 1

// verdict is what an NLMSG_ERROR or NLMSG_DONE says: an errno, the request's header (with the request where
// it was refused and NLM_F_CAPPED is not set), and the reason.
func verdict(flags uint16, body []byte) error {
	if len(body) < 4 {
		return nil
	}
	code := int32(native.Uint32(body))
	if code == 0 {
		return nil
	}
	errno := unix.Errno(-code)
	const tlvs, capped = 0x200, 0x100 // NLM_F_ACK_TLVS, NLM_F_CAPPED
	if flags&tlvs == 0 || len(body) < 4+unix.SizeofNlMsghdr {
		return errno
	}
	skip := 4 + unix.SizeofNlMsghdr
	if flags&capped == 0 {
		skip = 4 + align(int(native.Uint32(body[4:])))
	}
	if skip > len(body) {
		return errno
	}
	if reason := Find(body[skip:], extAckMessage); len(reason) > 1 {
		return fmt.Errorf("%w (%s)", errno, reason[:len(reason)-1])
	}
	return errno
}
