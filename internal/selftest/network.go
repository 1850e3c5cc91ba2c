package selftest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/selftest/work"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/sys/rtnl"
)

// The machine that the step network makes for itself: a network namespace with an interface that leads nowhere. Its addresses
// are those for documentation (RFC 5737), and no packet leaves it.
var (
	machineAddress = netip.MustParsePrefix("192.0.2.2/24")
	machineGateway = netip.MustParseAddr("192.0.2.1")
)

// machine is such a network namespace, in which somebody listens.
type machine struct {
	path     string // of the namespace
	listener net.Listener
}

// newMachine makes the machine; undo ends it.
func newMachine(undo *cleanup.Stack) (*machine, error) {
	m := &machine{}
	err := sys.InNewNetwork(func() error {
		taps, err := sys.OpenTap("uplink", 1)
		if err != nil {
			return err
		}
		undo.Add(taps[0].Close)
		conn, err := rtnl.Open()
		if err != nil {
			return err
		}
		defer conn.Close()
		for _, name := range []string{"lo", "uplink"} {
			if err := sys.LinkUp(name); err != nil {
				return err
			}
		}
		link, err := net.InterfaceByName("uplink")
		if err != nil {
			return err
		}
		if err := errors.Join(conn.AddAddress(link.Index, machineAddress), conn.AddDefaultRoute(link.Index, machineGateway)); err != nil {
			return err
		}
		ns, err := sys.ThisNetwork()
		if err != nil {
			return err
		}
		undo.Add(ns.Close)
		m.path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd())
		m.listener, err = net.Listen("tcp", netip.AddrPortFrom(machineAddress.Addr(), 0).String())
		return err
	})
	if err != nil {
		return nil, err
	}
	undo.Add(m.listener.Close)
	go func() { _ = work.Answer(m.listener) }() // until it is closed
	return m, nil
}

// ask asks somebody who listens on the machine's loopback.
func (m *machine) ask(port, text string) (answer string, err error) {
	err = sys.InNetwork(m.path, func() error {
		answer, err = work.Ask("127.0.0.1:"+port, text)
		return err
	})
	return answer, err
}

// tryNetwork tries user-mode networking both ways. Its port is the machine's, where nobody else has any.
func tryNetwork(ctx context.Context, s *session) (err error) {
	if _, err := exec.LookPath("passt"); err != nil {
		return skip{why: "passt is not installed, which user-mode networking needs", fix: "install the package passt (apt-get install passt)"}
	}
	if c := s.at.Config; c.NICIngressBPS != 0 || c.NICEgressBPS != 0 {
		return skip{why: "the configuration limits the rates of network interfaces, which user-mode networking cannot"}
	}
	var undo cleanup.Stack
	defer func() { err = errors.Join(err, undo.Clean()) }()
	m, err := newMachine(&undo)
	if err != nil {
		return skip{why: "a network namespace of its own cannot be made: " + oneLine(err.Error())}
	}
	const host, guest = "8080", "80"
	id, c, err := s.up(ctx, options{netns: m.path}, "network", []string{"--network", "user", "-p", "127.0.0.1:" + host + ":" + guest}, job("serve", "0.0.0.0:"+guest)...)
	if err != nil {
		return err
	}
	const text = "over the network"
	out, err := s.husk(ctx, append([]string{"exec", id}, job("ask", m.listener.Addr().String(), text)...)...)
	if err != nil {
		return fmt.Errorf("from the container to the machine: %w", err)
	}
	if strings.TrimSpace(out) != text {
		return fmt.Errorf("from the container to the machine and back came %q, want %q", out, text)
	}
	if out, err = m.ask(host, text); err != nil {
		return fmt.Errorf("from the machine to the published port: %w", err)
	}
	if out != text {
		return fmt.Errorf("from the machine to the published port and back came %q, want %q", out, text)
	}
	return s.down(ctx, id, c)
}
