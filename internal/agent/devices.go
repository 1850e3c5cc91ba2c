package agent

import (
	"context"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent/mnt"
	"husk.dev/husk/internal/agent/spec"
	"husk.dev/husk/internal/sys"
)

// maxDevices bounds the block devices of a container.
const maxDevices = 64

// blockDevices finds the numbers that the guest has for the block devices of a configuration.
func blockDevices(ctx context.Context, all []*agentv1.BlockDevice) (map[spec.Number]spec.Number, error) {
	if len(all) > maxDevices {
		return nil, fail(codes.InvalidArgument, "%d block devices: at most %d", len(all), maxDevices)
	}
	disks := map[spec.Number]spec.Number{}
	for _, d := range all {
		number, err := mnt.BlockNumber(ctx, d.GetSerial())
		if err != nil {
			return nil, err
		}
		major, minor := sys.DeviceNumber(number)
		disks[spec.Number{Major: d.GetMajor(), Minor: d.GetMinor()}] = spec.Number{Major: major, Minor: minor}
	}
	return disks, nil
}
