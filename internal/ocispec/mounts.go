package ocispec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/sys"
)

// isBind tells whether m puts existing files in place, by its type or by its options.
func isBind(m specs.Mount) bool {
	return m.Type == "bind" || m.Type == "rbind" || has(m.Options, "bind") || has(m.Options, "rbind")
}

// planMounts decides for each bind mount whether its source is lent by the host or is something that
// every kernel has of its own. The guest must never see the host's kernel through a file system, nor
// would the host's devices or processes mean anything to it.
func (p *Plan) planMounts(bundle string, o PlanOptions) error {
	for i := range p.Spec.Mounts {
		m := &p.Spec.Mounts[i]
		if !path.IsAbs(m.Destination) {
			m.Destination = "/" + m.Destination
		}
		if !isBind(*m) {
			continue
		}
		if err := p.planBind(m, bundle, fmt.Sprintf("%s.m%d", o.Name, i), o); err != nil {
			return fmt.Errorf("mount %q: %w", m.Destination, err)
		}
	}
	return nil
}

func (p *Plan) planBind(m *specs.Mount, bundle, name string, o PlanOptions) error {
	source := m.Source
	if !filepath.IsAbs(source) {
		source = filepath.Join(bundle, source)
	}
	resolved, err := filepath.EvalSymlinks(source)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("source %s does not exist", m.Source)
	}
	if err != nil {
		return fmt.Errorf("find source: %w", err)
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return fmt.Errorf("find source: %w", err)
	}
	if own, err := p.guestOwn(m, resolved, info, o); own || err != nil {
		return err
	}
	if p.copied(m, resolved, info, o) {
		return nil
	}
	if info.Mode()&(fs.ModeSocket|fs.ModeNamedPipe) != 0 {
		p.warn("mount %q: %s is a socket or pipe of the host, which the guest sees but cannot talk through", m.Destination, m.Source)
	}
	share := SharedPath{
		HostPath: resolved, GuestName: name, ReadOnly: readOnly(m.Options),
		Recursive: m.Type == "rbind" || has(m.Options, "rbind"), IsFile: !info.IsDir(),
	}
	if err := p.mountsBelow(m, &share); err != nil {
		return err
	}
	share.UIDs, share.GIDs = m.UIDMappings, m.GIDMappings // of the host's mount, and with it of the guest's
	m.UIDMappings, m.GIDMappings = nil, nil
	p.Shares = append(p.Shares, share)
	m.Type, m.Source = "bind", path.Join(o.ShareDir, name)
	if !has(m.Options, "bind") && !has(m.Options, "rbind") {
		m.Options = append(slices.Clone(m.Options), "bind")
	}
	return nil
}

// mountsBelow plans for what is mounted below a shared directory, now and later: for the guest all of it is one file
// system.
func (p *Plan) mountsBelow(m *specs.Mount, share *SharedPath) error {
	switch {
	case has(m.Options, "rshared"), has(m.Options, "shared"):
		share.Follow, share.Return = true, !share.IsFile
	case has(m.Options, "rslave"), has(m.Options, "slave"):
		share.Follow = true
	}
	if !share.ReadOnly || !share.Recursive || share.IsFile || has(m.Options, "rro") {
		return nil
	}
	below, err := sys.MountsBelow(share.HostPath)
	if err != nil || !below {
		return err
	}
	share.TopOnly = true // as mount(8) has it; the guest's own mount would be read-only as a whole
	m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
	return nil
}

// guestOwn plans a bind mount whose source belongs to the host's kernel, and tells whether it was one:
// a whole kernel file system becomes a fresh one of the guest, a part of one the same part of the
// guest's, a standard device the guest's device. What has no counterpart is an error.
func (p *Plan) guestOwn(m *specs.Mount, source string, info fs.FileInfo, o PlanOptions) (bool, error) {
	if kind, ok := kernelRoots[source]; ok {
		fresh(m, kind)
		return true, nil
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode()&fs.ModeDevice != 0 {
		device := ""
		if info.Mode()&fs.ModeCharDevice != 0 {
			device = guestDevice(deviceNumbers(uint64(st.Rdev)))
		}
		if device == "" {
			return false, fmt.Errorf("%s is a device of the host, which is not supported yet", m.Source)
		}
		asGuestPath(m, device)
		return true, nil
	}
	kind, size, err := fileSystem(source)
	if err != nil {
		return false, fmt.Errorf("look at file system of source: %w", err)
	}
	switch {
	case path.Clean(m.Destination) == "/dev/shm" && kind == "tmpfs":
		p.planMemory(m, source, size, o)
		return true, nil
	case below(source, "/sys/fs/cgroup"):
		return false, fmt.Errorf("%s is a cgroup of the host, which the guest cannot see", m.Source)
	case below(source, "/proc"), below(source, "/sys"):
		asGuestPath(m, source)
		return true, nil
	case source == "/dev", below(source, "/dev") && !below(source, "/dev/shm") && info.Mode()&fs.ModeSocket == 0:
		asGuestPath(m, source)
		return true, nil
	case kernelKinds[kind]:
		return false, fmt.Errorf("%s lies on the host's %s, which the guest cannot see", m.Source, kind)
	}
	return false, nil
}

// kernelRoots are the usual places of file systems that a container gets a fresh one of.
var kernelRoots = map[string]string{
	"/proc": "proc", "/sys": "sysfs", "/sys/fs/cgroup": "cgroup", "/dev/shm": "tmpfs", "/dev/mqueue": "mqueue", "/dev/pts": "devpts",
}

// fresh turns a bind mount into a new file system of the guest, with the flags that the engines give
// such a mount and those that were asked for.
func fresh(m *specs.Mount, kind string) {
	options := []string{"nosuid", "noexec", "nodev"}
	switch kind {
	case "devpts":
		options = []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	case "tmpfs":
		options = append(options, "mode=1777")
	case "cgroup":
		options = append(options, "relatime")
	}
	if readOnly(m.Options) {
		options = append(options, "ro")
	}
	m.Type, m.Source, m.Options = kind, kind, options
}

// asGuestPath keeps a bind mount but means the guest's own file.
func asGuestPath(m *specs.Mount, guest string) {
	m.Type, m.Source = "bind", guest
	if !has(m.Options, "bind") && !has(m.Options, "rbind") {
		m.Options = append(slices.Clone(m.Options), "bind")
	}
}

// readOnly tells what the last of the contradicting options says.
func readOnly(options []string) bool {
	ro := false
	for _, o := range options {
		switch o {
		case "ro", "rro":
			ro = true
		case "rw", "rrw":
			ro = false
		}
	}
	return ro
}

func below(p, dir string) bool { return strings.HasPrefix(p, dir+"/") }

// fileSystem names the file system that holds p where it is one of fileSystems, and its size in bytes.
func fileSystem(p string) (kind string, size uint64, err error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(p, &st); err != nil {
		return "", 0, err
	}
	return fileSystems[uint32(st.Type)], st.Blocks * uint64(st.Bsize), nil
}

// fileSystems are the magic numbers of statfs(2), as in the kernel's linux/magic.h.
var fileSystems = map[uint32]string{
	0x01021994: "tmpfs", 0x9fa0: "proc", 0x62656572: "sysfs", 0x27e0eb: "cgroup", 0x63677270: "cgroup2",
	0x1cd1: "devpts", 0x19800202: "mqueue", 0x64626720: "debugfs", 0x74726163: "tracefs", 0xcafe4a11: "bpf",
	0x73636673: "securityfs", 0x62656570: "configfs", 0x6165676c: "pstore", 0xde5e81e4: "efivarfs",
	0x42494e4d: "binfmt_misc", 0x958458f6: "hugetlbfs", 0x67596969: "rpc_pipefs", 0x65735543: "fusectl",
	0x6e736673: "nsfs", 0xf97cff8c: "selinuxfs",
}

// kernelKinds are those of fileSystems that show a kernel and not files.
var kernelKinds = func() map[string]bool {
	kinds := map[string]bool{}
	for _, kind := range fileSystems {
		kinds[kind] = kind != "tmpfs"
	}
	return kinds
}()

// deviceNumbers takes a device number of stat(2) apart, in the kernel's encoding for 64 bits.
func deviceNumbers(rdev uint64) (major, minor int64) {
	return int64(rdev>>8&0xfff | rdev>>32&^0xfff), int64(rdev&0xff | rdev>>12&0xffffff00)
}
