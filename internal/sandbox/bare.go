package sandbox

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
)

// bundleOf is the checked bundle of a request.
func bundleOf(r CreateRequest) (*ocispec.Bundle, error) {
	if r.Pod {
		return ocispec.FromPod(r.Bundle, r.Spec)
	}
	bundle, err := ocispec.FromSpec(r.Bundle, r.Spec)
	if err == nil && r.ownRoot() {
		err = bundle.ResolveRoot()
	}
	return bundle, err
}

// makePod has the agent make what the containers of a pod will share. In the place of a first container there is then
// one that has no process, and that runs for as long as the VM does.
func (s *Sandbox) makePod(ctx context.Context, c *container, plan *ocispec.Plan) error {
	defer s.timing.begin(ctx, "make pod")()
	ctx, cancel := guest.Bound(ctx)
	defer cancel()
	l := plan.Spec.Linux
	request := &agentv1.PodRequest{Id: c.id, Hostname: plan.Spec.Hostname, Sysctls: l.Sysctl}
	if ocispec.Namespace(plan.Spec, specs.UserNamespace) != nil {
		request.Uids, request.Gids = guestMaps(l.UIDMappings), guestMaps(l.GIDMappings)
	}
	if _, err := s.client().MakePod(ctx, request); err != nil {
		return explain(err, "set up pod %q", c.id)
	}
	c.mu.Lock()
	err := c.move(state.Created)
	if err == nil {
		err = c.move(state.Running)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	go c.follow()
	return nil
}

func guestMaps(mappings []specs.LinuxIDMapping) (maps []*agentv1.IDMapping) {
	for _, m := range mappings {
		maps = append(maps, &agentv1.IDMapping{Inner: m.ContainerID, Outer: m.HostID, Length: m.Size})
	}
	return maps
}
