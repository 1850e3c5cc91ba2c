package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/child"
	"husk.dev/husk/internal/sys/rtnl"
	"husk.dev/husk/internal/vmm"
)

// What a guest on user-mode networking has.
const (
	userAddress = UserIP + "/24"
	userGateway = "10.0.2.2"
	// userLinkLocal is the address that the kernel makes of vmm.StreamMAC.
	userLinkLocal = "fe80::468:75ff:fe73:6b00/64"
	// UserIP is its address.
	UserIP = "10.0.2.15"
	// UserDNS is where it asks for names; what it asks is passed to the host's own name server.
	UserDNS = "10.0.2.3"
	// userReady bounds the wait for passt to begin.
	userReady = 10 * time.Second
	// userSaid bounds what is kept of passt's words, in bytes.
	userSaid = 16384
)

// Port is a port of the host that is brought into a guest.
type Port struct {
	Address     netip.Addr // of the host; not valid: all
	Host, Guest uint16
	UDP         bool
}

// ParsePort takes [ADDRESS:]HOST:GUEST[/tcp|/udp]; an IPv6 address is in brackets.
func ParsePort(text string) (p Port, err error) {
	wrong := fmt.Errorf("port %q: must be [ADDRESS:]HOST:GUEST[/tcp|/udp]", text)
	rest, protocol, _ := strings.Cut(text, "/")
	switch protocol {
	case "", "tcp":
	case "udp":
		p.UDP = true
	default:
		return p, wrong
	}
	at := strings.LastIndexByte(rest, ':')
	if at < 0 {
		return p, wrong
	}
	guest := rest[at+1:]
	rest = rest[:at]
	if at = strings.LastIndexByte(rest, ':'); at >= 0 {
		if p.Address, err = netip.ParseAddr(strings.Trim(rest[:at], "[]")); err != nil || p.Address.Zone() != "" {
			return p, wrong
		}
		rest = rest[at+1:]
	}
	for _, n := range []struct {
		to   *uint16
		text string
	}{{&p.Host, rest}, {&p.Guest, guest}} {
		number, err := strconv.ParseUint(n.text, 10, 16)
		if err != nil || number == 0 {
			return p, wrong
		}
		*n.to = uint16(number)
	}
	return p, nil
}

// flag is the port as passt has it.
func (p Port) flag() []string {
	flag, spec := "-t", fmt.Sprintf("%d:%d", p.Host, p.Guest)
	if p.UDP {
		flag = "-u"
	}
	if p.Address.IsValid() {
		spec = p.Address.String() + "/" + spec
	}
	return []string{flag, spec}
}

// UserOptions is what user-mode networking is started with.
type UserOptions struct {
	Binary string // of passt; empty: the one on PATH
	Ports  []Port
	UID    uint32 // that passt runs as; 0 keeps the caller's
}

// User is a process of passt, which translates between the frames of a guest and sockets of the host. It needs no
// rights, cages itself in namespaces of its own behind a seccomp filter, and ends with the VM.
type User struct {
	// NIC is the VM's network card. Whoever starts the VM takes over its file.
	NIC   vmm.NIC
	cmd   *exec.Cmd
	done  chan struct{}
	begun *os.File // what passt writes to once it works
	said  words
	err   error // how it ended; written before done is closed
}

// words keeps the first bytes of what a process says.
type words struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.Write(p[:min(len(p), userSaid-w.text.Len())])
	return len(p), nil
}

// String is what was said but for what it says because there is no system log, in one line.
func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var kept []string
	for _, line := range strings.Split(w.text.String(), "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "Failed to send ") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "; ")
}

// The kernel's tables of routes of the thread's network namespace (proc(5)).
const routes4, routes6 = "/proc/thread-self/net/route", "/proc/thread-self/net/ipv6_route"

var errNoPasst = errors.New("user-mode networking needs the program passt, which is not on PATH (on Debian: apt install passt)")

// UserReady returns why user-mode networking cannot be had in the network namespace of this process, nil where it looks as
// if it could.
func UserReady() error {
	if _, err := exec.LookPath("passt"); err != nil {
		return errNoPasst
	}
	four, err := os.ReadFile(routes4)
	if err != nil {
		return fmt.Errorf("user-mode networking: %w", err)
	}
	six, err := os.ReadFile(routes6)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel may lack IPv6
		return fmt.Errorf("user-mode networking: %w", err)
	}
	if !defaultRoute4(string(four)) && !defaultRoute6(string(six)) {
		return errors.New("this machine has no default route, which user-mode networking needs")
	}
	return nil
}

// defaultRoute4 tells whether /proc/net/route has a route to everywhere.
func defaultRoute4(table string) bool {
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" && f[0] != "lo" {
			return true
		}
	}
	return false
}

// defaultRoute6 is the same for /proc/net/ipv6_route, where the kernel has one of lo's that leads nowhere.
func defaultRoute6(table string) bool {
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) > 9 && strings.Trim(f[0], "0") == "" && f[1] == "00" && f[9] != "lo" {
			return true
		}
	}
	return false
}

// UserHost is the address by which a guest on user-mode networking reaches this machine.
func UserHost() (netip.Addr, error) {
	conn, err := net.Dial("udp", "192.0.2.1:9") // which sends nothing, and chooses the address that is sent from
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find this machine's address: %w", err)
	}
	defer conn.Close()
	return netip.MustParseAddrPort(conn.LocalAddr().String()).Addr(), nil
}

// StartUser starts user-mode networking in the network namespace of this process. See Await.
func StartUser(o UserOptions) (*User, error) {
	binary := o.Binary
	if binary == "" {
		binary = "passt"
	}
	path, err := exec.LookPath(binary)
	if err != nil {
		return nil, errNoPasst
	}
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	ready, begun, err := os.Pipe()
	if err != nil {
		ours.Close()
		return nil, err
	}
	if o.UID != 0 { // passt opens it again, as that user
		if err := begun.Chown(int(o.UID), int(o.UID)); err != nil {
			ours.Close()
			begun.Close()
			ready.Close()
			return nil, err
		}
	}
	u := &User{done: make(chan struct{}), begun: ready, cmd: exec.Command(path, userArgs(o)...)}
	u.cmd.Env, u.cmd.Dir, u.cmd.Stderr = []string{"LC_ALL=C"}, "/", &u.said
	u.cmd.ExtraFiles = []*os.File{theirs, begun}
	u.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	u.cmd.WaitDelay = time.Second
	err = child.Start(u.cmd)
	begun.Close()
	if err != nil {
		ours.Close()
		ready.Close()
		return nil, fmt.Errorf("run %s: %w", path, err)
	}
	go func() {
		defer close(u.done)
		u.err = u.cmd.Wait()
	}()
	u.NIC = vmm.NIC{Name: "eth0", MAC: vmm.StreamMAC, MTU: vmm.StreamMTU, Stream: ours}
	return u, nil
}

// Descriptors that passt finds open.
const (
	userSocket = 3 + iota
	userBegun
)

func userArgs(o UserOptions) []string {
	address, mask, _ := strings.Cut(userAddress, "/")
	args := []string{
		"--foreground", "--stderr", "--quiet", "--fd", strconv.Itoa(userSocket), "--pid", fmt.Sprintf("/proc/self/fd/%d", userBegun),
		// A guest is not to reach what listens on the host's loopback only.
		"--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--mtu", strconv.Itoa(vmm.StreamMTU),
		"--address", address, "--netmask", mask, "--gateway", userGateway, "--dns-forward", UserDNS,
	}
	if o.UID != 0 {
		args = append(args, "--runas", fmt.Sprintf("%d:%d", o.UID, o.UID))
	}
	for _, p := range o.Ports {
		args = append(args, p.flag()...)
	}
	return args
}

// pair makes a connected pair of sockets.
func pair() (ours, theirs *os.File, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a network socket: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "network"), os.NewFile(uintptr(fds[1]), "network"), nil
}

// Await waits until passt has written its pid, which it does when all is set up. It is called once.
func (u *User) Await(ctx context.Context) error {
	ready := u.begun
	defer ready.Close()
	if err := ready.SetReadDeadline(time.Now().Add(userReady)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })
	defer stop()
	if n, err := ready.Read(make([]byte, 16)); n == 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("passt is not ready within %v", userReady)
		}
		<-u.done // it has closed its end of the pipe
		return u.Err()
	}
	return nil
}

// UserGuest is what a guest on user-mode networking is told. Where the host has IPv6 it hears of an address and a gateway from
// passt, as from a router: its kernel asks for one from time to time, in a guest that was saved too.
func UserGuest() *agentv1.SetNetworkRequest {
	const loopback, index = 1, 2
	mac := vmm.StreamMAC
	r := &agentv1.SetNetworkRequest{
		Interfaces: []*agentv1.Interface{
			{Index: loopback, Name: "lo", Up: true},
			{Index: index, Name: "eth0", Mac: mac, Device: mac, Mtu: vmm.StreamMTU, Queue: 1000, Up: true},
		},
	}
	for _, address := range []string{userAddress, userLinkLocal} {
		p := netip.MustParsePrefix(address)
		r.Addresses = append(r.Addresses, rtnl.MakeAddress(index, p))
		r.Routes = append(r.Routes, rtnl.MakeLinkRoute(index, p))
	}
	r.Routes = append(r.Routes, rtnl.MakeDefaultRoute(index, netip.MustParseAddr(userGateway)))
	return r
}

// UnconnectedUser returns the card of a VM on user-mode networking with nobody at the other end of its socket, which end
// closes: it is to be there for as long as the VM.
func UnconnectedUser() (nic vmm.NIC, end func() error, err error) {
	ours, theirs, err := pair()
	if err != nil {
		return nic, nil, err
	}
	return vmm.NIC{Name: "eth0", MAC: vmm.StreamMAC, MTU: vmm.StreamMTU, Stream: ours}, theirs.Close, nil
}

// PID is passt's.
func (u *User) PID() int { return u.cmd.Process.Pid }

// Done is closed when passt has ended.
func (u *User) Done() <-chan struct{} { return u.done }

// Err says how passt ended, with what it said. Valid once Done is closed.
func (u *User) Err() error {
	how := "it ended"
	if u.err != nil {
		how = u.err.Error()
	}
	if said := u.said.String(); said != "" {
		how += ": " + said
	}
	return fmt.Errorf("passt: %s", how)
}

// Stop ends passt.
func (u *User) Stop(ctx context.Context) error {
	_ = u.cmd.Process.Kill() // an error says that it has ended
	select {
	case <-u.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop passt: %w", ctx.Err())
	}
}
