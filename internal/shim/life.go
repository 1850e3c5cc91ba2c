package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	events "github.com/containerd/containerd/api/events"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"husk.dev/husk/internal/forward"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/state"
)

// exitWait bounds the wait for the end of a process whose container is deleted.
const exitWait = 10 * time.Second

// createIn makes the container in the sandbox, and the sandbox for the first one.
func (s *service) createIn(ctx context.Context, host *Host, c *container, init *process) (err error) {
	var data []byte
	if c.dir, data, err = c.begin(ctx, host); err != nil {
		init.opened.Close()
		return err
	}
	request := sandbox.CreateRequest{
		ID: c.name, Dir: c.dir, Bundle: c.bundle, Spec: data, Stdio: init.opened.Stdio, HostPID: init.pid, AutoRemove: true,
		Root: c.disks, Attached: c.attached, MountNS: c.mounts,
	}
	if s.events.address == "" { // CRI-O takes no events, and looks for a file as conmon makes it
		request.Engine.OOMFiles = []string{filepath.Join(c.bundle, "oom")}
	}
	box, err := s.createFirst(ctx, host, c, request)
	if box != nil && err == nil {
		if err = box.Create(ctx, request); err == nil {
			s.joinControl(host, c)
		}
	}
	if err != nil {
		return errors.Join(err, c.dir.Remove())
	}
	s.mu.Lock()
	box = s.box
	s.mu.Unlock()
	for _, w := range box.Warnings(c.name) {
		s.log.Warn("container", "id", c.id, "warning", w)
	}
	return nil
}

// createFirst makes the sandbox with its first container. Where there is one it returns that, which the container is
// to be made in.
func (s *service) createFirst(ctx context.Context, host *Host, c *container, request sandbox.CreateRequest) (*sandbox.Sandbox, error) {
	s.making.Lock()
	defer s.making.Unlock()
	s.mu.Lock()
	box, pod := s.box, s.pod
	s.mu.Unlock()
	if box != nil {
		return box, nil
	}
	if pod != nil {
		request.Stdio.Close()
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %q does not run", pod.id)
	}
	return nil, s.makeBox(ctx, host, c, request)
}

// makeBox makes the sandbox with its first container, or with none for a pod. Preconditions: making is held.
func (s *service) makeBox(ctx context.Context, host *Host, c *container, request sandbox.CreateRequest) error {
	box, err := host.Sandbox(c.dir, ocispec.IsSandbox(c.spec), s.log)
	if err != nil {
		request.Stdio.Close()
		return err
	}
	forwarded := forward.Pod(box, c.spec, s.log)
	if err := box.Create(ctx, request); err != nil {
		(<-forwarded).Close()
		<-box.Done()
		return errors.Join(err, box.Remove())
	}
	c.first = true
	s.forward, s.first = <-forwarded, c.dir
	if s.stopControl, err = host.Serve(box, c.dir, s.log); err != nil {
		s.stopControl = nil
		s.log.Warn("husk's verbs do not reach the container", "id", c.id, "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.box, s.host = box, host
	return nil
}

// joinControl lets husk's verbs reach a further container.
func (s *service) joinControl(host *Host, c *container) {
	s.making.Lock()
	first, served := s.first, s.stopControl != nil
	s.making.Unlock()
	if !served {
		return
	}
	if err := host.Join(first, c.dir); err != nil {
		s.log.Warn("husk's verbs do not reach the container", "id", c.id, "error", err)
	}
}

// endBox ends the virtual machine and all that serves it. Preconditions: making is held.
func (s *service) endBox(box *sandbox.Sandbox, reason string) error {
	s.forward.Close()
	box.End(reason)
	if s.stopControl != nil {
		s.stopControl()
		s.stopControl = nil
	}
	return box.Remove()
}

// begin takes the container's name among those of this machine and saves a first state.
func (c *container) begin(ctx context.Context, host *Host) (*state.Dir, []byte, error) {
	data, err := json.Marshal(c.spec)
	if err != nil {
		return nil, nil, fmt.Errorf("encode configuration: %w", err)
	}
	self, err := state.Self(Name)
	if err != nil {
		return nil, nil, err
	}
	dir, err := state.Create(host.Config.RunDir, c.name)
	if err != nil {
		return nil, nil, err
	}
	record := state.Container{
		Bundle: c.bundle, Rootfs: c.rootfs, Annotations: c.spec.Annotations, Status: state.Creating, Owner: self,
		Created: time.Now(),
	}
	if c.spec.Process != nil {
		record.Args = c.spec.Process.Args
	}
	if c.spec.Hooks != nil {
		record.Poststop = c.spec.Hooks.Poststop
	}
	err = os.WriteFile(dir.Path(configFile), data, 0o600)
	if err == nil {
		var unlock func()
		if unlock, err = dir.Lock(ctx); err == nil {
			err = dir.Save(record)
			unlock()
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, dir.Remove())
	}
	return dir, data, nil
}

// watchMemory tells containerd when the guest's kernel kills for want of memory.
func (s *service) watchMemory(box *sandbox.Sandbox, c *container) {
	happened, cancel, err := box.Events(c.name)
	if err != nil {
		return // it is gone already
	}
	defer cancel()
	for {
		select {
		case e := <-happened:
			if e.Kind == sandbox.OOM {
				s.events.publish(topicOOM, &events.TaskOOM{ContainerID: c.id})
			}
		case <-c.init.exited:
			return
		}
	}
}

// Delete implements the Task API.
func (s *service) Delete(ctx context.Context, r *task.DeleteRequest) (*task.DeleteResponse, error) {
	c, p, box, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if p.id != "" { // not one that is being started
		p.changing.Lock()
		defer p.changing.Unlock()
	}
	p.mu.Lock()
	state := p.status
	p.mu.Unlock()
	if state != tasktypes.Status_STOPPED && state != tasktypes.Status_CREATED {
		return nil, status.Errorf(codes.FailedPrecondition, "cannot delete a process that is %s", state)
	}
	if p.id != "" {
		c.drop(p)
		return p.deleted(), nil
	}
	if err := s.release(ctx, box, c); err != nil {
		return nil, err
	}
	answer := p.deleted()
	s.events.publish(topicDelete, &events.TaskDelete{
		ContainerID: c.id, Pid: answer.Pid, ExitStatus: answer.ExitStatus, ExitedAt: answer.ExitedAt,
	})
	return answer, nil
}

func (p *process) deleted() *task.DeleteResponse {
	p.mu.Lock()
	defer p.mu.Unlock()
	answer := &task.DeleteResponse{Pid: uint32(p.pid), ExitStatus: p.exit.Status, ExitedAt: timestamppb.Now()}
	if !p.exit.Time.IsZero() {
		answer.ExitedAt = timestamppb.New(p.exit.Time)
	}
	return answer
}

// release frees what is the container's, and with the last one the virtual machine.
func (s *service) release(ctx context.Context, box *sandbox.Sandbox, c *container) error {
	s.making.Lock()
	defer s.making.Unlock()
	s.mu.Lock()
	known, last := s.containers[c.id] == c, len(s.containers) == 1 && s.pod == nil
	s.mu.Unlock()
	if !known { // another Delete was faster
		return status.Errorf(codes.NotFound, "container %q not found", c.id)
	}
	if err := box.Delete(ctx, c.name, true); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return err
	}
	select { // containerd hears of the end before it hears of the deletion
	case <-c.init.exited:
	case <-time.After(exitWait):
		s.log.Error("no end seen of a container that is deleted", "id", c.id)
	}
	var errs []error
	if !c.first { // whose directory is the virtual machine's
		errs = append(errs, c.dir.Remove())
	}
	if last {
		errs = append(errs, s.endBox(box, "its last container was deleted"))
	}
	s.mu.Lock()
	delete(s.containers, c.id)
	if last {
		s.box, s.host = nil, nil
	}
	s.mu.Unlock()
	c.stand.End()
	errs = append(errs, c.unmountRoot())
	errs = append(errs, c.poststop(ctx))
	if err := errors.Join(errs...); err != nil {
		s.log.Warn("delete container", "id", c.id, "error", err)
	}
	return nil
}

// endAll ends the virtual machine whatever runs in it.
func (s *service) endAll(reason string) {
	s.making.Lock()
	defer s.making.Unlock()
	s.mu.Lock()
	box, pod := s.box, s.pod
	var all []*container
	for _, c := range s.containers {
		if c.init != nil {
			all = append(all, c)
		}
	}
	s.mu.Unlock()
	if box == nil {
		return
	}
	var err error
	if pod != nil {
		err = s.stopPod(pod, reason)
	} else {
		err = s.endBox(box, reason)
	}
	if err != nil {
		s.log.Warn("free sandbox", "error", err)
	}
	for _, c := range all {
		select {
		case <-c.init.exited:
		case <-time.After(exitWait):
		}
	}
}
