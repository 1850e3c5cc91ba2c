package sandbox

import (
	"context"
	"fmt"
	"sync"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/storage"
)

// copied is a directory of the host that the guest has a copy of.
type copied struct {
	name  string
	users int // containers that have it; guarded by the sandbox' mu

	mu    sync.Mutex // held while it is read and sent: what is older must not come later
	files *storage.Files
	stop  func() // ends the following
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
			known = &copied{name: one.GuestName, files: files}
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
func (s *Sandbox) sendCopy(ctx context.Context, one *copied) error {
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.stop != nil { // another container has it
		return nil
	}
	stop, err := one.files.Follow(func() {
		one.mu.Lock()
		defer one.mu.Unlock()
		if err := s.send(context.Background(), one); err != nil { // whoever changes it now makes another change
			s.log.Debug("bring a change of files to the guest", "error", err)
		}
	})
	if err != nil {
		return err
	}
	if err := s.send(ctx, one); err != nil {
		go stop() // which waits for a call that waits for this one
		return err
	}
	one.stop = stop
	return nil
}

// send reads a directory and has the guest make the same. Preconditions: one.mu is held.
func (s *Sandbox) send(ctx context.Context, one *copied) error {
	all, err := one.files.Read(storage.Limits{Files: ocispec.MaxFiles, Bytes: ocispec.MaxFilesBytes})
	if err != nil {
		return err
	}
	request := &agentv1.PutFilesRequest{Name: one.name}
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
		if last {
			delete(s.copies, one.name)
		}
		s.mu.Unlock()
		if !last {
			continue
		}
		one.mu.Lock()
		stop := one.stop
		one.mu.Unlock()
		if stop != nil {
			stop()
		}
		one.files.Close()
	}
}
