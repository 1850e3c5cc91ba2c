// Package boot makes a guest of a kernel that has just started PID 1: file systems, cgroups, modules, and
// the channel to the host.
package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"husk.dev/husk/internal/sys"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// agentCgroup is the group that the agent itself is in, so that what it uses can be told apart.
	agentCgroup = cgroupRoot + "/husk-agent"
	// programs is the image's directory of programs, in which crun is.
	programs = "/usr/bin"
)

// mount is one file system of the guest.
type mount struct {
	source, dir, kind string
	flags             uintptr
	options           string
	optional          bool // a kernel may lack it
}

const (
	noSUID = syscall.MS_NOSUID
	noDev  = syscall.MS_NODEV
	noExec = syscall.MS_NOEXEC
)

// mounts are the file systems in their order. /run must be exec: the shell's program is there.
var mounts = []mount{
	{"proc", "/proc", "proc", noSUID | noDev | noExec, "", false},
	{"sysfs", "/sys", "sysfs", noSUID | noDev | noExec, "", false},
	{"devtmpfs", "/dev", "devtmpfs", noSUID, "mode=0755", false},
	{"devpts", "/dev/pts", "devpts", noSUID | noExec, "newinstance,ptmxmode=0666,mode=0620,gid=5", false},
	{"tmpfs", "/dev/shm", "tmpfs", noSUID | noDev | noExec, "mode=1777", false},
	{"mqueue", "/dev/mqueue", "mqueue", noSUID | noDev | noExec, "", true},
	{"tmpfs", "/run", "tmpfs", noSUID | noDev, "mode=0755", false},
	{"tmpfs", "/tmp", "tmpfs", noSUID | noDev, "mode=1777", false},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", noSUID | noDev | noExec, "nsdelegate", false},
}

// sysctls are the kernel settings that differ from the kernel's defaults. Containers may set their own
// where the settings are a namespace's.
var sysctls = [][2]string{
	{"fs/inotify/max_user_instances", "8192"}, // as on container hosts
	{"fs/inotify/max_user_watches", "524288"},
	{"vm/max_map_count", "262144"}, // what databases ask for, and only the guest as a whole can set
	{"vm/overcommit_memory", "1"},  // what a container may use is its cgroup's matter
	{"kernel/dmesg_restrict", "1"},
	{"kernel/kptr_restrict", "2"},
	{"fs/protected_hardlinks", "1"},
	{"fs/protected_symlinks", "1"},
	{"kernel/panic", "-1"}, // the host learns of a panic by the VM's end
	{"kernel/panic_on_oops", "1"},
}

// Guest sets the guest up, up to where the channel can be opened. Finish does the rest. Errors are fatal.
func Guest() error {
	if err := root(); err != nil {
		return err
	}
	for _, m := range mounts {
		if err := m.mount(); err != nil && !m.optional {
			return err
		}
	}
	for _, link := range [][2]string{
		{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"},
	} {
		_ = os.Remove(link[1]) // devtmpfs makes /dev/ptmx a node of its own
		if err := os.Symlink(link[0], link[1]); err != nil {
			return fmt.Errorf("boot: %w", err)
		}
	}
	if err := modules(); err != nil {
		return err
	}
	return console()
}

// console makes the console this process' output where the kernel had none yet when it started it, because its
// driver is a module.
func console() error {
	if sys.IsTerminal(os.Stderr) {
		return nil
	}
	f, err := os.OpenFile("/dev/console", os.O_WRONLY|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil // a guest without a console has nobody to tell
	}
	defer f.Close()
	for _, fd := range []int{1, 2} {
		if err := syscall.Dup3(int(f.Fd()), fd, 0); err != nil {
			return fmt.Errorf("boot: open console: %w", err)
		}
	}
	return nil
}

// Finish sets up what containers need. Much of it waits for grace periods of the kernel, so it runs beside
// the opening of the channel, and its parts beside each other.
func Finish() error {
	steps := []func() error{cgroups, machine, func() error { return readOnly(programs) }}
	failed := make(chan error, len(steps))
	for _, step := range steps {
		go func() { failed <- step() }()
	}
	var errs []error
	for range steps {
		errs = append(errs, <-failed)
	}
	return errors.Join(errs...)
}

// machine sets what the machine as a whole has: the loopback interface, limits and settings.
func machine() error {
	if err := sys.LinkUp("lo"); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if err := limits(); err != nil {
		return err
	}
	for _, s := range sysctls {
		_ = os.WriteFile(filepath.Join("/proc/sys", s[0]), []byte(s[1]), 0) // some kernels lack some
	}
	return nil
}

// limits raises the resource limits that containers without their own inherit from PID 1 to what they
// find on container hosts. The kernel's are meant for a small init.
func limits() error {
	const (
		rlimitNproc = 6 // RLIMIT_NPROC, which package syscall lacks
		maxFiles    = 1 << 20
		infinity    = ^uint64(0)
	)
	for _, l := range []struct {
		resource int
		value    uint64
	}{{syscall.RLIMIT_NOFILE, maxFiles}, {rlimitNproc, infinity}} {
		if err := syscall.Setrlimit(l.resource, &syscall.Rlimit{Cur: l.value, Max: l.value}); err != nil {
			return fmt.Errorf("boot: raise resource limit %d: %w", l.resource, err)
		}
	}
	return nil
}

// root makes the root a mount that crun can pivot away from. The kernel's first root file system cannot be
// (pivot_root(2)): it has no parent mount. So it is mounted once more over itself, which copies nothing.
func root() error {
	const dir = "/run" // any directory; it is mounted over later
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if err := syscall.Mount("/", dir, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("boot: bind root: %w", err)
	}
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if err := syscall.Mount(".", "/", "", syscall.MS_MOVE, ""); err != nil {
		return fmt.Errorf("boot: move root: %w", err)
	}
	if err := syscall.Chroot("."); err != nil {
		return fmt.Errorf("boot: change root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	return nil
}

func (m mount) mount() error {
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	err := syscall.Mount(m.source, m.dir, m.kind, m.flags, m.options)
	if err != nil && !(errors.Is(err, syscall.EBUSY) && m.kind == "devtmpfs") { // the kernel may have done it
		return fmt.Errorf("boot: mount %s: %w", m.dir, err)
	}
	return nil
}

// readOnly mounts the directory of programs read-only over itself. Before each run crun copies itself to
// where a container can change nothing of it and starts again from there, twice where it lies on tmpfs, as in
// an initramfs; unless it is on a read-only file system that is not tmpfs. An overlay of one is such.
func readOnly(dir string) error {
	const empty = "/mnt" // overlayfs wants two layers
	if err := os.MkdirAll(empty, 0o755); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	if err := syscall.Mount("overlay", dir, "overlay", syscall.MS_RDONLY|noDev, "lowerdir="+dir+":"+empty); err != nil {
		return fmt.Errorf("boot: mount %s read-only: %w", dir, err)
	}
	return nil
}

// cgroups gives every controller to the containers' groups.
func cgroups() error {
	controllers, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	enable := ""
	for _, c := range strings.Fields(string(controllers)) {
		enable += "+" + c + " "
	}
	containers := filepath.Join(cgroupRoot, "husk")
	if err := os.MkdirAll(containers, 0o755); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	for _, dir := range []string{cgroupRoot, containers} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(enable), 0); err != nil {
			return fmt.Errorf("boot: enable cgroups: %w", err)
		}
	}
	return nil
}

// enterCgroup moves the agent into its own group. Nothing waits for it.
func enterCgroup() error {
	if err := os.MkdirAll(agentCgroup, 0o755); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	if err := os.WriteFile(filepath.Join(agentCgroup, "cgroup.procs"), []byte("1"), 0); err != nil {
		return fmt.Errorf("enter cgroup: %w", err)
	}
	return nil
}

// modules loads what the image's list names and closes the door behind it: the guest has no need to load
// any later, but what breaks into it might.
func modules() error {
	if err := sys.LoadModules(); err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	err := os.WriteFile("/proc/sys/kernel/modules_disabled", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without modules has no such switch
		return fmt.Errorf("boot: forbid modules: %w", err)
	}
	return nil
}
