// Package nic makes the guest's network what the host says: its cards become the interfaces that the
// container is to see, with their names, addresses, routes and neighbours.
package nic

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/sys/rtnl"
)

// Bounds of a request.
const (
	maxInterfaces = 64
	maxAddresses  = 4096
	maxRoutes     = 16384
	maxMessage    = 4096 // bytes of one address, route, neighbour or rule
	maxName       = 15   // IFNAMSIZ less the final zero
)

// leastIPv6 is the MTU without which there is no IPv6 (RFC 8200, section 5).
const leastIPv6 = 1280

// cardWait bounds the wait for a card that was just plugged in, and cardCheck is how often it is looked for.
const (
	cardWait  = 5 * time.Second
	cardCheck = 20 * time.Millisecond
)

// Errors that callers tell apart.
var (
	ErrInvalid = errors.New("invalid network")
	ErrNoCard  = errors.New("no network card")
)

// Network is the guest's network as it was last set.
type Network struct {
	mu    sync.Mutex
	last  *applied       // guarded by mu: nil before the first request
	found map[string]int // guarded by mu: this guest's number of each card, by the MAC address it was plugged with
	// left are the interfaces that there were when the guest was about to be saved. They need not be listed again when that
	// wakes up; addresses must be, which routers may give to one that is turned on. Guarded by mu, nil once that is long ago.
	left []rtnl.Link
}

// applied is what a request has set, with this guest's numbers of interfaces.
type applied struct {
	interfaces                          map[uint32]*agentv1.Interface // by this guest's number
	addresses, routes, neighbors, rules [][]byte
}

// had tells whether an earlier request set what one of the lists holds. Before the first, all that is there is to
// be as the request says.
func (a *applied) had(list func(*applied) [][]byte, m []byte) bool {
	return a == nil || contains(list(a), m)
}

// add adds what a request has set that failed.
func (a *applied) add(b *applied) {
	for index := range b.interfaces { // how far it got is not known
		delete(a.interfaces, index)
	}
	for _, lists := range []struct{ to, from *[][]byte }{
		{&a.addresses, &b.addresses}, {&a.routes, &b.routes}, {&a.neighbors, &b.neighbors}, {&a.rules, &b.rules},
	} {
		for _, m := range *lists.from {
			if !contains(*lists.to, m) {
				*lists.to = append(*lists.to, m)
			}
		}
	}
}

// Apply makes the interfaces that the request names what it says, and leaves others alone. It may be called
// again: what an earlier request has set and this one lacks is removed then, and what the containers have set
// themselves stays. The loopback interface only gains.
func (n *Network) Apply(ctx context.Context, r *agentv1.SetNetworkRequest) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := check(r); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	conn, err := rtnl.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	s := &setter{
		conn: conn, cards: map[uint32]rtnl.Link{}, found: n.found, last: n.last, left: n.left,
		done: &applied{interfaces: map[uint32]*agentv1.Interface{}},
	}
	if err := s.find(ctx, r.GetInterfaces()); err != nil {
		return err
	}
	n.found, n.left = s.found, nil
	err = s.set(r)
	switch {
	case err == nil:
		n.last = s.done
	case n.last != nil: // after a failed first one, all that is there is still to be looked at
		n.last.add(s.done)
	}
	return err
}

// Rest makes the next request the first, for a guest that is about to be saved. Cards that were found stay known.
func (n *Network) Rest() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last = nil
	conn, err := rtnl.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	n.left, err = conn.Links()
	return err
}

// set sets up the interfaces that were found, in the order in which one thing needs the other.
func (s *setter) set(r *agentv1.SetNetworkRequest) error {
	if err := s.leave(); err != nil {
		return err
	}
	if err := s.rename(r.GetInterfaces()); err != nil {
		return err
	}
	if err := sysctls(r.GetSysctls()); err != nil {
		return err
	}
	for _, i := range r.GetInterfaces() {
		if err := s.prepare(i); err != nil {
			return fmt.Errorf("set up interface %s: %w", i.GetName(), err)
		}
	}
	if err := s.addresses(r.GetAddresses()); err != nil {
		return err
	}
	for _, i := range r.GetInterfaces() {
		if err := s.finish(i); err != nil {
			return fmt.Errorf("set up interface %s: %w", i.GetName(), err)
		}
	}
	if err := s.routes(r.GetRoutes()); err != nil {
		return err
	}
	if err := s.neighbors(r.GetNeighbors()); err != nil {
		return err
	}
	return s.rules(r.GetRules())
}

func check(r *agentv1.SetNetworkRequest) error {
	names, indices := map[string]bool{}, map[uint32]bool{}
	for _, i := range r.GetInterfaces() {
		name := i.GetName()
		switch {
		case name == "" || len(name) > maxName || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r\x00%"):
			return fmt.Errorf("interface name %q", name)
		case names[name] || indices[i.GetIndex()] || i.GetIndex() == 0 || i.GetIndex() > 1<<31-1:
			return fmt.Errorf("interface %s (%d): another has its name or number", name, i.GetIndex())
		case len(i.GetDevice()) != 0 && (len(i.GetDevice()) != 6 || len(i.GetMac()) != 6):
			return fmt.Errorf("interface %s: MAC address", name)
		case i.GetMtu() > 65535 && len(i.GetDevice()) != 0:
			return fmt.Errorf("interface %s: MTU %d", name, i.GetMtu())
		}
		names[name], indices[i.GetIndex()] = true, true
	}
	for _, one := range r.GetSysctls() {
		if !strings.HasPrefix(one.GetPath(), "net/") || !filepath.IsLocal(one.GetPath()) || filepath.Clean(one.GetPath()) != one.GetPath() || len(one.GetPath())+len(one.GetValue()) > maxMessage {
			return fmt.Errorf("setting %q", one.GetPath())
		}
	}
	for _, list := range []struct {
		what string
		is   [][]byte
		most int
	}{
		{"interfaces", make([][]byte, len(r.GetInterfaces())), maxInterfaces}, {"addresses", r.GetAddresses(), maxAddresses},
		{"routes", r.GetRoutes(), maxRoutes}, {"neighbors", r.GetNeighbors(), maxRoutes}, {"rules", r.GetRules(), maxAddresses},
		{"settings", make([][]byte, len(r.GetSysctls())), maxAddresses},
	} {
		if len(list.is) > list.most {
			return fmt.Errorf("%d %s: at most %d", len(list.is), list.what, list.most)
		}
		for _, m := range list.is {
			if len(m) > maxMessage {
				return fmt.Errorf("%s: an entry of %d bytes", list.what, len(m))
			}
		}
	}
	return nil
}

// setter sets up one request's interfaces.
type setter struct {
	conn  *rtnl.Conn
	cards map[uint32]rtnl.Link // this guest's, by the host's number
	found map[string]int       // numbers of this guest, as in Network
	last  *applied             // what was set before
	left  []rtnl.Link          // nil: to be listed
	done  *applied             // what is set now
}

// find waits until all cards are there.
func (s *setter) find(ctx context.Context, wanted []*agentv1.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, cardWait)
	defer cancel()
	links := s.left
	for wait := time.Millisecond; ; wait, links = min(2*wait, cardCheck), nil {
		if links == nil {
			var err error
			if links, err = s.conn.Links(); err != nil {
				return err
			}
		}
		missing, found := "", map[string]int{}
		for _, i := range wanted {
			if l, ok := match(links, i.GetDevice(), s.found); ok {
				s.cards[i.GetIndex()] = l
				found[string(i.GetDevice())] = l.Index
			} else {
				missing = fmt.Sprintf("%s (%x)", i.GetName(), i.GetDevice())
			}
		}
		if missing == "" {
			s.found = found
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("find interface %s: %w", missing, ErrNoCard)
		}
	}
}

// match finds the card that was plugged with a MAC address, or the loopback interface. A card that was found before is
// known by its number: it may have another address by now.
func match(links []rtnl.Link, device []byte, found map[string]int) (rtnl.Link, bool) {
	known, others := found[string(device)], map[int]bool{}
	for other, index := range found {
		others[index] = other != string(device)
	}
	for _, l := range links {
		if l.Index == known {
			return l, true
		}
	}
	for _, l := range links {
		if others[l.Index] { // whatever address it has by now
			continue
		}
		if len(device) == 0 {
			if l.Loopback() {
				return l, true
			}
			continue
		}
		made := l.Permanent
		if made == nil {
			made = l.MAC
		}
		if l.Kind == "" && bytes.Equal(made, device) {
			return l, true
		}
	}
	return rtnl.Link{}, false
}

// sysctls sets the network's settings, less those that this kernel lacks or does not let go of its own value of.
func sysctls(list []*agentv1.Sysctl) error {
	for _, one := range list {
		path := filepath.Join("/proc/sys", one.GetPath())
		now, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || err == nil && strings.Join(strings.Fields(string(now)), " ") == one.GetValue() {
			continue
		}
		if err := os.WriteFile(path, []byte(one.GetValue()), 0); err != nil {
			return fmt.Errorf("set %s to %q: %w", one.GetPath(), one.GetValue(), err)
		}
	}
	return nil
}

// leave lets go of the cards that the last request had set up and this one does not name: they are about to be
// unplugged.
func (s *setter) leave() error {
	if s.last == nil {
		return nil
	}
	links, err := s.conn.Links()
	if err != nil {
		return err
	}
	for _, l := range links {
		if i := s.last.interfaces[uint32(l.Index)]; len(i.GetDevice()) != 0 && s.card(l.Index) == 0 {
			if err := sys.ReleaseCard(l.Name); err != nil {
				return fmt.Errorf("interface %s: %w", l.Name, err)
			}
		}
	}
	return nil
}

// rename gives the cards their names. A name that a card is to have may be that of another one still.
func (s *setter) rename(wanted []*agentv1.Interface) error {
	for _, pass := range []string{"husk-%d", ""} {
		for _, i := range wanted {
			l := s.cards[i.GetIndex()]
			if l.Name == i.GetName() || l.Loopback() {
				continue
			}
			if l.Up() { // its name is fixed then
				if err := s.conn.SetLink(l.Index, rtnl.Change{Clear: syscall.IFF_UP}); err != nil {
					return fmt.Errorf("turn interface %s off: %w", l.Name, err)
				}
			}
			name := i.GetName()
			if pass != "" {
				name = fmt.Sprintf(pass, l.Index)
			}
			if err := s.conn.SetLink(l.Index, rtnl.Change{Name: name}); err != nil {
				return fmt.Errorf("rename interface %s to %s: %w", l.Name, name, err)
			}
			l.Name = name
			l.Flags &^= syscall.IFF_UP
			s.cards[i.GetIndex()] = l
		}
	}
	return nil
}

// prepare sets an interface up to where addresses can be added. It makes itself no link-local address yet: the
// host's list has that too, and no time is lost with asking who else has it.
func (s *setter) prepare(i *agentv1.Interface) error {
	l := s.cards[i.GetIndex()]
	if s.settled(l, i) {
		return nil
	}
	if l.Loopback() {
		return s.turn(l, syscall.IFF_UP, 0, rtnl.Change{})
	}
	if !l.NoLinkLocal {
		err := s.conn.SetLinkLocal(l.Index, false)
		l.NoLinkLocal = err == nil
		if err := ignoreFamily(err); err != nil {
			return err
		}
	}
	if l.IPv6Off != i.GetIpv6Off() {
		value := "0"
		if i.GetIpv6Off() {
			value = "1"
		}
		path := filepath.Join("/proc/sys/net/ipv6/conf", i.GetName(), "disable_ipv6")
		if err := os.WriteFile(path, []byte(value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	var change rtnl.Change
	if l.MTU != int(i.GetMtu()) {
		change.MTU = int(i.GetMtu())
	}
	if l.Queue != int(i.GetQueue()) {
		change.Queue = int(i.GetQueue())
	}
	if !bytes.Equal(l.MAC, i.GetMac()) {
		change.MAC = i.GetMac()
	}
	var set uint32
	if i.GetNoArp() {
		set |= syscall.IFF_NOARP
	}
	if i.GetUp() {
		set |= syscall.IFF_UP
	}
	// It would make itself one when it is turned on, and that it is. With packets too small IPv6 leaves it.
	change.LinkLocal = l.NoLinkLocal && l.Up() && i.GetUp() && !i.GetNoLinkLocal() && i.GetMtu() >= leastIPv6
	if err := s.turn(l, set, (syscall.IFF_NOARP|syscall.IFF_UP)&^set, change); err != nil {
		return err
	}
	l.NoLinkLocal = l.NoLinkLocal && !change.LinkLocal
	s.cards[i.GetIndex()] = l
	return nil
}

// turn changes what there is to be changed of an interface, flags that it does not have as they are to be among that.
func (s *setter) turn(l rtnl.Link, set, clear uint32, change rtnl.Change) error {
	change.Set, change.Clear = set&^l.Flags, clear&l.Flags
	if change.Set|change.Clear == 0 && change.MTU == 0 && change.Queue == 0 && change.MAC == nil && !change.LinkLocal {
		return nil
	}
	return s.conn.SetLink(l.Index, change)
}

// settled tells whether the last request set the interface up just so.
func (s *setter) settled(l rtnl.Link, i *agentv1.Interface) bool {
	return s.last != nil && proto.Equal(s.last.interfaces[uint32(l.Index)], i)
}

// finish lets an interface make itself link-local addresses from now on.
func (s *setter) finish(i *agentv1.Interface) error {
	l := s.cards[i.GetIndex()]
	settled := s.settled(l, i)
	s.done.interfaces[uint32(l.Index)] = i
	if l.Loopback() || i.GetNoLinkLocal() || settled || !l.NoLinkLocal {
		return nil
	}
	return ignoreFamily(s.conn.SetLinkLocal(l.Index, true))
}

// ignoreFamily drops the error of a kernel without IPv6.
func ignoreFamily(err error) error {
	if errors.Is(err, syscall.EAFNOSUPPORT) {
		return nil
	}
	return err
}
