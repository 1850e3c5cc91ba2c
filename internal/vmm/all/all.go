// Package all is the list of the drivers in the binaries.
package all

import (
	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/qemu"
)

// Drivers makes a driver by its name, with the path of its monitor; an empty path lets the driver look.
var Drivers = map[string]func(binary string) vmm.Driver{
	"qemu": func(binary string) vmm.Driver { return qemu.New(qemu.Options{Binary: binary}) },
}
