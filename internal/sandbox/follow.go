package sandbox

import (
	"context"
	"net"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/network"
	"husk.dev/husk/internal/vmm"
)

// plugger is a running VM as its network sees it.
type plugger struct {
	vmm.NICPlugger
	client *guest.Client
}

// SetNetwork tells the guest what its interfaces are.
func (p plugger) SetNetwork(ctx context.Context, r *agentv1.SetNetworkRequest) error {
	ctx, cancel := guest.Bound(ctx)
	defer cancel()
	if _, err := p.client.SetNetwork(ctx, r); err != nil {
		return explain(err, "set up the guest's network")
	}
	return nil
}

// noPlugs stands for a driver that plugs nothing.
type noPlugs struct{}

func (noPlugs) PlugNIC(_ context.Context, nic vmm.NIC) error {
	vmm.CloseNICs([]vmm.NIC{nic})
	return vmm.ErrNotSupported
}

func (noPlugs) UnplugNIC(context.Context, net.HardwareAddr) error { return vmm.ErrNotSupported }

// setNetwork tells the guest what its interfaces are, and has it follow their changes from then on.
func (s *Sandbox) setNetwork(ctx context.Context, a *attempt, vm vmm.VM, from *vmm.Snapshot) error {
	if a.network == nil && a.user == nil {
		return nil
	}
	// A guest that was saved with such a card was told before.
	if a.user != nil && from != nil && from.Card == vmm.StreamCard {
		return nil
	}
	defer s.timing.begin(ctx, "set up guest network")()
	if a.user != nil {
		return plugger{client: s.client()}.SetNetwork(ctx, network.UserGuest())
	}
	p := plugger{NICPlugger: noPlugs{}, client: s.client()}
	if able, ok := vm.(vmm.NICPlugger); ok {
		p.NICPlugger = able
	}
	if err := p.SetNetwork(ctx, a.network.Guest); err != nil {
		return err
	}
	following, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.network.Follow(following, p, s.log)
	}()
	a.undo.Add(func() error {
		cancel()
		a.network.Unfollow()
		<-ended
		return nil
	})
	return nil
}
