package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/storage"
	"husk.dev/husk/internal/storage/disk"
	"husk.dev/husk/internal/storage/virtiofs"
	"husk.dev/husk/internal/vmm"
)

// Names of disks in the guest.
const (
	upperSerial = "upper"
	layerSerial = "layer" // and its number, the lowest is 0
)

// hangUpWait is how long a monitor that has hung up on its file service may take to end.
const hangUpWait = 500 * time.Millisecond

// lend adds to spec the disks and shares that the container needs, and says what its root is made of.
func (s *Sandbox) lend(ctx context.Context, a *attempt, c *container, plan *ocispec.Plan, r CreateRequest, spec *vmm.Spec) (*agentv1.Rootfs, error) {
	defer s.timing.begin(ctx, "lend files")()
	root := &agentv1.Rootfs{}
	if r.Root != nil {
		var err error
		if root, err = s.lendRoot(ctx, a, r.Root, spec); err != nil {
			return nil, err
		}
	}
	s.lendLayers(r.Layers, root, spec)
	if len(r.Layers) > 0 && r.WritableMiB > 0 {
		file, err := s.lendDisk(ctx, r)
		if err != nil {
			return nil, err
		}
		spec.Disks = append(spec.Disks, vmm.Disk{Serial: upperSerial, Path: file})
		root.Upper = &agentv1.Disk{Serial: upperSerial, Filesystem: "ext4"}
	}
	spec.Disks = append(spec.Disks, r.blocks...)
	if slices.ContainsFunc(r.blocks, func(d vmm.Disk) bool { return !d.ReadOnly }) {
		s.writesFiles()
	}
	if len(plan.Shares) > 0 || s.options.Keep { // a container that comes later has files too
		share, err := s.lendShares(ctx, a, c, plan)
		if err != nil {
			return nil, err
		}
		spec.Shares = append(spec.Shares, share)
	}
	root.Path = rootPath(plan)
	return root, nil
}

// rootPath is the container's root directory in the guest; empty where it is made of disks.
func rootPath(plan *ocispec.Plan) string {
	if plan.Root == nil {
		return ""
	}
	return path.Join(shareDir, plan.Root.GuestName)
}

// lendLayers attaches an image's layers: by virtio-pmem, whose pages the guest maps from the host's page
// cache, where the machine has it and boots: a guest that wakes up takes longer to find such a device than
// to read what it needs from a disk that has its place already.
func (s *Sandbox) lendLayers(layers []string, root *agentv1.Rootfs, spec *vmm.Spec) {
	pmem := spec.Machine == machinePCI && spec.From == nil
	for i, file := range layers {
		serial := fmt.Sprintf("%s%d", layerSerial, i)
		spec.Disks = append(spec.Disks, vmm.Disk{Serial: serial, Path: file, ReadOnly: true, Pmem: pmem})
		d := &agentv1.Disk{Serial: serial, Filesystem: "erofs", Readonly: true}
		if pmem {
			number := uint32(i)
			d.Serial, d.Pmem, d.Dax = "", &number, true
		}
		root.Lower = append(root.Lower, d)
	}
}

// lendDisk makes the disk that takes what the container writes, outside of the state directory: that one
// is in memory. A container that is not removed at its end may be started again, and then has the disk that it had: the journal
// makes that one whole where its guest was killed.
func (s *Sandbox) lendDisk(ctx context.Context, r CreateRequest) (string, error) {
	dir := s.config.ContainerDir(r.ID)
	file := filepath.Join(dir, "upper.img")
	if !r.AutoRemove {
		s.writesFiles()
	}
	if s.options.Again {
		if info, err := os.Lstat(file); err != nil {
			return "", fmt.Errorf("find what the container has written: %w", err)
		} else if !info.Mode().IsRegular() {
			return "", fmt.Errorf("find what the container has written: %s is no file", file)
		}
		return file, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make container's data directory: %w", err)
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) { // a dead container's of this id
		return "", fmt.Errorf("replace old writable disk: %w", err)
	}
	if r.AutoRemove {
		return file, disk.Create(ctx, s.blanks(), file, r.WritableMiB)
	}
	return file, disk.CreateLasting(ctx, s.blanks(), file, r.WritableMiB)
}

// blanks is where empty file systems are kept that writable disks are copied from.
func (s *Sandbox) blanks() string { return filepath.Join(s.config.DataDir, "blank") }

// lendShares shows the host's files in the guest through one file service.
func (s *Sandbox) lendShares(ctx context.Context, a *attempt, c *container, plan *ocispec.Plan) (vmm.Share, error) {
	tree, err := storage.NewTree(s.options.Dir.Path(treeName), s.mountsHost())
	if err != nil {
		return vmm.Share{}, err
	}
	a.undo.Add(tree.Close)
	s.mu.Lock()
	s.shared, s.pod.tree = true, tree
	s.mu.Unlock()
	copies, err := copiesOf(plan.Shares)
	if err != nil {
		return vmm.Share{}, err
	}
	defer closeAll(copies)
	if err := s.lendTo(c, tree, plan, copies); err != nil {
		return vmm.Share{}, err
	}
	server, err := virtiofs.Start(ctx, virtiofs.Options{
		Binary: s.config.Virtiofsd, Dir: tree.Path(), Socket: s.options.Dir.Path("virtiofs.sock"),
	})
	if err != nil {
		return vmm.Share{}, err
	}
	a.undo.Add(func() error { return bounded(server.Stop) })
	go s.watchShares(a, server)
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, err := state.Of("virtiofsd", server.PID()); err == nil {
		c.record.Helpers = append(c.record.Helpers, p)
	}
	return vmm.Share{Tag: storage.ShareTag, Socket: server.Socket()}, c.save()
}

// watchShares ends the sandbox when its file service dies: a guest whose root is gone only hangs.
func (s *Sandbox) watchShares(a *attempt, server *virtiofs.Server) {
	if !s.lostHelper(a, server.Done(), func() bool { return server.Err() == nil }) {
		return
	}
	reason := "the file service ended"
	if err := server.Err(); err != nil {
		reason = err.Error()
	}
	s.log.Error("file service lost", "reason", reason)
	s.cannotFlush()
	s.teardown(reason)
}

// lostHelper waits for the end of a process that serves the VM and tells whether the VM has lost it. One that may
// have hung up also ends because the monitor has, and then that one's reason is the better one.
func (s *Sandbox) lostHelper(a *attempt, ended <-chan struct{}, hungUp func() bool) bool {
	select {
	case <-ended:
	case <-a.dropped:
		return false
	case <-s.done:
		return false
	}
	s.mu.Lock()
	vm := s.vm
	s.mu.Unlock()
	var monitorGone <-chan struct{} // never, where it has not started
	if vm != nil {
		monitorGone = vm.Done()
	}
	if hungUp() {
		select {
		case <-monitorGone:
			return false
		case <-a.dropped:
			return false
		case <-s.done:
			return false
		case <-time.After(hangUpWait):
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.ending
}

// cannotFlush spares a teardown the wait for a guest that would not come to write its files.
func (s *Sandbox) cannotFlush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared = false
}
