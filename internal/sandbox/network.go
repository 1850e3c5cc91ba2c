package sandbox

import (
	"context"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/network"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/vmm"
)

// errHostNetwork refuses a container without a network namespace.
var errHostNetwork = errors.New("the configuration has no network namespace, which asks for the host's network: a virtual machine cannot have that (add the namespace to linux.namespaces, or set host_network to \"user\" in husk's configuration for user-mode networking)")

// lendNetwork takes over the interfaces of the container's network namespace and gives the VM cards for them.
func (s *Sandbox) lendNetwork(ctx context.Context, a *attempt, c *container, plan *ocispec.Plan, spec *vmm.Spec) error {
	if plan.Network != ocispec.NetworkPath {
		return nil
	}
	defer s.timing.begin(ctx, "attach network")()
	c.mu.Lock()
	c.record.NetNS = plan.NetNS // before there is anything to clean up
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	taken, err := network.Attach(plan.NetNS, network.Options{
		Queues: vmm.Queues(spec.VCPUs), Ingress: int64(s.config.NICIngressBPS), Egress: int64(s.config.NICEgressBPS),
		Saved: spec.From != nil && spec.From.Card == vmm.TapCard,
	})
	if err != nil {
		return err
	}
	spec.NICs = taken.NICs
	a.undo.Add(taken.Close)
	a.network = taken
	return nil
}

// fitNetwork gives a further container the network that it asks for, of those there are: the VM's, or one of its own
// with loopback only.
func (s *Sandbox) fitNetwork(c *container, plan *ocispec.Plan) error {
	s.mu.Lock()
	first := s.pod.plan
	s.mu.Unlock()
	switch plan.Network {
	case ocispec.NetworkNew:
		c.mu.Lock()
		c.alone = true
		c.mu.Unlock()
		ocispec.Namespace(plan.Spec, specs.NetworkNamespace).Path = ""
		return nil
	case ocispec.NetworkHost:
		if first.Network == ocispec.NetworkHost {
			return nil
		}
		return errHostNetwork
	}
	if id := s.byHostPID(ocispec.NamespacePID(plan.NetNS)); id != "" {
		if other, err := s.container(id); err == nil {
			other.mu.Lock()
			defer other.mu.Unlock()
			if other.alone {
				return fmt.Errorf("container %q has a network of its own in the virtual machine, which no other can join", id)
			}
		}
		return nil
	}
	if same, err := sys.SameNetwork(plan.NetNS, first.NetNS); err == nil && same {
		return nil
	}
	return fmt.Errorf("the network namespace %s is another one than that of the virtual machine which the container is to join: it has one network", plan.NetNS)
}
