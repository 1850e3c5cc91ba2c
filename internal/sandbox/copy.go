package sandbox

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/state"
)

// copyGrace is how long what copies files may take to end when nobody reads or writes its stream any more: it removes what it
// has begun.
const copyGrace = 10 * time.Second

// Copy starts what copies files of a container, as the agent's serialised CopyRequest says, on a tar stream. It owns stdio's
// files, also when it fails; Wait tells of its end.
func (s *Sandbox) Copy(ctx context.Context, id, exec string, request []byte, stdio Stdio) error {
	c, client, err := s.reach(id)
	if err != nil {
		stdio.Close()
		return err
	}
	var r agentv1.CopyRequest
	if err := proto.Unmarshal(request, &r); err != nil {
		stdio.Close()
		return fmt.Errorf("read what to copy: %w", err)
	}
	tell := c.explain
	if s, err := s.State(id); err == nil && s.Status == state.Stopped {
		tell = explain // that it has ended is no reason for what fails
	}
	p := newProcess(exec)
	if err := c.adding(p, "copy files of", state.Created, state.Running, state.Paused, state.Stopped); err != nil {
		stdio.Close()
		return err
	}
	ctx, cancel := bound(ctx)
	defer cancel()
	streams, names, err := openStreams(ctx, client, stdio)
	if err != nil {
		c.forget(p)
		return tell(err, "copy files of container %q", id)
	}
	p.streams = streams
	r.Container, r.Exec, r.Stdio = id, exec, names
	if _, err = client.Copy(ctx, &r); err != nil {
		streams.close()
		c.forget(p)
		return tell(err, "copy files of container %q", id)
	}
	c.followExec(p, later(stdio.Gone, p.ended))
	return nil
}

// later is closed some time after gone, unless ended is before.
func later(gone, ended <-chan struct{}) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		select {
		case <-gone: // never, where it is nil
		case <-ended:
			return
		}
		select {
		case <-time.After(copyGrace):
			close(out)
		case <-ended:
		}
	}()
	return out
}
