package sandbox

import (
	"path"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// File is a file of the container's own, which is mounted over what its root has there. It is no part of the root and lasts
// as long as the container.
type File struct {
	Path     string // in the container
	Content  []byte
	ReadOnly bool // the container cannot change it
}

// withFiles returns spec with mounts of a container's own files, and what the guest is told of them. They need no file
// service: the guest has them in its memory.
func withFiles(spec *specs.Spec, id string, files []File) (*specs.Spec, [][]byte) {
	with, own := *spec, [][]byte(nil)
	with.Mounts = slices.Clone(spec.Mounts)
	for i, f := range files {
		access := "rw"
		if f.ReadOnly {
			access = "ro"
		}
		with.Mounts = append(with.Mounts, specs.Mount{
			Type: "bind", Source: path.Join(agentv1.OwnDir, id, strconv.Itoa(i)), Destination: f.Path, Options: []string{"bind", "rprivate", access},
		})
		own = append(own, f.Content)
	}
	return &with, own
}
