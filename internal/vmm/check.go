package vmm

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Bounds of a Spec that hold for every driver.
const (
	MinMemoryMiB = 32
	MaxMemoryMiB = 1 << 24
	MaxVCPUs     = 240
	// MaxCmdline leaves room in the 2,048 bytes of an x86 kernel for what drivers add.
	MaxCmdline = 1536
)

var (
	idPattern     = regexp.MustCompile(`^[a-zA-Z0-9_.+-]{1,128}$`)
	serialPattern = regexp.MustCompile(`^[a-zA-Z0-9-]{1,20}$`)
	tagPattern    = regexp.MustCompile(`^[a-zA-Z0-9-]{1,36}$`)
)

// Check returns the first thing in the Spec that no driver takes. It looks at the values alone, not at
// the files they name.
func (s Spec) Check() error {
	for _, check := range specChecks {
		if err := check(s); err != nil {
			return fmt.Errorf("check VM %q: %w", s.ID, err)
		}
	}
	return nil
}

var specChecks = []func(Spec) error{
	checkID, checkAccel, checkKernel, checkCmdline, checkSize, checkDisks, checkShares, checkNICs, checkSnapshot, checkRunDir,
}

func checkID(s Spec) error {
	if !idPattern.MatchString(s.ID) {
		return fmt.Errorf("id %q: must be 1 to 128 of [a-zA-Z0-9_.+-]", s.ID)
	}
	return nil
}

func checkAccel(s Spec) error {
	switch s.Accel {
	case "", "kvm", "tcg":
		return nil
	}
	return fmt.Errorf("accelerator %q: must be kvm, tcg or empty", s.Accel)
}

func checkKernel(s Spec) error {
	if err := checkPath("kernel", s.Kernel); err != nil {
		return err
	}
	if s.Initrd == "" {
		return nil
	}
	return checkPath("initrd", s.Initrd)
}

func checkCmdline(s Spec) error {
	if len(s.Cmdline) > MaxCmdline {
		return fmt.Errorf("kernel command line of %d bytes: at most %d", len(s.Cmdline), MaxCmdline)
	}
	for _, r := range s.Cmdline {
		if r < ' ' || r > '~' {
			return fmt.Errorf("kernel command line holds %q: must be printable ASCII", r)
		}
	}
	return nil
}

func checkSize(s Spec) error {
	if s.MemoryMiB < MinMemoryMiB || s.MemoryMiB > MaxMemoryMiB {
		return fmt.Errorf("memory of %d MiB: must be from %d to %d", s.MemoryMiB, MinMemoryMiB, MaxMemoryMiB)
	}
	if s.VCPUs < 1 || s.VCPUs > MaxVCPUs {
		return fmt.Errorf("%d virtual processors: must be from 1 to %d", s.VCPUs, MaxVCPUs)
	}
	return nil
}

func checkDisks(s Spec) error { return CheckDisks(s.Disks) }

// CheckDisks returns the first thing in a list of disks that no driver takes.
func CheckDisks(disks []Disk) error {
	seen := map[string]bool{}
	for i, d := range disks {
		if !serialPattern.MatchString(d.Serial) {
			return fmt.Errorf("disk %d: serial %q: must be 1 to 20 of [a-zA-Z0-9-]", i, d.Serial)
		}
		if seen[d.Serial] {
			return fmt.Errorf("disk %d: serial %q is taken by another disk", i, d.Serial)
		}
		seen[d.Serial] = true
		if d.File != nil {
			continue
		}
		if err := checkPath("disk "+d.Serial, d.Path); err != nil {
			return err
		}
	}
	return nil
}

func checkShares(s Spec) error {
	seen := map[string]bool{}
	for i, share := range s.Shares {
		if !tagPattern.MatchString(share.Tag) {
			return fmt.Errorf("share %d: tag %q: must be 1 to 36 of [a-zA-Z0-9-]", i, share.Tag)
		}
		if seen[share.Tag] {
			return fmt.Errorf("share %d: tag %q is taken by another share", i, share.Tag)
		}
		seen[share.Tag] = true
		if err := checkPath("share "+share.Tag, share.Socket); err != nil {
			return err
		}
	}
	return nil
}

// Bounds of a NIC.
const (
	MinMTU = 68 // what IPv4 needs (RFC 791)
	MaxMTU = 65535
	// MaxQueues is what QEMU and the kernel's taps both take.
	MaxQueues = 256
	// mostQueues bounds what a card is given: the buffers of each queue take 0.4 MiB of the guest's memory.
	mostQueues = 8
)

// Queues is how many queues the network cards of a VM with vcpus processors have.
func Queues(vcpus int) int { return min(vcpus, mostQueues) }

func checkNICs(s Spec) error {
	seen := map[string]bool{}
	for i, nic := range s.NICs {
		if err := nic.Check(); err != nil {
			return fmt.Errorf("network card %d (%s): %w", i, nic.Name, err)
		}
		if seen[nic.MAC.String()] {
			return fmt.Errorf("network card %d (%s): MAC address %s is taken by another card", i, nic.Name, nic.MAC)
		}
		seen[nic.MAC.String()] = true
	}
	return nil
}

// Check returns the first thing in a card that no driver takes.
func (n NIC) Check() error {
	mac := n.MAC
	switch {
	case len(mac) != 6 || mac[0]&1 != 0 || mac.String() == "00:00:00:00:00:00":
		return fmt.Errorf("MAC address %q: must be that of one card", mac)
	case n.MTU < MinMTU || n.MTU > MaxMTU:
		return fmt.Errorf("MTU %d: must be from %d to %d", n.MTU, MinMTU, MaxMTU)
	case n.Stream != nil && len(n.Taps)+len(n.Vhosts) > 0:
		return errors.New("both a socket and a tap")
	case n.Stream != nil: // which has the one queue
	case len(n.Taps) < 1 || len(n.Taps) > MaxQueues:
		return fmt.Errorf("%d queues: must be from 1 to %d", len(n.Taps), MaxQueues)
	case len(n.Vhosts) != 0 && len(n.Vhosts) != len(n.Taps):
		return fmt.Errorf("%d vhost files for %d queues: must be as many, or none", len(n.Vhosts), len(n.Taps))
	}
	return nil
}

// savedAs is the kind of a card as a saved VM can have it, NoCard where it can not.
func savedAs(n NIC) Card {
	switch {
	case n.Stream == nil && n.MAC.String() == SavedMAC.String():
		return TapCard
	case n.Stream != nil && n.MAC.String() == StreamMAC.String() && n.MTU == StreamMTU:
		return StreamCard
	}
	return NoCard
}

func checkSnapshot(s Spec) error {
	switch {
	case s.Savable && s.From != nil:
		return errors.New("a VM that continues a saved one cannot be saved")
	case s.Savable && len(s.Shares) > 0:
		return errors.New("a VM that is to be saved can have no shares")
	case s.Savable && len(s.NICs) > 1:
		return errors.New("a VM that is to be saved can have one network card")
	case s.Savable && len(s.NICs) == 1 && savedAs(s.NICs[0]) == NoCard:
		return fmt.Errorf("the network card of a VM that is to be saved must have a tap and the MAC address %s, or a socket and %s", SavedMAC, StreamMAC)
	case s.Savable && (len(s.Disks) > SavedDisks || slices.ContainsFunc(s.Disks, func(d Disk) bool { return d.Pmem })):
		return fmt.Errorf("a VM that is to be saved can have %d disks, none of them pmem", SavedDisks)
	case s.From == nil:
		return nil
	}
	if err := checkPath("saved memory", s.From.Memory); err != nil {
		return err
	}
	if err := checkPath("saved state", s.From.State); err != nil {
		return err
	}
	if s.From.Card != NoCard && (len(s.NICs) == 0 || savedAs(s.NICs[0]) != s.From.Card) {
		return errors.New("a saved VM with a network card cannot continue without it")
	}
	if s.From.MemoryMiB < MinMemoryMiB || s.From.MemoryMiB > s.MemoryMiB {
		return fmt.Errorf("a saved VM of %d MiB cannot continue with %d MiB", s.From.MemoryMiB, s.MemoryMiB)
	}
	return nil
}

func checkRunDir(s Spec) error {
	if s.RunDir == "" {
		return nil
	}
	return checkPath("run directory", s.RunDir)
}

func checkPath(what, path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%s: path %q: must be absolute", what, path)
	}
	if strings.ContainsRune(path, 0) {
		return fmt.Errorf("%s: path %q: holds a zero byte", what, path)
	}
	return nil
}
