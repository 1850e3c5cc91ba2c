package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"husk.dev/husk/internal/network"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/vmm"
)

// UserNetwork asks for user-mode networking.
type UserNetwork struct {
	Publish []string // as network.ParsePort takes them
	// Optional has the container start with a warning and loopback only where it cannot be had.
	Optional bool
	// DNS is the address of a name server on this machine's loopback that is asked for the guest, where it has that address;
	// empty: none.
	DNS string
}

// errUserNetwork is matched when user-mode networking cannot be set up.
var errUserNetwork = errors.New("no user-mode networking")

// checkHostNetwork refuses a container without a network namespace where nobody allowed user-mode networking for it,
// and ports for any other.
func (s *Sandbox) checkHostNetwork(plan *ocispec.Plan, r CreateRequest) error {
	ports, err := s.userPorts(r)
	if err != nil {
		return err
	}
	if plan.Network == ocispec.NetworkHost && r.User == nil && s.config.HostNetwork != "user" {
		return errHostNetwork
	}
	if plan.Network == ocispec.NetworkHost && s.config.NICIngressBPS+s.config.NICEgressBPS > 0 {
		return errors.New("nic_ingress_bps and nic_egress_bps: user-mode networking has no limits of rates")
	}
	if plan.Network != ocispec.NetworkHost && len(ports) > 0 {
		return errors.New("ports are published by user-mode networking only, and the container has a network namespace")
	}
	return nil
}

// userPorts are the ports that a container is to get.
func (s *Sandbox) userPorts(r CreateRequest) (ports []network.Port, err error) {
	var list []string
	if r.User != nil {
		list = r.User.Publish
	} else if s.config.Publish != "" {
		list = strings.Split(s.config.Publish, ",")
	}
	for _, text := range list {
		p, err := network.ParsePort(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// lendUserNetwork starts user-mode networking for a container without a network namespace.
func (s *Sandbox) lendUserNetwork(ctx context.Context, a *attempt, c *container, plan *ocispec.Plan, r CreateRequest, spec *vmm.Spec) error {
	if plan.Network != ocispec.NetworkHost {
		return nil
	}
	ports, err := s.userPorts(r)
	if err != nil {
		return err
	}
	user, err := network.StartUser(network.UserOptions{Ports: ports, UID: spec.UID})
	if err != nil {
		return fmt.Errorf("%w: %w", errUserNetwork, err)
	}
	a.undo.Add(func() error { return bounded(user.Stop) })
	spec.NICs = []vmm.NIC{user.NIC}
	a.user = user
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, err := state.Of("passt", user.PID()); err == nil {
		c.record.Helpers = append(c.record.Helpers, p)
	}
	return c.save()
}

// awaitUser waits until user-mode networking works, which begins beside the monitor.
func (s *Sandbox) awaitUser(ctx context.Context, a *attempt) error {
	if a.user == nil {
		return nil
	}
	defer s.timing.begin(ctx, "await user-mode network")()
	if err := a.user.Await(ctx); err != nil {
		return fmt.Errorf("%w: %w", errUserNetwork, err)
	}
	go s.watchUser(a, a.user)
	return nil
}

// watchUser ends the sandbox when its network dies under it.
func (s *Sandbox) watchUser(a *attempt, user *network.User) {
	if s.lostHelper(a, user.Done(), func() bool { return true }) {
		reason := "user-mode networking ended: " + user.Err().Error()
		s.log.Error("user-mode networking lost", "reason", reason)
		s.teardown(reason)
	}
}
