package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// RescanPCI has the kernel look for new PCI devices and returns once their drivers have them (sysfs-bus-pci
// in the kernel's ABI documents). A machine without PCI is no error.
func RescanPCI() error {
	err := os.WriteFile("/sys/bus/pci/rescan", []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for new PCI devices: %w", err)
	}
	return nil
}
