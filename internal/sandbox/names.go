package sandbox

import (
	"context"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/network/names"
	"husk.dev/husk/internal/ocispec"
)

// forwardNames has the guest reach a name server that listens in the container's network namespace on the host alone.
func (s *Sandbox) forwardNames(ctx context.Context, a *attempt, plan *ocispec.Plan) error {
	if !plan.Nameserver.IsValid() || plan.Network != ocispec.NetworkPath {
		return nil
	}
	ctx, cancel := guest.Bound(ctx)
	defer cancel()
	token, stream, err := s.client().Stream(ctx)
	if err != nil {
		return err
	}
	request := &agentv1.ForwardNamesRequest{Address: plan.Nameserver.String(), Stream: token}
	if _, err := s.client().ForwardNames(ctx, request); err != nil {
		stream.Close()
		return explain(err, "bring the container's name server into the guest")
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := names.Serve(stream, plan.NetNS, plan.Nameserver); err != nil {
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
