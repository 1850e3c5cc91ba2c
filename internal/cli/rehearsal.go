package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/image"
	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/storage/disk"
	"husk.dev/husk/internal/template"
	"husk.dev/husk/internal/vmm"
)

// rehearsal makes, in dir, what a template's guest rehearses: a container as husk run makes it, of an image with
// one layer that holds nothing but a program, which is never run.
func (a *App) rehearsal(ctx context.Context, dir string) (*template.Rehearsal, error) {
	const program, layer, upper = "program", "layer", "upper"
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(root, program), []byte("#!/"+program), 0o755); err != nil {
		return nil, err
	}
	r := &template.Rehearsal{Rootfs: &agentv1.Rootfs{
		Lower: []*agentv1.Disk{{Serial: layer, Filesystem: "erofs", Readonly: true}},
	}}
	file := filepath.Join(dir, "layer.erofs")
	if err := image.MakeLayer(ctx, file, root); err != nil {
		return nil, err
	}
	r.Disks = append(r.Disks, vmm.Disk{Serial: layer, Path: file, ReadOnly: true})
	if a.config.WritableMiB > 0 {
		file := filepath.Join(dir, "upper.img")
		if err := disk.Create(ctx, filepath.Join(a.config.DataDir, "blank"), file, a.config.WritableMiB); err != nil {
			return nil, err
		}
		r.Disks = append(r.Disks, vmm.Disk{Serial: upper, Path: file})
		r.Rootfs.Upper = &agentv1.Disk{Serial: upper, Filesystem: "ext4"}
	}
	spec, err := defaultSpec()
	if err != nil {
		return nil, err
	}
	spec.Process.Args = []string{"/" + program}
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	bundle, err := ocispec.FromSpec(dir, data)
	if err != nil {
		return nil, err
	}
	plan, err := ocispec.MakePlan(bundle, ocispec.PlanOptions{ShareDir: agentv1.ShareDir, Name: "rehearsal"})
	if err != nil {
		return nil, err
	}
	r.Spec, err = json.Marshal(plan.Spec)
	return r, err
}
