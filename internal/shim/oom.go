package shim

import (
	"fmt"

	events "github.com/containerd/containerd/api/events"
)

// PublishOOM tells containerd that a process of container id was killed for want of memory, as the container's shim does:
// for one that another shim has made with husk as an OCI runtime, and that cannot see it. It tries once, and waits for
// some seconds at most. The address is that of containerd's socket for events, the namespace is containerd's.
func PublishOOM(address, namespace, id string) error {
	e, err := envelope(namespace, topicOOM, &events.TaskOOM{ContainerID: id})
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	p := &publisher{address: address}
	if err := p.try(e); err != nil {
		return fmt.Errorf("publish event: %w", err)
	}
	return p.client.Close()
}
