package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"google.golang.org/grpc/codes"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/hostcgroup"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
)

// neighbour finds a container in whose virtual machine the one that is to be made belongs: one whose namespaces it
// joins, or the sandbox that its engine has noted. It returns nil for a container with a VM of its own.
func (a *App) neighbour(c *creation) (*state.Dir, error) {
	if pids := ocispec.JoinedPIDs(c.bundle.Spec); len(pids) > 0 {
		records, dirs, err := a.all()
		if err != nil {
			return nil, err
		}
		for i, r := range records {
			if r.ID != c.id && slices.Contains(pids, r.Host.PID) && r.Host.Alive() && r.Owner.Alive() {
				return dirs[i], nil
			}
		}
	}
	id := ocispec.SandboxID(c.bundle.Spec)
	if id == "" || id == c.id {
		return nil, nil
	}
	dir, record, err := a.load(id)
	if err != nil {
		return nil, fmt.Errorf("find the sandbox that the container belongs to: %w", err)
	}
	if !record.Owner.Alive() {
		return nil, fmt.Errorf("container %q belongs to the sandbox %q, which does not run any more", c.id, id)
	}
	return dir, nil
}

// join gives the container the sockets of its neighbour's owner, by links: they lead there whatever becomes of the
// neighbour.
func (l *launch) join(neighbour *state.Dir) error {
	if err := linkSockets(neighbour, l.dir); err != nil {
		return err
	}
	l.joined = true
	return nil
}

// linkSockets makes the sockets of a container's owner those of another container, too.
func linkSockets(from, to *state.Dir) error {
	for _, name := range []string{control.RPCSocket, control.FilesSocket} {
		if err := os.Link(from.Path(name), to.Path(name)); err != nil {
			return fmt.Errorf("join the virtual machine of %q: %w", from.ID(), err)
		}
	}
	return nil
}

// sandboxOf is the container that the VM of another one was made for.
func sandboxOf(neighbour *state.Dir) (string, error) {
	record, err := neighbour.Load()
	if err != nil {
		return "", err
	}
	if record.Sandbox != "" {
		return record.Sandbox, nil
	}
	return record.ID, nil
}

// forgetJoined removes a container that was not made, or only in part, from a VM that is others'.
func (l *launch) forgetJoined() error {
	record, err := l.dir.Load()
	if errors.Is(err, state.ErrNotExist) {
		return nil
	}
	if err == nil {
		_, err = deleteByOwner(context.Background(), l.dir, record, true)
		err = errors.Join(err, hostcgroup.Remove(record.Cgroup))
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, l.dir.Remove())
}

// deleteByOwner has the owner of a container's VM delete the container, and tells whether the VM lives on. An owner
// that does not know the container, or is gone, has nothing to delete; one that does not know the container that its VM
// was made for has not begun, or is about to end. What it refuses is a refusal.
func deleteByOwner(ctx context.Context, dir *state.Dir, record state.Container, force bool) (lives bool, err error) {
	wait := deleteWait
	if record.Sandbox != "" {
		wait = joinedDeleteWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	client, err := control.Dial(dir.Path(""))
	if errors.Is(err, control.ErrGone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer client.Close()
	answer, err := client.Delete(ctx, &controlv1.DeleteRequest{Id: dir.ID(), Force: force})
	code, plain := control.Plain(err)
	switch {
	case plain == nil:
		return answer.Lives, nil
	case code == codes.NotFound:
		return record.Sandbox != "", nil
	case errors.Is(plain, control.ErrGone):
		return false, nil
	case code == codes.FailedPrecondition:
		return false, refusal{plain}
	}
	return false, plain
}

// refusal is the error of an owner that does not do what it was asked for, and is well.
type refusal struct{ error }

// clearRetired removes what the VM of a joined container has left, where the container that it was made for was
// deleted before it and its owner was killed.
func (a *App) clearRetired(record state.Container) error {
	if record.Sandbox == "" {
		return nil
	}
	dir, err := state.Retired(a.config.RunDir, record.Sandbox, record.Owner.PID)
	if err != nil {
		return err
	}
	first, err := dir.Load()
	if errors.Is(err, state.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	a.clearHost(first)
	a.clearMounts(dir)
	return dir.Remove()
}
