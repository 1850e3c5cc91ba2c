package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/sys/kvm"
	"husk.dev/husk/internal/vmm"
)

func TestMissingBinaryNamesThePackage(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []Options{{}, {Binary: "/nonexistent/qemu"}} {
		t.Setenv("PATH", t.TempDir())
		s := spec(microvm)
		s.Kernel, s.Initrd = kernel, ""
		_, err := New(o).Start(t.Context(), s)
		if err == nil || !strings.Contains(err.Error(), "install the package qemu-system-") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, want one line that names the package", o, err)
		}
		if info := New(o).Info(); info.Binary != "" || info.Version != "" || info.Name != "qemu" {
			t.Errorf("%+v: Info %+v", o, info)
		}
	}
}

func TestInfo(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("QEMU is not installed")
	}
	info := New(Options{Binary: "qemu-system-x86_64"}).Info()
	if !filepath.IsAbs(info.Binary) || info.Version == "" || strings.ContainsAny(info.Version, " \n") {
		t.Errorf("Info %+v", info)
	}
	t.Logf("%+v", info)
}

func TestResolveAccel(t *testing.T) {
	for _, c := range []struct {
		asked string
		state kvm.State
		want  string // an accelerator, or a part of the error
	}{
		{"", kvm.Real, "kvm"},
		{"", kvm.Emulated, "tcg"},
		{"", kvm.Absent, "tcg"},
		{"", kvm.Denied, "tcg"},
		{"", kvm.Broken, "tcg"},
		{"tcg", kvm.Real, "tcg"},
		{"kvm", kvm.Real, "kvm"},
		{"kvm", kvm.Emulated, "kvm"},
		{"kvm", kvm.Absent, "/dev/kvm is absent"},
		{"kvm", kvm.Denied, "join the group"},
		{"kvm", kvm.Broken, "/dev/kvm is broken"},
	} {
		got, err := resolveAccel(c.asked, func() kvm.Result {
			r := kvm.Result{State: c.state}
			if c.state != kvm.Real && c.state != kvm.Emulated {
				r.Err = errors.New("reason")
			}
			return r
		})
		if err != nil {
			got = err.Error()
			if !strings.Contains(got, "reason") {
				t.Errorf("%q on %s: %v hides why", c.asked, c.state, err)
			}
		}
		if got != c.want && (err == nil || !strings.Contains(got, c.want)) {
			t.Errorf("%q on %s: %s, want %s", c.asked, c.state, got, c.want)
		}
	}
}

func TestCheckRefusesWhatTheMachineCannot(t *testing.T) {
	many := func(n int) (disks []vmm.Disk) {
		for i := range n {
			disks = append(disks, vmm.Disk{Serial: fmt.Sprint("d", i), Path: "/d"})
		}
		return disks
	}
	for _, c := range []struct {
		name, machine, needs string
		disks                []vmm.Disk
	}{
		{"pmem", microvm, "machine q35", []vmm.Disk{{Serial: "d", Path: "/d", Pmem: true}}},
		{"many disks", microvm, "machine q35", many(22)},
		{"too many disks", q35, "", many(24)},
		{"too many disks for any machine", microvm, "", many(40)},
		{"machine", "pc", "machine microvm or q35", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := spec(c.machine)
			s.Disks = c.disks
			var e *vmm.UnsupportedError
			if err := check(s); !errors.As(err, &e) || e.Needs != c.needs || e.Driver != "qemu" {
				t.Errorf("check: %v, want what needs %q", err, c.needs)
			}
		})
	}
	s := spec(microvm)
	if s.Disks = many(21); check(s) != nil {
		t.Errorf("21 disks on a microvm: %v", check(s))
	}
	s = spec(q35)
	if s.Disks = many(23); check(s) != nil {
		t.Errorf("23 disks on q35: %v", check(s))
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var all strings.Builder
	var kept tail
	for i := range 300 {
		line := fmt.Sprintf("%d %s\n", i, strings.Repeat("x", i*7%200))
		all.WriteString(line)
		if n, err := kept.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("Write: %d, %v", n, err)
		}
	}
	if want := all.String()[all.Len()-tailSize:]; kept.String() != want {
		t.Error("the tail is not the end")
	}
	if n, _ := kept.Write([]byte(all.String())); n != all.Len() || kept.String() != all.String()[all.Len()-tailSize:] {
		t.Error("one long write is not cut to its end")
	}
}

func TestExitErrorIsOneCleanLine(t *testing.T) {
	for _, c := range []struct{ reason, stderr, want string }{
		{"", "", "QEMU ended by itself"},
		{"the guest powered off", "", "the guest powered off"},
		{"", "qemu: a\n\nqemu: b\n", "qemu: a; qemu: b"},
		{"reset", "\x1b[2Jevil\a\xff\n", "reset: [2Jevil"},
	} {
		if got := exitError(nil, c.reason, c.stderr).Error(); got != c.want {
			t.Errorf("exitError(%q, %q) = %q, want %q", c.reason, c.stderr, got, c.want)
		}
	}
}

func TestReopenable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o640); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	self := uint32(os.Getuid())
	for _, c := range []struct {
		uid, gid uint32
		right    os.FileMode
		want     bool
	}{
		{0, 0, 6, true}, {self + 1, 0, 4, false}, {self + 1, uint32(os.Getgid()) + 1, 4, false},
	} {
		err := reopenable(vmm.Spec{UID: c.uid, GID: c.gid}, info, path, c.right)
		if (err == nil) != c.want {
			t.Errorf("user %d, group %d, right %o: %v", c.uid, c.gid, c.right, err)
		}
	}
	if err := os.Chmod(path, 0o604); err != nil {
		t.Fatal(err)
	}
	if info, err = os.Stat(path); err != nil {
		t.Fatal(err)
	}
	if err := reopenable(vmm.Spec{UID: self + 1}, info, path, 4); err != nil {
		t.Errorf("a file that all may read: %v", err)
	}
	if err := reopenable(vmm.Spec{UID: self + 1}, info, path, 6); err == nil {
		t.Error("a file that others may only read passes for writing")
	}
}

func TestOpenRefusesFilesThatAreNoDisks(t *testing.T) {
	dir := t.TempDir()
	odd := filepath.Join(dir, "odd")
	if err := os.WriteFile(odd, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		disk vmm.Disk
		want string
	}{
		{vmm.Disk{Path: dir, ReadOnly: true}, "neither"},
		{vmm.Disk{Path: "/dev/null"}, "neither"},
		{vmm.Disk{Path: empty}, "is empty"},
		{vmm.Disk{Path: odd, Pmem: true}, "multiple of 2 MiB"},
		{vmm.Disk{Path: filepath.Join(dir, "none")}, "no such file"},
	} {
		var r resources
		_, err := r.disk(vmm.Spec{}, c.disk)
		r.close()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %s", c.disk, err, c.want)
		}
	}
}

func TestHostTSCIsQuick(t *testing.T) {
	start := time.Now()
	khz := hostTSC()
	if took := time.Since(start); took > time.Second {
		t.Errorf("hostTSC took %v", took)
	}
	t.Logf("%d kHz", khz)
}
