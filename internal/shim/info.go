package shim

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"husk.dev/husk/internal/ocispec"
)

// featuresURL is the type of the OCI's features document in an Any (containerd, typeurl).
const featuresURL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// allowMounts is the annotation by which a runtime says which mounts it makes itself (containerd, core/runtime/v2).
const allowMounts = "containerd.io/runtime-allow-mounts"

// printInfo tells containerd what the runtime can do. On stdin are the options that it would be given.
func (p Program) printInfo() error {
	data, err := p.readInput()
	if err != nil {
		return err
	}
	info := &types.RuntimeInfo{Name: Runtime, Version: &types.RuntimeVersion{Version: p.Version}}
	if len(data) > 0 {
		info.Options = &anypb.Any{}
		if err := proto.Unmarshal(data, info.Options); err != nil {
			return fmt.Errorf("read options: %w", err)
		}
	}
	can := ocispec.Features()
	yes := true
	// containerd has the root mounted with the ids of a pod's user namespace, and takes that from this field.
	can.Linux.MountExtensions.IDMap.Enabled = &yes
	features, err := json.Marshal(can)
	if err != nil {
		return fmt.Errorf("encode features: %w", err)
	}
	// As containerd 2.2 asks, which does not know the extension of the answer to start.
	var own []string
	for _, transform := range ownTransforms {
		own = append(own, transform+"/*")
	}
	info.Annotations = map[string]string{allowMounts: strings.Join(append(own, ownMounts...), ",")}
	info.Features = &anypb.Any{TypeUrl: featuresURL, Value: features}
	return p.print(info)
}
