package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/storage"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest"
)

// diskGuest is a guest that makes every container, and the monitor that it is in, which plugs disks: both note what they are told.
type diskGuest struct {
	agent
	vmmtest.Fake

	mu      sync.Mutex // guards the fields below
	spec    vmm.Spec
	created map[string]*agentv1.CreateContainerRequest
	plugged []string // serials of what is plugged in now
	refuse  error    // what the next PlugDisks returns
	fails   bool     // CreateContainer does
	keeps   error    // what UnplugDisks returns
}

func (g *diskGuest) CreateContainer(_ context.Context, r *agentv1.CreateContainerRequest) (*agentv1.CreateContainerResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.fails {
		return nil, errors.New("no")
	}
	g.created[r.Id] = r
	return &agentv1.CreateContainerResponse{Pid: 7}, nil
}

func (g *diskGuest) Signal(context.Context, *agentv1.SignalRequest) (*agentv1.Empty, error) {
	return nil, errors.New("it has ended")
}

func (g *diskGuest) Sync(context.Context, *agentv1.Empty) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

func (g *diskGuest) DeleteContainer(context.Context, *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	return &agentv1.Empty{}, nil
}

// Start is the fake's, of a VM that plugs disks.
func (g *diskGuest) Start(ctx context.Context, s vmm.Spec) (vmm.VM, error) {
	g.Serve = func(ctx context.Context, s *channel.Server) error {
		l, err := s.Listen(agentv1.PortRPC)
		if err != nil {
			return err
		}
		server, err := ttrpc.NewServer()
		if err != nil {
			return err
		}
		agentv1.RegisterAgentService(server, g)
		go server.Serve(ctx, l)
		<-ctx.Done()
		return server.Close()
	}
	g.mu.Lock()
	g.spec = s
	g.mu.Unlock()
	vm, err := g.Fake.Start(ctx, s)
	return plugVM{vm, g}, err
}

type plugVM struct {
	vmm.VM
	g *diskGuest
}

func (v plugVM) PlugDisks(_ context.Context, disks []vmm.Disk) error {
	v.g.mu.Lock()
	defer v.g.mu.Unlock()
	if v.g.refuse != nil {
		return v.g.refuse
	}
	for _, d := range disks {
		if _, err := d.File.Stat(); err != nil {
			return err
		}
		v.g.plugged = append(v.g.plugged, d.Serial)
	}
	return nil
}

func (v plugVM) UnplugDisks(_ context.Context, disks []vmm.Disk) error {
	v.g.mu.Lock()
	defer v.g.mu.Unlock()
	if v.g.keeps != nil {
		return v.g.keeps
	}
	for _, d := range disks {
		i := slices.Index(v.g.plugged, d.Serial)
		if i < 0 {
			return fmt.Errorf("%s is not plugged in", d.Serial)
		}
		v.g.plugged = slices.Delete(v.g.plugged, i, i+1)
	}
	return nil
}

func (g *diskGuest) has(t *testing.T, want ...string) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if !slices.Equal(g.plugged, want) {
		t.Errorf("plugged in is %q, want %q", g.plugged, want)
	}
}

// openImage makes a file for a disk.
func openImage(t *testing.T, filesystem string, readOnly bool) Image {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return Image{File: f, Filesystem: filesystem, ReadOnly: readOnly}
}

// newDiskSandbox makes a sandbox with a container whose root is a disk.
func newDiskSandbox(t *testing.T) (*Sandbox, *diskGuest, CreateRequest) {
	t.Helper()
	s, request := newSandbox(t, nil)
	g := &diskGuest{created: map[string]*agentv1.CreateContainerRequest{}}
	s.options.Driver = g
	whole := openImage(t, "ext4", false)
	request.Layers, request.Root = nil, &RootDisks{Whole: &whole}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := s.Create(ctx, request); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.pod.tree = &storage.Tree{} // none of the test's containers has files of the host
	s.mu.Unlock()
	request.Root = nil
	return s, g, request
}

func TestRootOfDisks(t *testing.T) {
	if _, err := exec.LookPath("/usr/sbin/mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	s, g, request := newDiskSandbox(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if got := g.created["c"].Rootfs; got.GetWhole().GetSerial() != "root-0" || got.GetWhole().GetFilesystem() != "ext4" || got.GetWhole().GetReadonly() {
		t.Errorf("the first container's root is %v", got)
	}
	if len(g.spec.Disks) != 1 || g.spec.Disks[0].Serial != "root-0" || g.spec.Disks[0].File == nil || g.spec.Disks[0].ReadOnly {
		t.Errorf("the VM was started with %+v", g.spec.Disks)
	}

	root := &RootDisks{Lower: []Image{openImage(t, "erofs", true), openImage(t, "erofs", true)}, Scratch: filepath.Join(t.TempDir(), "upper")}
	root.Lower[1].Data = []*os.File{openImage(t, "", true).File}
	attached, err := s.Attach(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	g.has(t, "root1-0", "root1-1", "root1-2", "root1-3")
	request.ID, request.Dir, request.Root, request.Attached = "d", directory(t, s, "d"), root, attached
	if err := s.Create(ctx, request); err != nil {
		t.Fatal(err)
	}
	got := g.created["d"].Rootfs
	if len(got.GetLower()) != 2 || got.Lower[0].Serial != "root1-0" || !got.Lower[1].Readonly || !slices.Equal(got.Lower[1].Data, []string{"root1-2"}) ||
		got.GetUpper().GetSerial() != "root1-3" || got.Upper.Readonly {
		t.Errorf("the further container's root is %v", got)
	}
	if err := s.Delete(ctx, "d", true); err != nil {
		t.Fatal(err)
	}
	g.has(t)
	if _, err := os.Stat(root.Scratch); err != nil {
		t.Errorf("what the container wrote is gone: %v", err)
	}
}

// TestAttachFails: nothing is left of disks that do not come to be a container's root.
func TestAttachFails(t *testing.T) {
	if _, err := exec.LookPath("/usr/sbin/mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	s, g, request := newDiskSandbox(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	full := &vmm.UnsupportedError{Driver: "fake", What: "more disks"}
	g.refuse = full
	upper := openImage(t, "ext4", false)
	root := &RootDisks{Lower: []Image{openImage(t, "erofs", true)}, Upper: &upper}
	if _, err := s.Attach(ctx, root); !errors.Is(err, vmm.ErrNotSupported) {
		t.Errorf("without a place: %v", err)
	}
	if sys.Marked(upper.File.Name(), GuestMark) {
		t.Error("what no guest has seen is marked")
	}
	fresh := &RootDisks{Lower: root.Lower, Scratch: filepath.Join(t.TempDir(), "upper")}
	if _, err := s.Attach(ctx, fresh); !errors.Is(err, vmm.ErrNotSupported) {
		t.Errorf("without a place: %v", err)
	}
	if _, err := os.Stat(fresh.Scratch); err == nil {
		t.Error("a writable disk is left that no guest has")
	}
	g.refuse = nil
	many := &RootDisks{Lower: make([]Image, MaxRootDisks+1)}
	if _, err := s.Attach(ctx, many); !errors.Is(err, vmm.ErrNotSupported) {
		t.Errorf("too many disks: %v", err)
	}
	g.has(t)

	attached, err := s.Attach(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	g.has(t, "root3-0", "root3-1")
	g.mu.Lock()
	g.fails = true
	g.mu.Unlock()
	request.ID, request.Dir, request.Root, request.Attached = "d", directory(t, s, "d"), root, attached
	if err := s.Create(ctx, request); err == nil {
		t.Fatal("a container that the guest cannot make was made")
	}
	g.has(t)
	if err := attached.Detach(); err != nil {
		t.Errorf("detached again: %v", err)
	}
	if attached, err = s.Attach(ctx, root); err != nil {
		t.Fatal(err)
	}
	request.Dir, request.Attached = nil, attached // refused before anything is made
	if err := s.Create(ctx, request); !errors.Is(err, ErrState) {
		t.Errorf("without a directory: %v", err)
	}
	g.has(t)
}

// TestAttachMayBeSeen: where a guest may have seen disks before they could not be plugged in, they stay marked.
func TestAttachMayBeSeen(t *testing.T) {
	if _, err := exec.LookPath("/usr/sbin/mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	probe := openImage(t, "ext4", false)
	marks, _ := sys.MarkFile(probe.File, GuestMark) // as root, on a file system that keeps such marks
	s, g, _ := newDiskSandbox(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g.refuse = errors.New("the slot is locked")
	upper := openImage(t, "ext4", false)
	if _, err := s.Attach(ctx, &RootDisks{Upper: &upper}); err == nil || errors.Is(err, ErrNoPlace) {
		t.Errorf("half plugged in: %v", err)
	}
	if sys.Marked(upper.File.Name(), GuestMark) != marks {
		t.Error("what a guest may have seen is not marked")
	}
	fresh := &RootDisks{Scratch: filepath.Join(t.TempDir(), "upper")}
	if _, err := s.Attach(ctx, fresh); err == nil || errors.Is(err, ErrNoPlace) {
		t.Errorf("half plugged in: %v", err)
	}
	defer fresh.Close()
	if _, err := os.Stat(fresh.Scratch); err != nil {
		t.Errorf("a writable disk that a guest may have: %v", err)
	}
	if sys.Marked(fresh.Scratch, GuestMark) != marks {
		t.Error("a writable disk that a guest may have is not marked")
	}
}

// TestGuestKeepsDisks: a guest that does not let go of the disks of a container that was not made is ended, and the Create
// that found out does not wait for it.
func TestGuestKeepsDisks(t *testing.T) {
	for _, plugging := range []bool{true, false} {
		s, g, request := newDiskSandbox(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		upper := openImage(t, "ext4", false)
		request.ID, request.Dir, request.Root = "d", directory(t, s, "d"), &RootDisks{Whole: &upper}
		g.mu.Lock()
		if plugging {
			g.refuse = fmt.Errorf("plug: %w", vmm.ErrHeld)
		} else {
			g.fails, g.keeps = true, errors.New("it holds on")
		}
		g.mu.Unlock()
		if err := s.Create(ctx, request); err == nil {
			t.Fatal("the container was made")
		}
		select {
		case <-s.Done():
		case <-ctx.Done():
			t.Fatal("a guest that keeps disks lives on")
		}
		if !strings.Contains(s.reason, "has not let go") {
			t.Errorf("it ended with %q", s.reason)
		}
	}
}

// TestLendRootFails: before the first container's VM is started its disks are nobody's.
func TestLendRootFails(t *testing.T) {
	if _, err := exec.LookPath("/usr/sbin/mkfs.ext4"); err != nil {
		t.Skip(err)
	}
	s, _ := newSandbox(t, nil)
	for _, ready := range []bool{false, true} {
		whole := openImage(t, "ext4", false)
		root := &RootDisks{Whole: &whole, Scratch: filepath.Join(t.TempDir(), "upper")}
		defer root.Close()
		a := newAttempt()
		if _, err := s.lendRoot(t.Context(), a, root, &vmm.Spec{}); err != nil {
			t.Fatal(err)
		}
		marked := sys.Marked(whole.File.Name(), GuestMark) // as root, on a file system that keeps such marks
		a.ready = ready
		if err := a.undo.Clean(); err != nil {
			t.Error(err)
		}
		if sys.Marked(whole.File.Name(), GuestMark) != (marked && ready) {
			t.Errorf("the monitor started: %v; marked: %v", ready, !ready)
		}
		if _, err := os.Stat(root.Scratch); (err == nil) != ready || (root.Upper != nil) != ready {
			t.Errorf("the monitor started: %v; the writable disk: %v", ready, err)
		}
	}
}
