package nic

import (
	"errors"
	"fmt"
	"slices"
	"syscall"

	"husk.dev/husk/internal/sys/rtnl"
)

const (
	create  = syscall.NLM_F_CREATE
	replace = syscall.NLM_F_REPLACE
	appends = syscall.NLM_F_APPEND
	only    = syscall.NLM_F_EXCL
)

// here is the guest's number of an interface of the host.
func (s *setter) here(index int) int { return s.cards[uint32(index)].Index }

// card is the number of a card among those that are set up, and 0 for what is none, such as loopback.
func (s *setter) card(index int) int {
	for _, l := range s.cards {
		if l.Index == index && !l.Loopback() {
			return index
		}
	}
	return 0
}

// same takes every interface, by its number here.
func same(index int) int { return index }

// listed lists what there is of both families.
func (s *setter) listed(kind int, copied func([]byte) []byte) ([][]byte, error) {
	var all [][]byte
	for _, family := range []uint8{syscall.AF_INET, syscall.AF_INET6} {
		list, err := s.conn.List(kind, family, 0)
		if err != nil {
			return nil, err
		}
		for _, m := range list {
			if m = copied(m); m != nil {
				all = append(all, m)
			}
		}
	}
	return all, nil
}

// translate copies a request's messages with this guest's numbers of interfaces.
func (s *setter) translate(list [][]byte, copied func([]byte, rtnl.Index) []byte) [][]byte {
	var out [][]byte
	for _, m := range list {
		if m = copied(m, s.here); m != nil {
			out = append(out, m)
		}
	}
	return out
}

func contains(list [][]byte, m []byte) bool {
	return slices.ContainsFunc(list, func(other []byte) bool { return slices.Equal(other, m) })
}

// addresses makes the cards' addresses those of the request.
func (s *setter) addresses(list [][]byte) error {
	wanted := s.translate(list, rtnl.CopyAddress)
	s.done.addresses = wanted
	there, err := s.listed(syscall.RTM_GETADDR, func(m []byte) []byte { return rtnl.CopyAddress(m, same) })
	if err != nil {
		return err
	}
	for _, m := range there {
		if rtnl.CopyAddress(m, s.card) == nil || contains(wanted, m) || !s.last.had(func(a *applied) [][]byte { return a.addresses }, m) {
			continue
		}
		// A first address takes those with it that depend on it.
		if err := s.conn.Do(syscall.RTM_DELADDR, 0, m); err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s: %w", rtnl.Describe(syscall.RTM_NEWADDR, m), err)
		}
	}
	for _, m := range asAdded(wanted) {
		if contains(there, m) {
			continue
		}
		if err := s.address(m); err != nil {
			return fmt.Errorf("add address %s: %w", rtnl.Describe(syscall.RTM_NEWADDR, m), err)
		}
	}
	return nil
}

// asAdded puts addresses into the order in which they are to be added so that they are listed as they are
// here: of an interface's IPv6 addresses the kernel lists the last added first.
func asAdded(list [][]byte) [][]byte {
	list = slices.Clone(list)
	for from := 0; from < len(list); {
		to := from + 1
		for to < len(list) && alike(list[from], list[to]) {
			to++
		}
		if list[from][0] == syscall.AF_INET6 {
			slices.Reverse(list[from:to])
		}
		from = to
	}
	return list
}

// alike tells whether two addresses are of one family and interface.
func alike(a, b []byte) bool { return a[0] == b[0] && slices.Equal(a[4:8], b[4:8]) }

// address adds one. Whether somebody else has it the host has asked already: asking again would take the
// container's first second. Then it becomes one like any other.
func (s *setter) address(m []byte) error {
	const six = syscall.AF_INET6
	flags, set := rtnl.AddressFlags(m)
	if m[0] == six {
		set(flags | noDAD)
	}
	if err := s.conn.Do(syscall.RTM_NEWADDR, create|replace, m); err != nil {
		return err
	}
	if m[0] != six || flags&noDAD != 0 {
		return nil
	}
	set(flags)
	return s.conn.Do(syscall.RTM_NEWADDR, replace, m)
}

// noDAD is IFA_F_NODAD (linux/if_addr.h).
const noDAD = 2

// routes makes the routes out of the cards those of the request, and adds the others.
func (s *setter) routes(list [][]byte) error {
	wanted := s.translate(list, rtnl.CopyRoute)
	s.done.routes = wanted
	there, err := s.listed(syscall.RTM_GETROUTE, func(m []byte) []byte { return rtnl.CopyRoute(m, same) })
	if err != nil {
		return err
	}
	for _, m := range there {
		if contains(wanted, m) || !s.last.had(func(a *applied) [][]byte { return a.routes }, m) {
			continue
		}
		if s.last == nil && (!rtnl.Outgoing(m) || rtnl.CopyRoute(m, s.card) == nil) {
			continue
		}
		if err := s.conn.Do(syscall.RTM_DELROUTE, 0, m); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("remove route %s: %w", rtnl.Describe(syscall.RTM_NEWROUTE, m), err)
		}
	}
	// A gateway must be reachable when the route through it is added.
	slices.SortStableFunc(wanted, func(a, b []byte) int { return direct(a) - direct(b) })
	for len(wanted) > 0 {
		var again [][]byte
		var failed error
		for _, m := range wanted {
			if contains(there, m) {
				continue
			}
			if err := s.conn.Do(syscall.RTM_NEWROUTE, create|appends, m); err != nil && !errors.Is(err, syscall.EEXIST) {
				again = append(again, m)
				failed = fmt.Errorf("add route %s: %w", rtnl.Describe(syscall.RTM_NEWROUTE, m), err)
			}
		}
		if len(again) == len(wanted) {
			return failed
		}
		wanted = again
	}
	return nil
}

func direct(m []byte) int {
	if rtnl.Direct(m) {
		return 0
	}
	return 1
}

// neighbors makes the neighbours that a request has set those of this one.
func (s *setter) neighbors(list [][]byte) error {
	s.done.neighbors = s.translate(list, rtnl.CopyNeighbor)
	for _, m := range s.stale(s.done.neighbors, func(a *applied) [][]byte { return a.neighbors }) {
		if err := s.conn.Do(syscall.RTM_DELNEIGH, 0, m); err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENODEV) && !errors.Is(err, syscall.EINVAL) {
			return fmt.Errorf("remove neighbour %s: %w", rtnl.Describe(syscall.RTM_NEWNEIGH, m), err)
		}
	}
	for _, m := range s.done.neighbors {
		if err := s.conn.Do(syscall.RTM_NEWNEIGH, create|replace, m); err != nil {
			return fmt.Errorf("add neighbour %s: %w", rtnl.Describe(syscall.RTM_NEWNEIGH, m), err)
		}
	}
	return nil
}

// stale is what the last request has set and this one lacks.
func (s *setter) stale(wanted [][]byte, of func(*applied) [][]byte) (out [][]byte) {
	if s.last == nil {
		return nil
	}
	for _, m := range of(s.last) {
		if !contains(wanted, m) {
			out = append(out, m)
		}
	}
	return out
}

// rules makes the routing rules that a request has set those of this one.
func (s *setter) rules(list [][]byte) error {
	for _, m := range list {
		if m = rtnl.CopyRule(m); m != nil {
			s.done.rules = append(s.done.rules, m)
		}
	}
	old := s.stale(s.done.rules, func(a *applied) [][]byte { return a.rules })
	if len(s.done.rules)+len(old) == 0 {
		return nil
	}
	there, err := s.listed(syscall.RTM_GETRULE, rtnl.CopyRule)
	if err != nil {
		return err
	}
	for _, m := range old {
		if err := s.conn.Do(syscall.RTM_DELRULE, 0, m); err != nil && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("remove routing rule: %w", err)
		}
	}
	for _, m := range s.done.rules {
		if contains(there, m) {
			continue
		}
		if err := s.conn.Do(syscall.RTM_NEWRULE, create|only, m); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("add routing rule: %w", err)
		}
	}
	return nil
}
