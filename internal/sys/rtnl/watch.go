package rtnl

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watched are the groups of messages by which the kernel tells of changes (linux/rtnetlink.h).
var watched = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF,
}

// Watch hears of changes to interfaces, addresses, routes, neighbours and rules of one network namespace.
type Watch struct {
	file *os.File
	buf  []byte
}

// OpenWatch begins to watch the network namespace that the calling thread is in. What changes before somebody
// waits is not lost.
func OpenWatch() (*Watch, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("watch rtnetlink: %w", err)
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, group := range watched {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("watch rtnetlink: %w", err)
	}
	return &Watch{file: os.NewFile(uintptr(fd), "rtnetlink"), buf: make([]byte, bufferSize)}, nil
}

// Close ends the watch, and a Wait that is under way.
func (w *Watch) Close() error { return w.file.Close() }

// Wait waits for a change and tells whether there was one: it waits until the given time, and for ever where that
// is zero. After Close it is an error that matches os.ErrClosed.
func (w *Watch) Wait(until time.Time) (bool, error) {
	if err := w.file.SetReadDeadline(until); err != nil {
		return false, fmt.Errorf("watch rtnetlink: %w", err)
	}
	for {
		n, err := w.file.Read(w.buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return false, nil
		case errors.Is(err, unix.ENOBUFS): // there was more than anybody could tell
			return true, nil
		case err != nil:
			return false, fmt.Errorf("watch rtnetlink: %w", err)
		case matters(w.buf[:n]):
			return true, nil
		}
	}
}

// matters tells whether a datagram is about more than neighbours that come and go by themselves.
func matters(b []byte) bool {
	for len(b) >= unix.SizeofNlMsghdr {
		length := int(native.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return true
		}
		kind, body := native.Uint16(b[4:]), b[unix.SizeofNlMsghdr:length]
		if kind != unix.RTM_NEWNEIGH && kind != unix.RTM_DELNEIGH || len(body) < neighborSize {
			return true
		}
		if native.Uint16(body[8:])&unix.NUD_PERMANENT != 0 || body[10]&unix.NTF_PROXY != 0 {
			return true
		}
		b = b[min(align(length), len(b)):]
	}
	return false
}
