package host

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Files of an image's directory.
const (
	imageKernel = "vmlinuz"
	imageInitrd = "initrd.img"
	imageRoot   = "root.img"
)

// rootSize is how large the host's file system is, in bytes. The file is sparse.
const rootSize = 16 << 30

// releases are the hosts that there are: Debian's suites, and the packages that only they have.
var releases = map[string]struct {
	suite    string
	packages []string
}{
	"debian12": {"bookworm", nil},
	"debian13": {"trixie", []string{"virtiofsd", "docker-cli"}},
	"sid":      {"sid", []string{"virtiofsd", "docker-cli"}},
}

// packages are what a host has, beside what Debian calls required.
var packages = []string{
	"linux-image-amd64", "systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "udev", "kmod", "apparmor",
	"qemu-system-x86", "qemu-system-data", "crun", "runc", "passt", "podman", "netavark", "aardvark-dns", "catatonit",
	"containerd", "containernetworking-plugins", "docker.io", "iproute2", "iptables", "nftables", "busybox-static", "erofs-utils",
	"e2fsprogs", "uidmap", "slirp4netns", "fuse-overlayfs", "ca-certificates", "procps", "psmisc",
}

// upMark is what the host prints on its console once all of its services run.
const upMark = "husk-test: the host is up"

// hostFiles are written into the image, by path. Those that end in "/" are directories, the others' first line "-> target"
// makes them symbolic links.
var hostFiles = map[string]string{
	"/etc/hostname": "testhost\n",
	"/etc/hosts":    "127.0.0.1 localhost testhost\n::1 localhost\n",
	"/etc/fstab":    "/dev/vda / ext4 defaults 0 0\n",
	"/etc/modules-load.d/husk-test.conf": "kvm_amd\nvhost_vsock\nvhost_net\ntun\noverlay\nerofs\nloop\nbridge\nveth\nvirtiofs\n" +
		"br_netfilter\nmacvlan\nipvlan\nsch_ingress\ncls_u32\nact_mirred\n",
	"/etc/sysctl.d/husk-test.conf": "net.ipv4.ip_forward = 1\nkernel.printk = 5 4 1 7\n",
	"/etc/systemd/system/husk-test.service": `[Unit]
Description=Runs the tests of husk
After=docker.service containerd.service

[Service]
Type=exec
ExecStart=/usr/local/sbin/husk-test
StandardOutput=journal+console
StandardError=journal+console
Delegate=yes

[Install]
WantedBy=multi-user.target
`,
	"/etc/systemd/system/multi-user.target.wants/husk-test.service": "-> ../husk-test.service",
	"/usr/local/sbin/husk-test": `#!/bin/sh
# Waits until the host is up, says so, and runs what the disk with the tree brings.
systemctl is-system-running --wait
sync
echo "` + upMark + `" >/dev/console
disk=/dev/disk/by-id/virtio-husk-tree
until [ -b $disk ]; do sleep 0.3; done
mkdir -p /tree
mount -o ro -t erofs $disk /tree || exit
exec /tree/build/test-host/inside
`,
}

// masked are units that a host for tests has no use for.
var masked = []string{
	"apt-daily-upgrade.timer", "apt-daily.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
	"podman-auto-update.timer", "podman-auto-update.service", "podman.service", "podman-restart.service", "getty@tty1.service",
	"serial-getty@ttyS0.service", "systemd-networkd.service", "systemd-networkd.socket", "systemd-timesyncd.service",
	"logrotate.timer", "man-db.timer",
}

// initrdHook has the initrd hold what the root's disk needs and no more: an emulated processor is slow to unpack it.
const initrdHook = `#!/bin/sh
[ "$1" != prereqs ] || exit 0
. /usr/share/initramfs-tools/hook-functions
manual_add_modules virtio_pci virtio_blk ext4 crc32c_generic crc32c
`

// Key describes what an image of the release is made from. Packages are those of the day on which it is made.
func Key(release string) (string, error) {
	r, ok := releases[release]
	if !ok {
		return "", fmt.Errorf("no host %q: there are %s", release, strings.Join(Releases(), ", "))
	}
	return fmt.Sprintf("%s %v %v %v %v %s %d", r.suite, r.packages, packages, hostFiles, masked, initrdHook, rootSize), nil
}

// Releases lists the names of the hosts.
func Releases() []string {
	var names []string
	for name := range releases {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// MakeImage makes the directory dir with the host's kernel, initrd and root file system, from the distribution's packages. It
// takes minutes, and needs root, mmdebstrap and mkfs.ext4.
func MakeImage(ctx context.Context, release, dir string) error {
	r, ok := releases[release]
	if !ok {
		_, err := Key(release)
		return err
	}
	mirror, err := mirror(ctx)
	if err != nil {
		return err
	}
	root, hooks := dir+".root", dir+".hooks"
	defer os.RemoveAll(root)
	defer os.RemoveAll(hooks)
	if err := writeFiles(hooks, map[string]string{
		"/etc/initramfs-tools/conf.d/husk-test": "MODULES=list\n", "/etc/initramfs-tools/hooks/husk-test": initrdHook,
	}); err != nil {
		return err
	}
	names := strings.Join(append(slices.Clone(packages), r.packages...), ",")
	if err := run(ctx, "mmdebstrap", "--variant=minbase", "--mode=root", "--include="+names,
		"--aptopt=Acquire::Languages \"none\"", "--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--essential-hook=cp -a "+hooks+"/. \"$1\"",
		r.suite, root, "deb "+mirror+" "+r.suite+" main"); err != nil {
		return err
	}
	return finish(ctx, root, dir)
}

// finish makes the image of the tree of packages.
func finish(ctx context.Context, root, dir string) error {
	files := map[string]string{}
	for path, text := range hostFiles {
		files[path] = text
	}
	for _, unit := range masked {
		files["/etc/systemd/system/"+unit] = "-> /dev/null"
	}
	if err := writeFiles(root, files); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for pattern, name := range map[string]string{"vmlinuz-*": imageKernel, "initrd.img-*": imageInitrd} {
		found, err := filepath.Glob(filepath.Join(root, "boot", pattern))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("find the host's %s: %d are there: %w", pattern, len(found), err)
		}
		if err := os.Rename(found[0], filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	disk := filepath.Join(dir, imageRoot)
	if err := os.WriteFile(disk, nil, 0o644); err != nil {
		return err
	}
	if err := os.Truncate(disk, rootSize); err != nil {
		return err
	}
	return run(ctx, "mkfs.ext4", "-q", "-F", "-d", root, disk)
}

// mirror is where this machine gets its own distribution's packages from.
func mirror(ctx context.Context) (string, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	_, codename, _ := strings.Cut(string(release), "VERSION_CODENAME=")
	codename, _, _ = strings.Cut(codename, "\n")
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)",
		"Created-By: Packages", "Origin: Debian").Output()
	if err != nil {
		return "", fmt.Errorf("ask apt for its sources: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		if name, uri, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == codename {
			return uri, nil
		}
	}
	return "", fmt.Errorf("apt knows no source of Debian's packages for %q: apt-get update, on a Debian", codename)
}

func writeFiles(root string, files map[string]string) error {
	for path, text := range files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if target, link := strings.CutPrefix(text, "-> "); link {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
			if err := os.Symlink(target, path); err != nil {
				return err
			}
			continue
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			return err
		}
	}
	return nil
}

// run runs a program, whose output is this one's standard error.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w", name, err)
	}
	return nil
}
