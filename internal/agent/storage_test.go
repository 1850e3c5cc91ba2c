package agent_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/storage/virtiofs"
	"husk.dev/husk/internal/testenv"
	"husk.dev/husk/internal/vmm"
)

// share serves a directory to a VM until the test ends.
func share(t *testing.T, tag, dir string) vmm.Share {
	t.Helper()
	server, err := virtiofs.Start(t.Context(), virtiofs.Options{Dir: dir, Socket: filepath.Join(t.TempDir(), "socket")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return vmm.Share{Tag: tag, Socket: server.Socket()}
}

// TestGuestStorage takes roots and volumes from layers on persistent memory and from a share.
func TestGuestStorage(t *testing.T) {
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	base, over, shared := busyboxRoot(t), t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(over, "plain"), []byte("of the upper layer"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(busyboxRoot(t), filepath.Join(shared, "rootfs")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(shared, "volume"), 0o777); err != nil {
		t.Fatal(err)
	}
	var disks []vmm.Disk
	for i, dir := range []string{base, over} {
		path := erofs(t, dir)
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		const unit = 2 << 20
		if err := os.Truncate(path, (st.Size()+unit-1)/unit*unit); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, vmm.Disk{Serial: "layer-" + string(rune('0'+i)), Path: path, ReadOnly: true, Pmem: true})
	}
	s := greet(t, boot(t, vmm.Spec{Machine: "q35", Disks: disks, Shares: []vmm.Share{share(t, "files", shared)}}))

	zero, one := uint32(0), uint32(1)
	s.root = func() *agentv1.Rootfs {
		return &agentv1.Rootfs{Lower: []*agentv1.Disk{
			{Pmem: &zero, Filesystem: "erofs", Readonly: true, Dax: true}, {Pmem: &one, Filesystem: "erofs", Readonly: true, Dax: true},
		}}
	}
	if status, out, errs := s.run(t, "sh", "-c", "cat /plain; echo changed > /plain; cat /plain; echo new > /tmp/new"); status != 0 || out != "of the upper layerchanged\n" {
		t.Errorf("layers: status %d, output %q, %s", status, out, errs)
	}

	// A root on the share, and a volume of it, of which the host sees what is written.
	dir := filepath.Join(agentv1.ShareDir, "files")
	mounts := []any{
		map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
		map[string]any{"destination": "/data", "type": "bind", "source": dir + "/volume", "options": []string{"rbind"}},
	}
	p := s.open(t, false)
	id := s.id("c")
	_, err := s.CreateContainer(t.Context(), &agentv1.CreateContainerRequest{
		Id: id, Rootfs: &agentv1.Rootfs{Path: dir + "/rootfs"}, Shares: []string{"files"}, Stdio: p.stdio, Start: true,
		Spec: config(process("sh", "-c", "echo from the guest > /data/file; cat /plain; ls /"), map[string]any{"mounts": mounts}),
	})
	if err != nil {
		t.Fatal(err)
	}
	if status, out := s.exit(t, id, ""), p.out.all(t); status != 0 || !strings.HasPrefix(out, "textbin\ndata\n") {
		t.Errorf("share: status %d, output %q, %s", status, out, p.err.all(t))
	}
	if _, err := s.Sync(t.Context(), &agentv1.Empty{}); err != nil {
		t.Error(err)
	}
	if _, err := s.DeleteContainer(t.Context(), &agentv1.ContainerRequest{Id: id}); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(shared, "volume/file")); err != nil || string(text) != "from the guest\n" {
		t.Errorf("the host sees %q, %v", text, err)
	}
	_, err = s.CreateContainer(t.Context(), &agentv1.CreateContainerRequest{
		Id: "x", Spec: config(process("true"), nil), Rootfs: s.root(), Shares: []string{"absent"},
	})
	wantCode(t, err, codes.Internal, "mount share absent")
}
