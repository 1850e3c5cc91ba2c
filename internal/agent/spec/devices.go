package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// device is an element of linux.devices.
type device struct {
	Path  string `json:"path"`
	Type  string `json:"type"`
	Major int64  `json:"major"`
	Minor int64  `json:"minor"`
}

// The majors of character devices that are the same on every Linux (the kernel's admin-guide/devices.txt): memory
// devices, terminals, misc, and pseudo terminals.
var common = map[int64]bool{1: true, 5: true, 10: true, 136: true}

// checkDevices refuses nodes of the guest's own devices. Whoever wrote the configuration meant one of the
// host's, and a number that is none there may be a disk here.
func checkDevices(linux object) error {
	var devices []device
	if err := linux.get("devices", &devices); err != nil {
		return fmt.Errorf("linux: %w", err)
	}
	for _, d := range devices {
		kind := map[string]string{"b": "block", "c": "char", "u": "char"}[d.Type]
		if kind == "" || kind == "char" && common[d.Major] {
			continue
		}
		_, err := os.Stat(fmt.Sprintf("/sys/dev/%s/%d:%d", kind, d.Major, d.Minor))
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: the device %s (%d:%d) would be the guest's own", ErrInvalid, d.Path, d.Major, d.Minor)
		}
	}
	return nil
}
