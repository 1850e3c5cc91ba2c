package cli

import (
	"fmt"

	"husk.dev/husk/internal/vmm"
)

// driver is the configured monitor's.
func (a *App) driver() (vmm.Driver, error) {
	make, known := a.drivers[a.config.VMM]
	if !known {
		return nil, fmt.Errorf("configuration: vmm = %q: this husk has no such driver", a.config.VMM)
	}
	return make(a.config.QEMU), nil
}
