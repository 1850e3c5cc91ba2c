// Package forward passes connections to the loopback of a pod's network namespace on to its guest. Engines forward ports that
// way: they enter the namespace, where nothing of the pod listens, and connect to localhost.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/sys"
)

const (
	// ruleWait bounds one call of iptables, which waits for others of its kind.
	ruleWait = 5 * time.Second
	// acceptPause is how long nothing is accepted after an error.
	acceptPause = 100 * time.Millisecond
	// maxForwards bounds the connections that are passed on at a time.
	maxForwards = 256
)

// Guest connects to ports of its own loopback.
type Guest interface {
	Connect(ctx context.Context, port uint16) (net.Conn, error)
}

// Forwarder is what passes connections on.
type Forwarder struct {
	guest     Guest
	log       *slog.Logger
	network   string // path of the namespace
	listeners []net.Listener
	rules     [][]string // commands that take back what was set
	slots     chan struct{}
}

// families are those of the loopback: its address and the program that redirects what goes there.
var families = []struct{ network, address, program string }{
	{"tcp4", "127.0.0.1", "iptables"}, {"tcp6", "::1", "ip6tables"},
}

// start begins to pass on connections. Where the machine lacks what that takes, pods have no port forwarding.
func start(guest Guest, path string, log *slog.Logger) *Forwarder {
	f := &Forwarder{guest: guest, log: log, network: path, slots: make(chan struct{}, maxForwards)}
	err := sys.InNetwork(path, func() error {
		var errs []error
		for _, family := range families {
			errs = append(errs, f.redirect(family.network, family.address, family.program))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		log.Warn("ports of the pod cannot be forwarded in full", "error", err)
	}
	for _, l := range f.listeners {
		go f.accept(l)
	}
	return f
}

// redirect listens on a port of the namespace's loopback and has all connections to others there end up at it. It is
// called in the namespace.
func (f *Forwarder) redirect(network, address, program string) error {
	listener, err := net.Listen(network, net.JoinHostPort(address, "0"))
	if err != nil {
		return fmt.Errorf("listen in the pod's network: %w", err)
	}
	port := strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
	rule := []string{"OUTPUT", "-o", "lo", "-p", "tcp", "-d", address, "-j", "REDIRECT", "--to-ports", port}
	if err := iptables(program, "-A", rule); err != nil {
		listener.Close()
		return err
	}
	f.listeners = append(f.listeners, listener)
	f.rules = append(f.rules, append([]string{program}, rule...))
	return nil
}

func iptables(program, verb string, rule []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), ruleWait)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, append([]string{"-w", "-t", "nat", verb}, rule...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("redirect the pod's loopback with %s: %w: %.200s", program, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (f *Forwarder) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // of this connection, or for want of descriptors
			time.Sleep(acceptPause)
			continue
		}
		f.slots <- struct{}{}
		go func() {
			defer func() { <-f.slots }()
			defer conn.Close()
			if err := f.pass(conn.(*net.TCPConn)); err != nil {
				f.log.Info("forward port", "error", err)
				_ = conn.(*net.TCPConn).SetLinger(0) // refuses it, as a port on which nothing listens does
			}
		}()
	}
}

// pass joins a connection to the guest's port of the same number.
func (f *Forwarder) pass(conn *net.TCPConn) error {
	port, err := sys.OriginalPort(conn)
	if err != nil {
		return err
	}
	guest, err := f.guest.Connect(context.Background(), port)
	if err != nil {
		return err
	}
	defer guest.Close()
	go func() {
		_, _ = io.Copy(guest, conn) // an error is an end
		guest.Close()
	}()
	_, _ = io.Copy(conn, guest)
	return nil
}

// Pod begins to forward ports where spec is that of the first container of a pod with a network, while the virtual machine
// starts. What it sends is nil for others.
func Pod(guest Guest, spec *specs.Spec, log *slog.Logger) <-chan *Forwarder {
	made := make(chan *Forwarder, 1)
	ns := ocispec.Namespace(spec, specs.NetworkNamespace)
	if ns == nil || ns.Path == "" || !ocispec.ForwardsPorts(spec) {
		made <- nil
		return made
	}
	own, err := isOwn(ns.Path)
	if err != nil || own { // the virtual machine is refused then
		log.Debug("ports of the pod are not forwarded", "network", ns.Path, "error", err)
		made <- nil
		return made
	}
	go func() { made <- start(guest, ns.Path, log) }()
	return made
}

// isOwn tells whether path is the network namespace that this process is in: an engine names the host's like any other.
func isOwn(path string) (bool, error) {
	other, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return false, err
	}
	return os.SameFile(own, other), nil
}

// Close ends the forwarding and takes back the rules, where the namespace is still there.
func (f *Forwarder) Close() {
	if f == nil {
		return
	}
	for _, l := range f.listeners {
		l.Close()
	}
	err := sys.InNetwork(f.network, func() error {
		var errs []error
		for _, rule := range f.rules {
			errs = append(errs, iptables(rule[0], "-D", rule[1:]))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		f.log.Debug("take back the forwarding of ports", "error", err)
	}
}
