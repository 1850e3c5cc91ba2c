package template

import (
	"context"
	"errors"
	"fmt"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/vmm"
)

// Rehearsal is a container that a template's guest makes and removes before it is saved. What kernel and agent
// do once, for the first container, they have then done: every VM that starts from the template is spared it.
type Rehearsal struct {
	Disks  []vmm.Disk // of its root; no Pmem, at most vmm.SavedDisks
	Rootfs *agentv1.Rootfs
	Spec   []byte // its OCI configuration, whose program is there and is never run
}

// rehearsalID is what the container is called.
const rehearsalID = "rehearsal"

// cardName is what a template's network card is called: what nearly every container's first interface is.
const cardName = "eth0"

// network is one with nothing but what every guest has: what is done once to set one up is done with it. A card is
// turned on.
func network(card *Card) *agentv1.SetNetworkRequest {
	if card != nil && card.Network != nil {
		return card.Network
	}
	r := &agentv1.SetNetworkRequest{Interfaces: []*agentv1.Interface{{Index: 1, Name: "lo", Up: true}}}
	if card != nil {
		r.Interfaces = append(r.Interfaces, &agentv1.Interface{
			Index: 2, Name: cardName, Device: vmm.SavedMAC, Mac: vmm.SavedMAC, Mtu: 1500, Queue: 1000, Up: true, NoLinkLocal: true,
		})
	}
	return r
}

// rehearse makes the container and removes it again.
func (r *Rehearsal) rehearse(ctx context.Context, client *guest.Client) error {
	_, err := client.CreateContainer(ctx, &agentv1.CreateContainerRequest{
		Id: rehearsalID, Spec: r.Spec, Rootfs: r.Rootfs, Stdio: &agentv1.Stdio{},
	})
	if err != nil {
		return fmt.Errorf("rehearse a container: %w", err)
	}
	if _, err := client.DeleteContainer(ctx, &agentv1.ContainerRequest{Id: rehearsalID}); err != nil {
		return fmt.Errorf("rehearse a container: %w", err)
	}
	return nil
}

// rest greets the agent, so that it has done once what it does first for each VM that starts from it, rehearses
// a container, and has the agent come to rest.
func rest(ctx context.Context, vm vmm.VM, r *Rehearsal, card *Card) error {
	client, err := guest.Connect(ctx, vm, guest.Options{Hostname: "husk"})
	if err != nil {
		return err
	}
	if r != nil || card != nil {
		_, err = client.SetNetwork(ctx, network(card))
	}
	if r != nil && err == nil {
		err = r.rehearse(ctx, client)
	}
	if err == nil {
		_, err = client.Rest(ctx, &agentv1.Empty{})
	}
	return errors.Join(err, client.Close())
}
