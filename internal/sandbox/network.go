package sandbox

import (
	"context"
	"errors"

	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/network"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/vmm"
)

// errHostNetwork refuses a container without a network namespace.
var errHostNetwork = errors.New("the configuration has no network namespace, which asks for the host's network: a virtual machine cannot have that (add the namespace to linux.namespaces)")

// maxQueues bounds the queues of a network card: the buffers of each take 0.4 MiB of the guest's memory.
const maxQueues = 8

// lendNetwork takes over the interfaces of the container's network namespace and gives the VM cards for them.
func (s *Sandbox) lendNetwork(a *attempt, c *container, plan *ocispec.Plan, spec *vmm.Spec) error {
	if plan.Network != ocispec.NetworkPath {
		return nil
	}
	defer s.timing.begin("attach network")()
	c.mu.Lock()
	c.record.NetNS = plan.NetNS // before there is anything to clean up
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	net, err := network.Attach(plan.NetNS, min(spec.VCPUs, maxQueues))
	if err != nil {
		return err
	}
	spec.NICs = net.NICs
	a.undo.Add(net.Close)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.network = net.Guest
	return nil
}

// setNetwork tells the guest what its interfaces are.
func (s *Sandbox) setNetwork(ctx context.Context) error {
	s.mu.Lock()
	request := s.network
	s.mu.Unlock()
	if request == nil {
		return nil
	}
	defer s.timing.begin("set up guest network")()
	ctx, cancel := guest.Bound(ctx)
	defer cancel()
	if _, err := s.client().SetNetwork(ctx, request); err != nil {
		return explain(err, "set up the guest's network")
	}
	return nil
}
