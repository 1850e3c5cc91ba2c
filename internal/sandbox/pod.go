package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
	"husk.dev/husk/internal/hostcgroup"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/storage"
	"husk.dev/husk/internal/sys"
)

// pod is what a sandbox keeps for containers that come after the first.
type pod struct {
	begun bool          // a Create was called
	made  bool          // and one has succeeded
	first *container    // the one that the VM was made for, also when it is deleted
	plan  *ocispec.Plan // of first
	size  ocispec.Size  // of the VM, as it was started
	tree  *storage.Tree // of shares; nil: the VM sees no files of the host
	dir   *state.Dir    // where the VM's own files are: Options.Dir, or what it became when first was deleted

	plugs int // number of the last disks that were plugged in

	growing sync.Mutex // held while the VM gets more memory
	grown   int        // MiB that it has got; guarded by growing
}

const (
	// treeName is the mount point of the tree of shares in the VM's directory.
	treeName = "share"
	// shareDir is that tree in the guest.
	shareDir = agentv1.ShareDir + "/" + storage.ShareTag
)

func (s *Sandbox) planOptions(id string) ocispec.PlanOptions {
	return ocispec.PlanOptions{ShareDir: shareDir, MemoryDir: agentv1.MemoryDir, FilesDir: agentv1.FilesDir, Name: id, Container: s.byHostPID}
}

// byHostPID returns the id of the container that a process of the host stands for.
func (s *Sandbox) byHostPID(pid int) string {
	for _, c := range s.all() {
		c.mu.Lock()
		host := c.record.Host.PID
		c.mu.Unlock()
		if pid > 0 && host == pid {
			return c.id
		}
	}
	return ""
}

// join makes a further container in the VM. When it fails nothing of it is left.
func (s *Sandbox) join(ctx context.Context, r CreateRequest) error {
	s.mu.Lock()
	taken := s.pod.dir == s.options.Dir && r.ID == s.options.Dir.ID() // free once the first container is deleted
	s.mu.Unlock()
	if r.Dir == nil || r.Dir.ID() != r.ID || taken {
		r.Stdio.Close()
		s.drop(r.Attached)
		return fmt.Errorf("%w: the sandbox has container %q already, another needs a directory of its own", ErrState, s.options.Dir.ID())
	}
	err := s.makeMember(ctx, r)
	if err != nil { // whoever asked for it may be gone
		if left := r.Dir.Remove(); left != nil {
			s.log.Warn("undo container", "container", r.ID, "error", left)
		}
	}
	return err
}

func (s *Sandbox) makeMember(ctx context.Context, r CreateRequest) error {
	taken := false // whether the streams own the request's files
	defer func() {
		if !taken {
			r.Stdio.Close()
		}
	}()
	c, err := s.newContainer(r, r.Dir)
	if err == nil {
		err = s.add(c)
	}
	if err != nil {
		s.drop(r.Attached)
		return err
	}
	if r.Attached == nil && r.Root != nil { // it was not a further one yet when it was asked for
		r.Attached, err = s.Attach(ctx, r.Root)
	}
	if r.Attached != nil {
		c.mu.Lock()
		c.detach = append(c.detach, r.Attached.Detach)
		c.mu.Unlock()
	}
	var plan *ocispec.Plan
	if err == nil {
		plan, err = s.prepareMember(ctx, c, r)
	}
	if err != nil {
		s.free(c)
		return err
	}
	root := &agentv1.Rootfs{Path: rootPath(plan)}
	if r.Attached != nil {
		root = r.Attached.root
	}
	filter := s.compileFilter(ctx, plan.Spec)
	taken = true
	if err := s.createInGuest(ctx, c, plan, root, r, filter()); err != nil {
		s.log.Error("create container", "container", c.id, "error", err)
		if undone := s.removeFromGuest(c); undone != nil {
			s.log.Warn("undo container", "container", c.id, "error", undone)
		}
		s.free(c)
		return err
	}
	return nil
}

// prepareMember plans a further container and lends it what it needs of the host, from the files that its maker sees:
// engines mount roots where this process does not.
func (s *Sandbox) prepareMember(ctx context.Context, c *container, r CreateRequest) (plan *ocispec.Plan, err error) {
	defer s.timing.begin(ctx, "lend files")()
	if r.MountNS == "" {
		r.MountNS = "/proc/thread-self/ns/mnt"
	}
	var copies []*storage.Copy
	defer func() { closeAll(copies) }()
	err = sys.InMountNamespace(r.MountNS, func() error {
		if plan, err = s.planMember(c, r); err != nil {
			return err
		}
		if err = s.openFiles(c, plan); err == nil {
			copies, err = copiesOf(plan.Shares)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := s.attachBlocks(ctx, c, plan); err != nil {
		return nil, err
	}
	return plan, s.lendMember(c, plan, copies, r)
}

// drop takes out the disks of a root that no container came to have.
func (s *Sandbox) drop(root *AttachedRoot) {
	if err := root.Detach(); err != nil {
		s.log.Warn("undo the plugging of disks", "error", err)
	}
}

// planMember plans a container for a VM that runs: what it has of network and memory is what there is.
func (s *Sandbox) planMember(c *container, r CreateRequest) (*ocispec.Plan, error) {
	bundle, err := ocispec.FromSpec(r.Bundle, r.Spec)
	if err != nil {
		return nil, err
	}
	if len(r.Layers) > 0 {
		return nil, errors.New("an image's layers are disks, and the virtual machine of another container has no place for them")
	}
	if r.ownRoot() {
		if err := bundle.ResolveRoot(); err != nil {
			return nil, err
		}
	}
	plan, err := ocispec.MakePlan(bundle, s.planOptions(r.ID))
	if err != nil {
		return nil, err
	}
	return plan, s.fitNetwork(c, plan)
}

// lendMember gives a further container what it needs of the host.
func (s *Sandbox) lendMember(c *container, plan *ocispec.Plan, copies []*storage.Copy, r CreateRequest) error {
	s.mu.Lock()
	tree, first := s.pod.tree, s.pod.first
	s.mu.Unlock()
	if tree == nil {
		return errors.New("the virtual machine was started without files of the host, so no other container can join it")
	}
	first.mu.Lock()
	vm := first.record
	first.mu.Unlock()
	// A thread of this process is where all of it is: in the sandbox's group.
	usable := hostcgroup.Usable(plan.CgroupsPath) && r.HostPID > 0 && !sys.IsOwnThread(r.HostPID)
	if err := s.fitMemory(c, plan); err != nil {
		plan.Warnings = append(plan.Warnings, err.Error())
	}
	c.mu.Lock()
	c.warnings = plan.Warnings
	c.record.Sandbox, c.record.Helpers = s.options.Dir.ID(), vm.Helpers
	c.record.Isolation, c.record.VMStart = vm.Isolation, vm.VMStart
	if usable {
		c.record.Cgroup = plan.CgroupsPath // before there is anything to remove
	}
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if usable {
		if err := hostcgroup.Place(plan.CgroupsPath, r.HostPID); err != nil {
			s.log.Warn("the container's host process stays in the caller's control group", "error", err)
		}
	}
	return s.lendTo(c, tree, plan, copies)
}

// copiesOf takes hold of the files that a container is to see.
func copiesOf(shares []ocispec.SharedPath) (copies []*storage.Copy, err error) {
	for _, share := range shares {
		one, err := storage.CopyOf(share.HostPath, storage.How{
			ReadOnly: share.ReadOnly, Recursive: share.Recursive, TopOnly: share.TopOnly, Follow: share.Follow, Return: share.Return,
			UIDs: idMaps(share.UIDs), GIDs: idMaps(share.GIDs),
		})
		if err != nil {
			closeAll(copies)
			return nil, err
		}
		copies = append(copies, one)
	}
	return copies, nil
}

func idMaps(mappings []specs.LinuxIDMapping) (maps []syscall.SysProcIDMap) {
	for _, m := range mappings {
		maps = append(maps, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return maps
}

func closeAll(copies []*storage.Copy) {
	for _, c := range copies {
		c.Close()
	}
}

// lendTo puts the files of a container, one for each of plan.Shares, into the tree.
func (s *Sandbox) lendTo(c *container, tree *storage.Tree, plan *ocispec.Plan, copies []*storage.Copy) error {
	var names []string
	defer func() {
		c.mu.Lock()
		c.lent = names
		c.mu.Unlock()
	}()
	for i, one := range copies {
		name, err := tree.Lend(one)
		if err != nil {
			return err
		}
		names = append(names, name)
		plan.Place(i, name, s.planOptions(c.id))
	}
	return nil
}

// deleted is the reason of a teardown that was asked for.
const deleted = "deleted"

// Delete removes a container that does not run, or with force any, and with the last one the VM, unless it is to
// be kept. It returns when all is freed. One that is being made is given up. A guest that does not remove the container
// is ended.
func (s *Sandbox) Delete(ctx context.Context, id string, force bool) error {
	m := s.beingMade(id)
	switch {
	case m != nil && m.first:
		s.End(deleted)
		return nil
	case m != nil:
		m.cancel()
		<-m.through
	}
	c, err := s.container(id)
	if m != nil && errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	if !force {
		err = c.expect("delete", state.Creating, state.Created, state.Stopped)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if c.bare || !s.outlives(c) {
		s.End(deleted)
		return nil
	}
	err = s.removeFromGuest(c)
	if err == nil {
		err = c.unplug()
	}
	if err != nil { // a guest that keeps what is to be gone loses its machine
		s.log.Error("delete container", "container", c.id, "error", err)
		s.End(err.Error())
		return nil
	}
	s.free(c)
	<-c.init.exited // its last state is on disk
	s.containerStopped()
	return nil
}

// removeFromGuest ends whatever runs in a container and has the guest remove it.
func (s *Sandbox) removeFromGuest(c *container) error {
	ctx, cancel := guest.Bound(context.Background())
	defer cancel()
	client := s.client()
	c.mu.Lock()
	stopped := c.record.Status == state.Stopped
	c.mu.Unlock()
	if !stopped {
		_, err := client.Signal(ctx, &agentv1.SignalRequest{Container: c.id, Signal: 9, All: true})
		if err == nil {
			select {
			case <-c.init.ended:
			case <-time.After(undoTimeout):
			}
		}
	}
	_, err := client.Sync(ctx, &agentv1.Empty{}) // what it wrote to files of the host
	if err == nil {
		_, err = client.DeleteContainer(ctx, &agentv1.ContainerRequest{Id: c.id})
	}
	if _, code := guest.Reason(err); err != nil && code != codes.NotFound {
		return explain(err, "delete container %q", c.id)
	}
	return nil
}

// free gives back what a container has of the host's, while the VM runs on. What is left of its processes has
// ended with it.
func (s *Sandbox) free(c *container) {
	exit := Exit{Status: killed, Time: time.Now()}
	c.mu.Lock()
	lent, group, running := c.lent, c.record.Cgroup, make([]*process, 0, len(c.execs))
	c.lent = nil
	for _, p := range c.execs {
		running = append(running, p)
	}
	c.mu.Unlock()
	for _, p := range append(running, c.init) {
		p.lose(exit)
	}
	if err := c.unplug(); err != nil {
		s.log.Warn("free container", "container", c.id, "error", err)
	}
	s.forgetFiles(c)
	s.mu.Lock()
	tree, first := s.pod.tree, s.pod.first == c
	s.mu.Unlock()
	for _, name := range lent {
		if err := tree.Give(name); err != nil {
			s.log.Warn("free container", "container", c.id, "error", err)
		}
	}
	if !first { // else the VM is in it
		if err := hostcgroup.Remove(group); err != nil {
			s.log.Warn("free container", "container", c.id, "error", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
	if first && !s.options.Keep {
		s.retire()
	}
}

// retire gives the first container's id free, whose directory is the VM's too. Preconditions: mu is held.
func (s *Sandbox) retire() {
	dir, err := s.pod.dir.Retire(os.Getpid())
	if err != nil {
		s.log.Error("the container's id stays taken as long as its virtual machine runs", "error", err)
		return
	}
	s.pod.dir, s.remove = dir, true
	if err := os.RemoveAll(s.options.Config.ContainerDir(s.options.Dir.ID())); err != nil { // QEMU has open what it needs
		s.log.Warn("free container", "error", err)
	}
	if s.pod.tree != nil {
		s.pod.tree.Move(dir.Path(treeName))
	}
}
