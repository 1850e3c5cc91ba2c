package check

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/sys/kvm"
	"husk.dev/husk/internal/vmm"
)

func (m *machine) architecture() Item {
	item := Item{Name: "architecture", Status: OK, Value: m.Arch}
	switch m.Arch {
	case "x86_64":
	case "arm64":
		item.Status, item.Why = Warning, "husk builds for arm64, but has not run there yet"
	default:
		item.Status, item.Why = Missing, "husk runs on x86_64 and arm64"
	}
	return item
}

func (m *machine) kernel() Item {
	release := m.release()
	if release == "" {
		return Item{Name: "kernel", Status: Warning, Value: "unknown", Why: "/proc/sys/kernel/osrelease cannot be read"}
	}
	return Item{Name: "kernel", Status: OK, Value: release}
}

func (m *machine) release() string {
	data, err := os.ReadFile(m.at("/proc/sys/kernel/osrelease"))
	if err != nil {
		return ""
	}
	return printable(string(data))
}

func (m *machine) user() Item {
	if m.UID == 0 {
		return Item{Name: "user", Status: OK, Value: "root"}
	}
	return Item{
		Name: "user", Status: Warning, Value: fmt.Sprintf("uid %d", m.UID),
		Why: "without root husk needs subordinate ids (subuid(5), uidmap), and containers have no network but the loopback",
		Fix: "sudo husk check",
	}
}

// isolation is the class of a container that is started now.
func (m *machine) isolation() vmm.Isolation {
	if m.Config.Accel != "tcg" && m.KVM.State == kvm.Real {
		return vmm.Hardware
	}
	return vmm.Emulated
}

func (m *machine) isolationItem() Item {
	item := Item{Name: "isolation", Status: OK, Value: string(m.isolation())}
	if m.isolation() == vmm.Hardware {
		return item
	}
	item.Status, item.Why = Warning, "emulation is slow and no security boundary: run nothing hostile"
	if m.KVM.State == kvm.Real { // and so it was asked for
		item.Fix = `set accel = "auto" in ` + config.DefaultFile
	}
	return item
}

// kvm is what /dev/kvm is worth, by measurement.
func (m *machine) kvm() Item {
	item := Item{Name: "kvm", Status: Warning, Value: string(m.KVM.State)}
	if times := m.KVM.Slowdown(); times > 0 {
		item.Value = fmt.Sprintf("%s (a loop takes %.0f times as long as outside of a guest)", m.KVM.State, max(1, times))
	}
	switch m.KVM.State {
	case kvm.Real:
		return m.kvmForMonitor(item)
	case kvm.Emulated:
		item.Why = "it interprets guest code: most often this machine is a VM itself, and only its host can turn nested virtualisation on"
	case kvm.Denied:
		item.Why, item.Fix = "this user may not open "+kvm.Device, m.joinKVM()
	case kvm.Absent:
		item.Why, item.Fix = m.whyNoKVM()
	case kvm.Broken:
		item.Why = "it fails"
		if m.KVM.Err != nil {
			item.Why = printable(m.KVM.Err.Error())
		}
	}
	if m.Config.Accel == "kvm" && m.KVM.State != kvm.Emulated {
		item.Status = Missing
		item.Why += `; accel = "kvm" in the configuration insists on it`
	}
	return item
}

// joinKVM lets a user open the devices that distributions give to the group kvm. What root may not open,
// no group helps with.
func (m *machine) joinKVM() string {
	if m.UID == 0 {
		return ""
	}
	return "usermod -aG kvm USER, and log in again"
}

// kvmForMonitor: the monitor runs as a user of its own, and of our groups keeps the one that owns the
// device.
func (m *machine) kvmForMonitor(item Item) Item {
	item.Status = OK
	info, err := os.Stat(m.at(kvm.Device))
	if err != nil || m.MonitorUID == 0 {
		return item
	}
	mode := info.Mode().Perm()
	if mode&0o060 == 0o060 || mode&0o006 == 0o006 {
		return item
	}
	item.Status = Missing
	item.Why = fmt.Sprintf("its mode %v lets root alone open it, but the monitor runs as a user of its own", mode)
	item.Fix = "chgrp kvm " + kvm.Device + " && chmod 660 " + kvm.Device
	return item
}

// whyNoKVM tells a processor that cannot from a module that is not loaded.
func (m *machine) whyNoKVM() (why, fix string) {
	cpuinfo, err := os.ReadFile(m.at("/proc/cpuinfo"))
	if err != nil {
		return "there is no " + kvm.Device, ""
	}
	for flag, module := range map[string]string{"vmx": "kvm_intel", "svm": "kvm_amd"} {
		if !hasWord(string(cpuinfo), flag) {
			continue
		}
		if m.hasModule(module) {
			return "there is no " + kvm.Device + ", but the processor can", "modprobe " + module
		}
		return "there is no " + kvm.Device + ", and this kernel has no module " + module, ""
	}
	return "the processor offers no virtualisation: turn it on in the firmware, or as nested virtualisation in this machine's host", ""
}

func hasWord(text, word string) bool {
	for _, w := range strings.Fields(text) {
		if w == word {
			return true
		}
	}
	return false
}

// hasModule tells whether the running kernel has a module, loaded or not. Names in the list may have
// dashes where modprobe takes both.
func (m *machine) hasModule(name string) bool {
	list, err := os.Open(m.at("/lib/modules/" + m.release() + "/modules.dep"))
	if err != nil {
		return false
	}
	defer list.Close()
	lines := bufio.NewScanner(list)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		file, _, _ := strings.Cut(lines.Text(), ":")
		base, _, _ := strings.Cut(filepath.Base(file), ".ko")
		if strings.ReplaceAll(base, "-", "_") == name {
			return true
		}
	}
	return false
}

func (m *machine) vhostVsock() Item {
	return m.device("/dev/vhost-vsock", "vhost_vsock", "the guest is reached by a serial port, which is slower")
}

func (m *machine) vhostNet() Item {
	return m.device("/dev/vhost-net", "vhost_net", "the monitor moves packets itself, which is slower")
}

// device is one that speeds something up.
func (m *machine) device(path, module, why string) Item {
	item := Item{Name: strings.TrimPrefix(path, "/dev/"), Status: Warning, Value: "absent", Why: why}
	f, err := os.OpenFile(m.at(path), os.O_RDWR, 0)
	switch {
	case err == nil:
		f.Close()
		return Item{Name: item.Name, Status: OK, Value: path}
	case errors.Is(err, os.ErrPermission):
		item.Value, item.Fix = "denied", m.joinKVM()
	case m.hasModule(module):
		item.Fix = "modprobe " + module
	default:
		item.Why += "; this kernel has no module " + module
	}
	return item
}

// guest is the kernel and the image that every VM boots.
func (m *machine) guest() []Item {
	kernel, image := Item{Name: "guest-kernel", Status: OK}, Item{Name: "guest-image", Status: OK}
	if m.GuestErr != nil {
		for _, item := range []*Item{&kernel, &image} {
			item.Status, item.Value, item.Why, item.Fix = Missing, "not found", printable(m.GuestErr.Error()), "make kernel image"
		}
		return []Item{kernel, image}
	}
	kernel.Value = fmt.Sprintf("%s (%s), %s", m.Guest.KernelVersion, m.Guest.Kind, m.Guest.Kernel)
	if m.Guest.Kind == "distro" {
		kernel.Status, kernel.Why = Warning, "a distribution's kernel boots slower than husk's own"
		kernel.Fix = "make kernel image KERNEL=husk"
	}
	image.Value = fmt.Sprintf("%s, %s", m.Guest.Key, m.Guest.Initrd)
	if info, err := os.Stat(m.Guest.Initrd); err == nil {
		image.Value = fmt.Sprintf("%s (%s), %s", m.Guest.Key, size(uint64(info.Size())), m.Guest.Initrd)
	}
	return []Item{kernel, image}
}

// cgroups is how the host has them mounted.
func (m *machine) cgroups() Item {
	item := Item{Name: "cgroups", Status: OK}
	v1, v2, err := m.cgroupMounts()
	switch {
	case err != nil:
		item.Status, item.Value, item.Why = Warning, "unknown", printable(err.Error())
	case v1 > 0 && v2:
		item.Value = fmt.Sprintf("hybrid (v2 beside %d v1 hierarchies)", v1)
	case v2:
		item.Value = "v2"
	case v1 > 0:
		item.Value = fmt.Sprintf("v1 (%d hierarchies)", v1)
	default:
		item.Status, item.Value = Warning, "not mounted"
		item.Why = "limits are set in the guest only"
	}
	return item
}

// cgroupMounts counts the hierarchies of this mount namespace.
func (m *machine) cgroupMounts() (v1 int, v2 bool, err error) {
	table, err := os.Open(m.at("/proc/self/mountinfo"))
	if err != nil {
		return 0, false, err
	}
	defer table.Close()
	seen := map[string]bool{} // by device: a hierarchy may be mounted twice
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		before, after, found := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if !found || len(fields) < 3 || seen[fields[2]] {
			continue
		}
		switch kind, _, _ := strings.Cut(after, " "); kind {
		case "cgroup":
			v1++
			seen[fields[2]] = true
		case "cgroup2":
			v2 = true
		}
	}
	return v1, v2, lines.Err()
}

func (m *machine) dataDir() Item {
	item := m.directory("data_dir", m.Config.DataDir, 1<<30)
	if item.Status == OK && strings.Contains(item.Value, "tmpfs") {
		item.Status, item.Why = Warning, "images and writable disks lie in memory and end with it"
	}
	return item
}

func (m *machine) runDir() Item { return m.directory("run_dir", m.Config.RunDir, 64<<20) }

// directory says what lies under a directory that husk writes to; one that is not there is made later.
func (m *machine) directory(name, dir string, want uint64) Item {
	item := Item{Name: name, Status: OK}
	there, err := m.existing(dir)
	var fs syscall.Statfs_t
	if err == nil {
		err = syscall.Statfs(m.at(there), &fs)
	}
	if err != nil {
		item.Status, item.Value, item.Why = Missing, dir, printable(err.Error())
		return item
	}
	free := fs.Bavail * uint64(fs.Bsize) // as df counts it, without what is kept for root
	item.Value = fmt.Sprintf("%s, %s, %s free", dir, fileSystem(int64(fs.Type)), size(free))
	const readOnly = 1 // ST_RDONLY of statvfs(3)
	switch {
	case fs.Flags&readOnly != 0:
		item.Status, item.Why = Missing, "the file system is mounted read-only"
		item.Fix = fmt.Sprintf("set %s in %s", name, config.DefaultFile)
	case free < want:
		item.Status, item.Why = Warning, fmt.Sprintf("less than %s is free", size(want))
		item.Fix = fmt.Sprintf("set %s in %s to a directory with more", name, config.DefaultFile)
	}
	return item
}

// existing is dir or the closest directory above it that exists.
func (m *machine) existing(dir string) (string, error) {
	for {
		info, err := os.Stat(m.at(dir))
		switch {
		case err == nil && info.IsDir():
			return dir, nil
		case err == nil:
			return "", fmt.Errorf("%s is not a directory", dir)
		case !errors.Is(err, os.ErrNotExist) || dir == "/":
			return "", err
		}
		dir = filepath.Dir(dir)
	}
}

// fileSystem names a file system by its magic number, statfs(2).
func fileSystem(magic int64) string {
	names := map[int64]string{
		0xef53: "ext4", 0x58465342: "xfs", 0x9123683e: "btrfs", 0x01021994: "tmpfs", 0x794c7630: "overlay",
		0x2fc12fc1: "zfs", 0xf2f52010: "f2fs", 0x6969: "nfs", 0xca451a4e: "bcachefs",
	}
	if name, known := names[magic]; known {
		return name
	}
	return fmt.Sprintf("file system 0x%x", magic)
}

// size is a number of bytes for people.
func size(bytes uint64) string {
	switch {
	case bytes >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
	case bytes >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%d KiB", bytes>>10)
}
