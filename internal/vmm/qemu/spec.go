package qemu

import (
	"fmt"
	"runtime"

	"husk.dev/husk/internal/vmm"
)

const (
	// microvmSlots is how many virtio-mmio transports a microvm with ACPI has.
	microvmSlots = 24
	// q35Slots is how many devices fit on the root bus beside the host bridge and the chipset, with
	// some room to spare.
	q35Slots = 28 - pciSlots
	// ownSlots are taken by the serial device, the random number device and the vsock.
	ownSlots = 3
	// pciSlots are taken on a q35 by the ports and more memory.
	pciSlots = 2
)

// check returns the first thing in s that QEMU cannot do.
func check(s vmm.Spec) error {
	if err := s.Check(); err != nil {
		return err
	}
	for _, c := range checks {
		if err := c(s); err != nil {
			return err
		}
	}
	return nil
}

var checks = []func(vmm.Spec) error{checkMachine, checkPmem, checkSlots, checkSnapshot}

func checkMachine(s vmm.Spec) error {
	switch s.Machine {
	case microvm, q35:
		return nil
	}
	return &vmm.UnsupportedError{Driver: name, What: fmt.Sprintf("machine %q", s.Machine), Needs: "machine microvm or q35"}
}

// checkPmem: QEMU has virtio-pmem on PCI only, and a microvm has no room for it in its address space.
func checkPmem(s vmm.Spec) error {
	for _, d := range s.Disks {
		if d.Pmem && s.Machine != q35 {
			return &vmm.UnsupportedError{Driver: name, What: "virtio-pmem (disk " + d.Serial + ") on machine " + s.Machine, Needs: "machine q35"}
		}
	}
	return nil
}

func checkSlots(s vmm.Spec) error {
	slots, needs := microvmSlots, "machine q35"
	if s.Machine == q35 {
		slots, needs = q35Slots, ""
	}
	disks := len(s.Disks)
	if s.From != nil {
		disks = max(disks, vmm.SavedDisks)
	}
	if used := ownSlots + disks + len(s.Shares) + len(s.NICs); used > slots {
		if used > q35Slots {
			needs = ""
		}
		return &vmm.UnsupportedError{
			Driver: name, Needs: needs,
			What: fmt.Sprintf("more than %d disks, shares and network cards on machine %s", slots-ownSlots, s.Machine),
		}
	}
	return nil
}

// checkSnapshot: a microvm finds its devices when it boots and never again.
func checkSnapshot(s vmm.Spec) error {
	if (s.From != nil || s.Savable) && (s.Machine != q35 || runtime.GOARCH != "amd64") {
		return &vmm.UnsupportedError{Driver: name, What: "a saved VM on machine " + s.Machine, Needs: "machine q35 on amd64"}
	}
	if s.From != nil && len(s.Shares) > portCount {
		return &vmm.UnsupportedError{Driver: name, What: fmt.Sprintf("more than %d shares of a VM that continues", portCount)}
	}
	return nil
}
