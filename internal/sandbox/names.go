package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/network/names"
	"husk.dev/husk/internal/ocispec"
)

// forwardNames has the guest reach a name server that listens in the container's network namespace on the host alone, or
// with user-mode networking on this machine alone.
func (s *Sandbox) forwardNames(ctx context.Context, a *attempt, plan *ocispec.Plan, user *UserNetwork) error {
	server, space := plan.Nameserver, plan.NetNS
	switch {
	case a.user != nil && user != nil && user.DNS != "":
		var err error
		if server, err = netip.ParseAddr(user.DNS); err != nil {
			return fmt.Errorf("user-mode networking: name server: %w", err)
		}
		space = "" // that of this process
	case !server.IsValid() || plan.Network != ocispec.NetworkPath:
		return nil
	}
	ctx, cancel := guest.Bound(ctx)
	defer cancel()
	token, stream, err := s.client().Stream(ctx)
	if err != nil {
		return err
	}
	request := &agentv1.ForwardNamesRequest{Address: server.String(), Stream: token}
	if _, err := s.client().ForwardNames(ctx, request); err != nil {
		stream.Close()
		return explain(err, "bring the container's name server into the guest")
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := names.Serve(stream, space, server); err != nil {
			s.log.Debug("forward names", "error", err) // the usual end is that of the channel
		}
	}()
	a.undo.Add(func() error {
		_ = stream.SetDeadline(time.Now()) // a guest that does not close its end is not waited for
		return bounded(func(context.Context) error {
			err := stream.Close()
			<-ended
			return err
		})
	})
	return nil
}
