package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// configured is a configuration of the tests' own with more lines.
func configured(t *testing.T, lines ...string) string {
	t.Helper()
	text := content(t, env.config)
	for _, line := range lines {
		key, _, _ := strings.Cut(line, " ")
		kept := []string{line}
		for _, old := range strings.Split(text, "\n") {
			if !strings.HasPrefix(old, key+" ") {
				kept = append(kept, old)
			}
		}
		text = strings.Join(kept, "\n")
	}
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// with is a husk command with lines added to the configuration.
func with(t *testing.T, lines []string, args ...string) *command {
	t.Helper()
	c := husk(t, args...)
	c.flag = []string{"--config", configured(t, lines...)}
	return c
}

// TestBadConfig: every verb refuses a configuration that cannot be, naming the key and what it may be.
func TestBadConfig(t *testing.T) {
	begin(t)
	for line, says := range map[string][]string{
		`colour = "red"`:            {"unknown key", "colour"},
		`machine = "pc"`:            {"machine", "pc", "microvm"},
		`accel = "magic"`:           {"accel", "magic", "tcg"},
		`memory_mib = 16`:           {"memory_mib", "16", "96"},
		`memory_mib = "512m"`:       {"memory_mib"},
		`vcpus = 0`:                 {"vcpus", "0"},
		`overhead_mib = -1`:         {"overhead_mib"},
		`run_dir = "relative"`:      {"run_dir", "relative", "absolute"},
		`start_timeout_seconds = 0`: {"start_timeout_seconds"},
		`vmm = "clh"`:               {"vmm", "clh"},
		`this is not TOML`:          {"config.toml", "line 1"},
	} {
		with(t, []string{line}, "create", "--bundle", newBundle(t, "true").write(), "bad-config").fails(1, says...)
		with(t, []string{line}, "run", "--rm", demo, "true").fails(125, says...)
	}
	missing := husk(t, "list")
	missing.flag = []string{"--config", "/no/such/config.toml"}
	missing.fails(1, "/no/such/config.toml")
	missing.flag = []string{"--config", "/"}
	missing.fails(1, "read configuration /")
	expect(t, "list", husk(t, "list", "-q").ok(), "")
}

// TestBadMachine: what the machine lacks is told in one line by whoever would need it, and nothing is left.
func TestBadMachine(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	for _, d := range []string{"empty", "broken", "no-kernel"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	guest := `{"arch":"x86_64","kind":"husk","kernel":"vmlinux","initrd":"initrd.img","kernel_version":"6.1","kernel_source":"x","key":"k"}`
	for name, text := range map[string]string{"broken/guest.json": "{", "no-kernel/guest.json": guest, "no-kernel/initrd.img": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for line, says := range map[string][]string{
		`qemu = "/no/such/qemu"`:                                {"/no/such/qemu"},
		`qemu = "/etc/passwd"`:                                  {"/etc/passwd", "permission denied"},
		`qemu = "/bin/true"`:                                    {"QEMU"},
		`qemu = "/bin/false"`:                                   {"QEMU"},
		`virtiofsd = "/no/such/virtiofsd"`:                      {"/no/such/virtiofsd"},
		`virtiofsd = "/bin/false"`:                              {"/bin/false"},
		`guest_dir = "/no/such/guest"`:                          {"/no/such/guest"},
		fmt.Sprintf(`guest_dir = %q`, dir+"/empty"):             {"guest", "/empty"},
		fmt.Sprintf(`guest_dir = %q`, dir+"/broken"):            {"guest.json"},
		fmt.Sprintf(`guest_dir = %q`, dir+"/no-kernel"):         {"vmlinux"},
		fmt.Sprintf(`run_dir = %q`, filepath.Join(dir, "file")): {"file", "not a directory"},
		`memory_mib = 16000000`:                                 {"memory", "host"},
	} {
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Run(strings.Map(plainRune, line), func(t *testing.T) {
			b := newBundle(t, "true")
			with(t, []string{line}, "create", "--bundle", b.write(), name(t)).fails(1, says...)
			with(t, []string{line}, "delete", "--force", name(t)).run()
			expect(t, "status", status(t, name(t)), "none")
		})
	}
	with(t, []string{`qemu = "/no/such/qemu"`}, "run", "--rm", demo, "true").fails(125, "/no/such/qemu")
}

func plainRune(r rune) rune {
	if strings.ContainsRune(`"/=`, r) {
		return -1
	}
	return r
}

// TestBadKVM: accel = "kvm" is an order, and where KVM cannot be had that is the error. What stands for
// /dev/kvm exists in the mount namespace of the command only.
func TestBadKVM(t *testing.T) {
	begin(t)
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skip("there is no /dev/kvm to put something else over")
	}
	for what, prepare := range map[string]string{
		// Devices on a file system without devices cannot be opened, by root neither.
		"without permission": `mount -t tmpfs -o nodev none "$0" && mknod "$0/kvm" c 10 232 && mount --bind "$0/kvm" /dev/kvm`,
		"something else":     `mount --bind /dev/null /dev/kvm`,
	} {
		t.Run(what, func(t *testing.T) {
			c := with(t, []string{`accel = "kvm"`}, "create", "--bundle", newBundle(t, "true").write(), name(t)).cmd()
			cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c", prepare + ` && exec "$@"`, t.TempDir()}, c.Args...)...)
			r := begun(t, cmd).wait()
			if r.code != 1 || !strings.Contains(r.stderr, "/dev/kvm") || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("husk returned %+v, want 1 and a line about /dev/kvm", r)
			}
			expect(t, "status", status(t, name(t)), "none")
		})
	}
}

// TestWithoutRoot: an ordinary user is told, and can still ask for help.
func TestWithoutRoot(t *testing.T) {
	begin(t)
	dir, err := os.MkdirTemp("", "husk-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	as := func(args ...string) result {
		text := fmt.Sprintf("run_dir = %q\ndata_dir = %q\ntemplate = \"off\"\n", dir+"/run", dir+"/data")
		if err := os.WriteFile(dir+"/config.toml", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(reachable(t, dir), append([]string{"--config", dir + "/config.toml"}, args...)...)
		cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "HOME=/nonexistent"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		return begun(t, cmd).wait()
	}
	if err := os.Chown(dir, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r := as("run", "--rm", "--rootfs", "/", "true")
	if r.code != 125 || !strings.Contains(r.stderr, "/etc/subuid") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("run returned %+v, want 125 and a line about the ids that are missing", r)
	}
	expect(t, "list of an ordinary user", as("list", "-q"), result{})
	expect(t, "exit code of version", as("version").code, 0)
	expect(t, "exit code of --help", as("--help").code, 0)
}

// reachable copies the husk binary to where an ordinary user can run it.
func reachable(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(dir, "husk")
	data, err := os.ReadFile(env.binary)
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return to
}
