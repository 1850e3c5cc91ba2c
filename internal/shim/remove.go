package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	task "github.com/containerd/containerd/api/runtime/task/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

const (
	// removeWait bounds the clean-up after a dead shim: containerd gives it some seconds.
	removeWait = 20 * time.Second
	// killed is the status of a process that died with its VM: 128 + SIGKILL.
	killed = 137
)

// remove cleans up after a shim that is dead, which containerd asks for once for each of its containers.
func (p Program) remove(a arguments) error {
	dir, err := a.workDir()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeWait)
	defer cancel()
	answer := &task.DeleteResponse{ExitStatus: killed, ExitedAt: timestamppb.Now()}
	if err := p.forget(ctx, a, dir, answer); err != nil {
		return err
	}
	if socket := savedSocket(dir); socket != "" && !listening(socket) {
		if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove socket: %w", err)
		}
	}
	// Older containerds mount the root themselves where a shim that failed left it.
	_ = sys.Unmount(filepath.Join(dir, rootfsDir)) // not mounted, most often
	return p.print(answer)
}

// forget removes the container's state and what it names, and puts how it ended into answer.
func (p Program) forget(ctx context.Context, a arguments, bundle string, answer *task.DeleteResponse) error {
	n, found, err := loadNote(bundle)
	if err != nil || !found {
		return err
	}
	dir, err := state.Open(n.RunDir, stateID(a.namespace, a.id))
	if errors.Is(err, state.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if record, err := dir.Load(); err == nil {
		answer.Pid = uint32(record.Host.PID)
		if record.Sandbox != "" && record.Owner.Alive() {
			return nil // others of the pod live: the shim frees what is this one's
		}
		if record.Status == state.Stopped {
			answer.ExitStatus, answer.ExitedAt = uint32(record.ExitStatus), timestamppb.New(record.ExitedAt)
		}
	}
	host, err := p.Open(n.Config)
	if err != nil {
		return err
	}
	return host.Forget(ctx, dir, a.id)
}
