package qemu

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"husk.dev/husk/internal/sys/kvm"
	"husk.dev/husk/internal/sys/vsock"
	"husk.dev/husk/internal/vmm"
)

// tscUnit is how coarsely a snapshot is tied to the frequency of the host's counter, in kHz: it is measured
// anew in each process, and does not come out the same to the last digit. tscEdge is where a unit ends: not at
// round numbers nor in the middle between them, which is where processors have theirs.
const tscUnit, tscEdge = 10_000, 7_300

// SnapshotKey hashes QEMU's arguments for a VM that is to be saved, and what they do not show: the files they
// name, and the processor where the guest sees it. See vmm.Keyer.
func (d *Driver) SnapshotKey(s vmm.Spec) (string, error) {
	s = vmm.Spec{
		ID: "snapshot", Machine: s.Machine, Accel: s.Accel, Kernel: s.Kernel, Initrd: s.Initrd, Cmdline: s.Cmdline,
		MemoryMiB: s.MemoryMiB, VCPUs: s.VCPUs, Savable: true, NICs: s.NICs,
	}
	if err := check(s); err != nil {
		return "", err
	}
	binary, err := d.binary()
	if err != nil {
		return "", err
	}
	accel, err := resolveAccel(s.Accel, kvm.Measure)
	if err != nil {
		return "", err
	}
	f := hostFacts(accel)
	f.tscKHz = tscClass(f.tscKHz)
	f.console, f.qmp, f.kernel, f.initrd, f.ram, f.agent = true, 3, 4, 5, 6, 7
	if _, err := os.Stat(vsock.VhostDevice); err == nil {
		f.agent, f.vhost = 0, 7
	}
	for _, nic := range s.NICs {
		fact := nicFact{taps: make([]int, len(nic.Taps))}
		if nic.Stream != nil {
			fact.stream = 8
		} else if _, err := os.Stat(vmm.VhostNet); err == nil {
			fact.vhosts = make([]int, len(nic.Taps))
		}
		f.nics = append(f.nics, fact) // descriptors are no part of a VM
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%q\n", argv(s, f))
	for _, path := range []string{binary, s.Kernel, s.Initrd} {
		if err := identify(hash, path); err != nil {
			return "", err
		}
	}
	if accel == "kvm" {
		if err := processor(hash); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%x", hash.Sum(nil)[:16]), nil
}

// tscClass is the same number for all that one counter's frequency may be measured as.
func tscClass(khz int) int {
	if khz == 0 {
		return 0 // not known
	}
	return (khz + tscUnit - tscEdge) / tscUnit * tscUnit
}

// identify writes what changes when a file does.
func identify(to io.Writer, path string) error {
	if path == "" {
		return nil
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("find %s: %w", path, fs.ErrNotExist)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(to, "%s %d %d\n", path, info.Size(), info.ModTime().UnixNano())
	return nil
}

// processor writes what a guest under KVM sees of the host's processor: a guest that was saved on another
// may use instructions that this one does not have.
func processor(to io.Writer) error {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return fmt.Errorf("tell processors apart: %w", err)
	}
	first, _, _ := strings.Cut(string(text), "\n\n")
	for line := range strings.Lines(first) {
		key, _, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "vendor_id", "cpu family", "model", "stepping", "microcode", "flags", "Features":
			io.WriteString(to, line)
		}
	}
	return nil
}
