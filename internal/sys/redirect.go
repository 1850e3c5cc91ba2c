package sys

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// originalDst is the socket option that tells where a redirected connection was going to: SO_ORIGINAL_DST and
// IP6T_SO_ORIGINAL_DST of the kernel's netfilter headers.
const originalDst = 80

// OriginalPort is the port that a TCP connection was made to before netfilter redirected it.
func OriginalPort(conn *net.TCPConn) (port uint16, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("look at connection: %w", err)
	}
	six := conn.LocalAddr().(*net.TCPAddr).IP.To4() == nil
	var inner error
	err = raw.Control(func(fd uintptr) {
		// The option's value is a socket address, whose port is in its second two bytes, in network order. These
		// calls return structures that are as long.
		if six {
			var info *unix.IPv6MTUInfo
			if info, inner = unix.GetsockoptIPv6MTUInfo(int(fd), unix.IPPROTO_IPV6, originalDst); inner == nil {
				port = info.Addr.Port<<8 | info.Addr.Port>>8
			}
			return
		}
		var address *unix.IPv6Mreq
		if address, inner = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, originalDst); inner == nil {
			port = uint16(address.Multiaddr[2])<<8 | uint16(address.Multiaddr[3])
		}
	})
	if err == nil {
		err = inner
	}
	if err != nil {
		return 0, fmt.Errorf("find where a connection was going to: %w", err)
	}
	return port, nil
}
