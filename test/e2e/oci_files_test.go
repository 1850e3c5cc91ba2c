package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// all gives the container every capability that matters here.
func (b *bundle) all() *bundle {
	caps := []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
		"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_AUDIT_WRITE", "CAP_SETFCAP", "CAP_NET_ADMIN",
		"CAP_DAC_READ_SEARCH", "CAP_SYS_RESOURCE",
	}
	b.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	return b
}

// TestRootIsTheHosts: what a container writes to its root directory is on the host, with owners, modes,
// links and all; what the host writes is in the container.
func TestRootIsTheHosts(t *testing.T) {
	begin(t)
	b := newBundle(t, `set -e
		echo from-guest >/made; chown 1234:4321 /made; chmod 0640 /made
		mkdir -p /dir/sub; ln -s ../made /dir/link; ln /made /dir/hard; mkfifo /dir/pipe
		dd if=/dev/zero of=/large bs=64k count=64 2>/dev/null; rm /gone; mv /old /new
		cat /host-file; sync; echo ready; while [ ! -e /later ]; do sleep 0.05; done; cat /later`).all().ownRoot()
	for name, text := range map[string]string{"gone": "", "old": "moved", "host-file": "from-host\n"} {
		if err := os.WriteFile(b.root(name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := b.up()
	c.printed("from-host\nready\n")
	if err := os.WriteFile(b.root("later"), []byte("later\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	expect(t, "exit code", c.exited(), 0)
	expect(t, "output", content(t, c.out), "from-host\nready\nlater\n")
	expect(t, "what the guest wrote", content(t, b.root("made")), "from-guest\n")
	info, err := os.Stat(b.root("made"))
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	expect(t, "uid", st.Uid, 1234)
	expect(t, "gid", st.Gid, 4321)
	expect(t, "mode", info.Mode(), 0o640)
	expect(t, "links", st.Nlink, 2)
	if link, err := os.Readlink(b.root("dir/link")); link != "../made" {
		t.Errorf("the symbolic link is %q, %v", link, err)
	}
	if info, err := os.Lstat(b.root("dir/pipe")); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		t.Errorf("the pipe is %v, %v", info, err)
	}
	if info, err := os.Stat(b.root("large")); err != nil || info.Size() != 4<<20 {
		t.Errorf("the large file is %v, %v", info, err)
	}
	expect(t, "the renamed file", content(t, b.root("new")), "moved")
	if _, err := os.Lstat(b.root("gone")); !os.IsNotExist(err) {
		t.Errorf("the removed file: %v", err)
	}
}

// TestBindMounts covers directories and single files, read-only, and what a container with CAP_SYS_ADMIN
// does to write to them all the same.
func TestBindMounts(t *testing.T) {
	begin(t)
	host := t.TempDir()
	for _, name := range []string{"rw/file", "ro/file", "one", "one-ro", "below/sub/deep"} {
		path := filepath.Join(host, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("rw", filepath.Join(host, "link")); err != nil {
		t.Fatal(err)
	}
	b := newBundle(t, "exec sleep 1000").all().ownRoot()
	b.bind(host+"/rw", "/rw").bind(host+"/ro", "/ro", "ro").bind(host+"/one", "/etc/one").bind(host+"/one-ro", "/etc/one-ro", "ro")
	b.bind(host+"/link", "/through-link").bind(host+"/below", "/made/on/demand", "ro", "nosuid", "nodev", "noexec")
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "mode=1777"}})
	c := b.up()

	expect(t, "what is bound", c.exec("cat /rw/file /ro/file /etc/one /etc/one-ro /through-link/file /made/on/demand/sub/deep"),
		"rw/file\nro/file\none\none-ro\nrw/file\nbelow/sub/deep\n")
	c.exec("echo new >/rw/new; echo changed >/etc/one; echo tmp >/scratch/file; sync")
	expect(t, "a new file", content(t, host+"/rw/new"), "new\n")
	expect(t, "a file that is bound alone", content(t, host+"/one"), "changed\n")
	expect(t, "exec in a noexec mount", husk(t, "exec", c.id, "sh", "-c", "cp /bin/busybox /rw/b; cp /rw/b /scratch/b 2>/dev/null; /made/on/demand/sub/deep").run().code, 126)
	if full := husk(t, "exec", c.id, "dd", "if=/dev/zero", "of=/scratch/big", "bs=64k", "count=64").run(); full.code == 0 {
		t.Error("4 MiB fit into a tmpfs of 1 MiB")
	}

	for _, attempt := range []string{
		"echo x >/ro/new", "echo x >/ro/file", "rm /ro/file", "mkdir /ro/dir", "chmod 777 /ro/file", "echo x >/etc/one-ro",
		"touch /ro/file", "mv /ro/file /ro/other", "ln /ro/file /ro/hard", "echo x >/made/on/demand/sub/deep",
		"mount -o remount,rw /ro && echo x >/ro/new",
		"mount -o remount,bind,rw /ro; echo x >/ro/new",
		"mount -o remount,bind,rw /etc/one-ro; echo x >/etc/one-ro",
		"mkdir -p /scratch/m; mount --bind /ro /scratch/m; mount -o remount,bind,rw /scratch/m; echo x >/scratch/m/new",
		"mkdir -p /scratch/v; mount -t virtiofs husk /scratch/v && for f in /scratch/v/*.m*; do echo x >$f/new; done; umount /scratch/v; false",
	} {
		if r := husk(t, "exec", c.id, "sh", "-c", attempt).run(); r.code == 0 {
			t.Errorf("%q succeeded on a read-only mount: %+v", attempt, r)
		}
	}
	expect(t, "the read-only file", content(t, host+"/ro/file"), "ro/file\n")
	expect(t, "the read-only single file", content(t, host+"/one-ro"), "one-ro\n")
	if entries, err := os.ReadDir(host + "/ro"); err != nil || len(entries) != 1 {
		t.Errorf("the read-only directory has %v, %v", entries, err)
	}
	expect(t, "the file below", content(t, host+"/below/sub/deep"), "below/sub/deep\n")
}

// TestReadOnlyRoot: the root is read-only, for the container with CAP_SYS_ADMIN too, where tmpfs and
// volumes are not.
func TestReadOnlyRoot(t *testing.T) {
	begin(t)
	b := newBundle(t, "").all().ownRoot()
	b.spec.Root.Readonly = true
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"})
	b.spec.Process.Args = []string{"sh", "-c", `grep -q ' / [^ ]* ro' /proc/self/mounts && echo ro; echo x >/tmp/new && echo tmp
		for try in "echo x >/new" "rm /etc/passwd" "mount -o remount,rw / && echo x >/new" "mount -o remount,bind,rw /; echo x >/new"
		do sh -c "$try" 2>/dev/null && echo "$try"; done; true`}
	expect(t, "output", b.run().stdout, "ro\ntmp\n")
	if _, err := os.Lstat(b.root("new")); err == nil {
		t.Error("the host's root directory was written to")
	}
	if _, err := os.Lstat(b.root("etc/passwd")); err != nil {
		t.Error(err)
	}
}

// TestMaskedPaths covers masked and read-only paths, of the guest's proc and of the root.
func TestMaskedPaths(t *testing.T) {
	begin(t)
	b := newBundle(t, `cat /etc/os-release | wc -c; ls /var/log | wc -l; cat /proc/kcore | wc -c; ls -A /sys/firmware | wc -l
		echo x >/proc/sys/kernel/hostname; echo x >/tmp/file; touch /tmp/file; true`).all().ownRoot()
	if err := os.WriteFile(b.root("var/log/secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.spec.Linux.MaskedPaths = append(b.spec.Linux.MaskedPaths, "/etc/os-release", "/var/log", "/no/such/path")
	b.spec.Linux.ReadonlyPaths = append(b.spec.Linux.ReadonlyPaths, "/tmp", "/no/such/path")
	r := b.run()
	expect(t, "sizes of what is masked", strings.Join(strings.Fields(r.stdout), " "), "0 0 0 0")
	expect(t, "refusals", strings.Count(r.stderr, "Read-only file system"), 3)
}

// TestMountsOfKernel: what engines bind from the host's own kernel is the guest's.
func TestMountsOfKernel(t *testing.T) {
	begin(t)
	b := newBundle(t, "uname -r; cat /proc/sys/kernel/osrelease; cat /mnt/osrelease; grep -c . /proc/self/cgroup; ls -ld /dev/null /dev/pts/ptmx /dev/shm >/dev/null && echo devices")
	b.bind("/proc/sys/kernel", "/mnt", "ro")
	out := strings.Fields(b.run().stdout)
	if len(out) != 5 || out[0] != out[1] || out[1] != out[2] || !strings.HasSuffix(out[0], "husk") && os.Getenv("KERNEL") != "distro" {
		t.Errorf("the container sees kernels %q", out)
	}
}

// TestProgramsOfTheHost runs two programs of shared directories, each from memory that was the other's text just before:
// an emulator must not run what it has translated of the former.
func TestProgramsOfTheHost(t *testing.T) {
	begin(t)
	c := newBundle(t, "exec sleep 1000").bind(probe(t), "/probe", "ro").bind(probe(t, "-gcflags=-l"), "/twin", "ro").up()
	out := husk(t, "shell", c.id, "sh", "-c", `i=0
		for root in /proc/[0-9]*/root; do
			[ ! -x $root/twin ] || break
		done
		while [ $i -lt 40 ]; do
			for program in probe twin; do
				echo 3 >/proc/sys/vm/drop_caches
				timeout 20 $root/$program 2>&1 | head -n 1
			done
			i=$((i+1))
		done | uniq -c`).ok()
	if want := regexp.MustCompile(`^ *80 usage: .*\n$`); !want.MatchString(out) {
		t.Errorf("the programs printed\n%s", out)
	}
}
