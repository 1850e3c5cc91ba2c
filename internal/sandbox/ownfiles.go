package sandbox

import (
	"context"
	"path"
	"slices"
	"strconv"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
)

// File is a file of the container's own, which is mounted over what its root has there. It is no part of the root and lasts
// as long as the VM.
type File struct {
	Path     string // in the container
	Content  []byte
	ReadOnly bool // the container cannot change it
}

// sendOwn has the guest make a container's own files and returns spec with mounts of them. They need no file service: the
// guest has them in its memory.
func (s *Sandbox) sendOwn(ctx context.Context, spec *specs.Spec, files []File) (*specs.Spec, error) {
	if len(files) == 0 {
		return spec, nil
	}
	number := s.puts.Add(1)
	name := "own" + strconv.FormatUint(number, 10) // a copy's is longer
	request := &agentv1.PutFilesRequest{
		Name: name, Number: number, Files: []*agentv1.File{{Path: ".", Mode: syscall.S_IFDIR | 0o755}},
	}
	with := *spec
	with.Mounts = slices.Clone(spec.Mounts)
	for i, f := range files {
		as := strconv.Itoa(i)
		request.Files = append(request.Files, &agentv1.File{Path: as, Mode: syscall.S_IFREG | 0o644, Content: f.Content, ModifiedUnixNanos: time.Now().UnixNano()})
		access := "rw"
		if f.ReadOnly {
			access = "ro"
		}
		with.Mounts = append(with.Mounts, specs.Mount{
			Type: "bind", Source: path.Join(agentv1.FilesDir, name, as), Destination: f.Path, Options: []string{"bind", "rprivate", access},
		})
	}
	ctx, cancel := guest.Bound(ctx)
	defer cancel()
	if _, err := s.client().PutFiles(ctx, request); err != nil {
		return nil, explain(err, "make files of the container's own")
	}
	return &with, nil
}
