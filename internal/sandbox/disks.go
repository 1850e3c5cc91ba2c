package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/storage/disk"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/vmm"
)

// GuestMark marks a file whose file system a guest has been able to write to as it likes. No kernel of this machine is to
// mount it for husk (sys.MarkFile).
const GuestMark = "husk.guest"

// ErrNoPlace is matched where the VM has no place for disks, or not for so many. Nothing was plugged in then.
var ErrNoPlace = vmm.ErrNotSupported

// MaxRootDisks is how many disks a root may be made of: those beside it have to find a place too.
const MaxRootDisks = 16

// Image is a file system in a file or block device of the host.
type Image struct {
	File       *os.File // open for writing too, unless ReadOnly
	Filesystem string   // ext4 or erofs
	ReadOnly   bool
	Data       []*os.File // further files with data of an EROFS, in the order in which it numbers them
}

// RootDisks is a root that is made of file systems which the guest mounts, and the host does not.
type RootDisks struct {
	Whole *Image  // the root is this file system itself
	Lower []Image // or: read-only layers, the lowest first
	Upper *Image  // what is written over Lower
	// Scratch is a file for Upper, where there is none: an ext4 that is made if it does not exist, and stays.
	Scratch string
}

// Close closes the files. Whoever was lent them has copies.
func (r *RootDisks) Close() {
	for _, image := range r.images() {
		if image.File != nil {
			image.File.Close()
		}
		for _, f := range image.Data {
			f.Close()
		}
	}
}

// Disks is how many there are, with the one that Scratch may become.
func (r *RootDisks) Disks() int {
	n := 0
	for _, image := range r.images() {
		n += 1 + len(image.Data)
	}
	if r.Scratch != "" && r.Upper == nil {
		n++
	}
	return n
}

// Check refuses more disks than a root may be made of, with an ErrNoPlace.
func (r *RootDisks) Check() error {
	if r.Disks() > MaxRootDisks {
		return &vmm.UnsupportedError{Driver: "husk", What: fmt.Sprintf("a root of %d disks", r.Disks())}
	}
	return nil
}

func (r *RootDisks) images() (all []*Image) {
	if r.Whole != nil {
		all = append(all, r.Whole)
	}
	for i := range r.Lower {
		all = append(all, &r.Lower[i])
	}
	if r.Upper != nil {
		all = append(all, r.Upper)
	}
	return all
}

// openScratch opens the file for what is written, and makes it first where there is none, which it tells.
func (s *Sandbox) openScratch(ctx context.Context, r *RootDisks) (made bool, err error) {
	if r.Scratch == "" || r.Upper != nil {
		return false, nil
	}
	open := func() (*os.File, error) { return os.OpenFile(r.Scratch, os.O_RDWR|syscall.O_NOFOLLOW, 0) }
	f, err := open()
	if errors.Is(err, fs.ErrNotExist) {
		if s.config.WritableMiB == 0 {
			return false, nil // guest memory takes it
		}
		if err := disk.CreateLasting(ctx, s.blanks(), r.Scratch, s.config.WritableMiB); err != nil {
			return false, err
		}
		made = true
		f, err = open()
	}
	if err != nil {
		return made, fmt.Errorf("open writable disk: %w", err)
	}
	r.Upper = &Image{File: f, Filesystem: "ext4"}
	return made, nil
}

// lent names the disks of a root by serials that begin with prefix, and says what the guest makes of them.
func (r *RootDisks) lent(prefix string) ([]vmm.Disk, *agentv1.Rootfs) {
	var disks []vmm.Disk
	add := func(f *os.File, readOnly bool) string {
		serial := fmt.Sprintf("%s%d", prefix, len(disks))
		disks = append(disks, vmm.Disk{Serial: serial, File: f, ReadOnly: readOnly})
		return serial
	}
	one := func(image *Image) *agentv1.Disk {
		d := &agentv1.Disk{Serial: add(image.File, image.ReadOnly), Filesystem: image.Filesystem, Readonly: image.ReadOnly}
		for _, f := range image.Data {
			d.Data = append(d.Data, add(f, true))
		}
		return d
	}
	root := &agentv1.Rootfs{}
	if r.Whole != nil {
		root.Whole = one(r.Whole)
	}
	for i := range r.Lower {
		root.Lower = append(root.Lower, one(&r.Lower[i]))
	}
	if r.Upper != nil {
		root.Upper = one(r.Upper)
	}
	return disks, root
}

// mark marks what the guest may write to, and returns what takes the marks away that are new. A file system that keeps no such
// mark only loses a precaution.
func (r *RootDisks) mark() (undo func()) {
	var fresh []*os.File
	for _, image := range r.images() {
		if image.ReadOnly {
			continue
		}
		if is, _ := sys.MarkFile(image.File, GuestMark); is {
			fresh = append(fresh, image.File)
		}
	}
	return func() {
		for _, f := range fresh {
			_ = sys.UnmarkFile(f, GuestMark) // marked, it is only refused
		}
	}
}

// ready opens, or makes, the file for what is written and marks what the guest may write to. undo takes that back, for as long
// as no guest has seen any of it.
func (s *Sandbox) ready(ctx context.Context, r *RootDisks) (undo func() error, err error) {
	made, err := s.openScratch(ctx, r)
	if err != nil {
		return nil, err
	}
	unmark := r.mark()
	return func() error {
		unmark()
		if !made {
			return nil
		}
		r.Upper.File.Close()
		r.Upper = nil
		return os.Remove(r.Scratch)
	}, nil
}

// AttachedRoot is a root whose disks are plugged into a VM that runs.
type AttachedRoot struct {
	root   *agentv1.Rootfs
	detach func() error
}

// Detach takes the disks out. It may be called more than once.
func (a *AttachedRoot) Detach() error {
	if a == nil {
		return nil
	}
	return a.detach()
}

// Attach plugs the disks of a further container's root into the VM. Where it has no place for them the error matches
// ErrNoPlace; after every other one the guest may have written to them, and this machine is not to mount them.
func (s *Sandbox) Attach(ctx context.Context, r *RootDisks) (*AttachedRoot, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	undo, err := s.ready(ctx, r)
	if err != nil {
		return nil, err
	}
	disks, root := r.lent(s.nextSerial("root"))
	detach, err := s.plug(ctx, disks)
	if errors.Is(err, ErrNoPlace) {
		if undone := undo(); undone != nil {
			s.log.Warn("undo a writable disk", "error", undone)
		}
	}
	if err != nil {
		return nil, err
	}
	return &AttachedRoot{root: root, detach: detach}, nil
}

// nextSerial begins the serials of disks that are plugged in together, which no others of the VM have.
func (s *Sandbox) nextSerial(kind string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pod.plugs++
	return fmt.Sprintf("%s%d-", kind, s.pod.plugs)
}

// plug plugs disks into the VM; detach takes them out again, once. A guest that does not let go of them is ended.
func (s *Sandbox) plug(ctx context.Context, disks []vmm.Disk) (detach func() error, err error) {
	s.mu.Lock()
	vm := s.vm
	s.mu.Unlock()
	plugger, ok := vm.(vmm.DiskPlugger)
	if !ok {
		return nil, fmt.Errorf("plug disks: the monitor cannot: %w", vmm.ErrNotSupported)
	}
	if err := plugger.PlugDisks(ctx, disks); err != nil {
		if errors.Is(err, vmm.ErrHeld) {
			s.held(vm, err)
		}
		return nil, err
	}
	if slices.ContainsFunc(disks, func(d vmm.Disk) bool { return !d.ReadOnly }) {
		s.writesFiles()
	}
	return sync.OnceValue(func() error {
		select {
		case <-vm.Done(): // and they with it
			return nil
		default:
		}
		err := plugger.UnplugDisks(context.Background(), disks) // which bounds its wait
		select {
		case <-vm.Done():
			return nil
		default:
		}
		if err != nil {
			s.held(vm, err)
		}
		return err
	}), nil
}

// held ends the VM of a guest that keeps disks which are to be gone. It does not wait: the teardown waits for a Create that
// may be what found out. A VM that has gone by itself has the better reason.
func (s *Sandbox) held(vm vmm.VM, err error) {
	go func() {
		select {
		case <-vm.Done():
			return
		case <-time.After(endWait):
		}
		s.log.Error("the guest keeps disks", "error", err)
		s.teardown("the guest has not let go of its disks: " + err.Error())
	}()
}

// writesFiles notes that the guest writes to what outlives it.
func (s *Sandbox) writesFiles() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared = true
}

// lendRoot adds the disks of the first container's root to spec. An attempt that fails before the VM is started leaves them as
// they were.
func (s *Sandbox) lendRoot(ctx context.Context, a *attempt, r *RootDisks, spec *vmm.Spec) (*agentv1.Rootfs, error) {
	undo, err := s.ready(ctx, r)
	if err != nil {
		return nil, err
	}
	a.undo.Add(func() error {
		if a.ready { // a guest may have seen them
			return nil
		}
		return undo()
	})
	disks, root := r.lent("root-")
	spec.Disks = append(spec.Disks, disks...)
	s.writesFiles()
	return root, nil
}

// openBlocks opens the block devices that a container is to have, as disks whose serials begin with prefix. The caller closes
// their files.
func openBlocks(plan *ocispec.Plan, prefix string) (disks []vmm.Disk, devices []*agentv1.BlockDevice, err error) {
	for i, b := range plan.Blocks {
		f, readOnly, err := sys.OpenBlock(b.Major, b.Minor, b.ReadOnly, b.Path)
		if err == nil {
			var size int64
			if size, err = f.Seek(0, 2); err == nil && size == 0 {
				err = errors.New("it has no medium")
			}
			if err != nil {
				f.Close()
			}
		}
		if err != nil {
			closeDisks(disks)
			return nil, nil, fmt.Errorf("linux.devices: the block device %s (%d:%d): %w", b.Path, b.Major, b.Minor, err)
		}
		serial := fmt.Sprintf("%s%d", prefix, i)
		disks = append(disks, vmm.Disk{Serial: serial, File: f, ReadOnly: readOnly})
		devices = append(devices, &agentv1.BlockDevice{Major: b.Major, Minor: b.Minor, Serial: serial})
	}
	return disks, devices, nil
}

func closeDisks(disks []vmm.Disk) {
	for _, d := range disks {
		d.File.Close()
	}
}

// attachBlocks plugs the block devices of a further container in.
func (s *Sandbox) attachBlocks(ctx context.Context, c *container, plan *ocispec.Plan) error {
	if len(plan.Blocks) == 0 {
		return nil
	}
	disks, devices, err := openBlocks(plan, s.nextSerial("block"))
	if err != nil {
		return err
	}
	defer closeDisks(disks)
	detach, err := s.plug(ctx, disks)
	if err != nil {
		return fmt.Errorf("linux.devices: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.devices = devices
	c.detach = append(c.detach, detach)
	return nil
}

// unplug takes out the disks that were plugged in for a container.
func (c *container) unplug() error {
	c.mu.Lock()
	all := c.detach
	c.mu.Unlock()
	var errs []error
	for _, detach := range all {
		errs = append(errs, detach())
	}
	return errors.Join(errs...)
}
