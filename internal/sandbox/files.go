package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/storage"
)

// copied is a directory of the host that the guest has a copy of.
type copied struct {
	name  string
	users int // containers that have it; guarded by the sandbox' mu
	files *storage.Files
	ended chan struct{} // closed when no container has it any more

	mu   sync.Mutex // held while it is read and sent; guards the fields below
	stop func()     // ends the following; nil before it began
	sent bool       // the guest has what was last to be sent
}

// openFiles opens what the guest is to have copies of, from the files that this thread sees.
func (s *Sandbox) openFiles(c *container, plan *ocispec.Plan) error {
	for _, one := range plan.Files {
		files, err := storage.OpenFiles(one.HostPath)
		if err != nil {
			return err
		}
		s.mu.Lock()
		known := s.copies[one.GuestName]
		if known == nil {
			known = &copied{name: one.GuestName, files: files, ended: make(chan struct{})}
			s.copies[one.GuestName] = known
		} else {
			files.Close()
		}
		known.users++
		s.mu.Unlock()
		c.mu.Lock()
		c.copies = append(c.copies, known)
		c.mu.Unlock()
	}
	return nil
}

// sendFiles has the guest make its copies, and keeps them the same from then on.
func (s *Sandbox) sendFiles(ctx context.Context, c *container) error {
	c.mu.Lock()
	copies := c.copies
	c.mu.Unlock()
	for _, one := range copies {
		if err := s.sendCopy(ctx, one); err != nil {
			return err
		}
	}
	return nil
}

// sendCopy follows the directory before it reads it: no change is missed.
func (s *Sandbox) sendCopy(ctx context.Context, one *copied) (err error) {
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.stop == nil {
		if one.stop, err = one.files.Follow(func() { s.resend(one) }); err != nil {
			return err
		}
	}
	if one.sent { // for another container
		return nil
	}
	return s.send(ctx, one)
}

const (
	// resendWait and resendMost are how long the owner waits after a change that it could not bring to the guest, at first and
	// at most.
	resendWait = time.Second
	resendMost = time.Minute
)

// resend brings a change to the guest, which may be too busy, or have no room.
func (s *Sandbox) resend(one *copied) {
	for wait := resendWait; ; wait = min(2*wait, resendMost) {
		one.mu.Lock()
		err := s.send(context.Background(), one)
		one.mu.Unlock()
		if err == nil {
			return
		}
		select {
		case <-one.ended:
			return
		case <-time.After(wait):
			s.log.Warn("the guest has files that have changed on the host", "error", err)
		}
	}
}

// send reads a directory and has the guest make the same. Preconditions: one.mu is held.
func (s *Sandbox) send(ctx context.Context, one *copied) error {
	one.sent = false
	request := &agentv1.PutFilesRequest{Name: one.name, Number: s.puts.Add(1)}
	all, err := one.files.Read(storage.Limits{Files: ocispec.MaxFiles, Bytes: ocispec.MaxFilesBytes})
	if err != nil {
		return err
	}
	for _, f := range all {
		request.Files = append(request.Files, &agentv1.File{
			Path: f.Path, Mode: f.Mode, Uid: f.UID, Gid: f.GID, ModifiedUnixNanos: f.Modified.UnixNano(), Content: f.Content,
		})
	}
	client := s.client()
	if client == nil {
		return fmt.Errorf("copy files to the guest: %w", ErrState)
	}
	ctx, cancel := guest.Bound(ctx)
	defer cancel()
	if _, err := client.PutFiles(ctx, request); err != nil {
		return explain(err, "copy files to the guest")
	}
	one.sent = true
	return nil
}

// forgetFiles gives back what openFiles has opened for a container. The guest keeps what it has.
func (s *Sandbox) forgetFiles(c *container) {
	c.mu.Lock()
	copies := c.copies
	c.copies = nil
	c.mu.Unlock()
	for _, one := range copies {
		s.mu.Lock()
		one.users--
		last := one.users == 0
		if last { // who comes now begins anew, with higher numbers
			delete(s.copies, one.name)
		}
		s.mu.Unlock()
		if !last {
			continue
		}
		close(one.ended)
		one.mu.Lock()
		stop := one.stop
		one.mu.Unlock()
		if stop != nil {
			stop()
		}
		one.files.Close()
	}
}
