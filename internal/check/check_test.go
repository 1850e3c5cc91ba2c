package check

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/sys/kvm"
	"husk.dev/husk/internal/vmm"
)

// put writes a file below a fake root.
func put(t *testing.T, root, path, content string, mode os.FileMode) {
	t.Helper()
	path = filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

const debian12 = "ID=debian\nVERSION_ID=\"12\"\n"

// v2Mount is a line of /proc/self/mountinfo, proc(5).
const v2Mount = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"

// complete is a machine that lacks nothing, on a fake root.
func complete(t *testing.T) Inputs {
	t.Helper()
	root := t.TempDir()
	put(t, root, "/etc/os-release", debian12, 0o644)
	put(t, root, "/proc/sys/kernel/osrelease", "6.1.0-17-amd64\n", 0o644)
	put(t, root, "/proc/self/mountinfo", v2Mount, 0o644)
	put(t, root, "/dev/kvm", "", 0o660)
	put(t, root, "/dev/vhost-vsock", "", 0o660)
	put(t, root, "/dev/vhost-net", "", 0o660)
	put(t, root, "/usr/bin/mkfs.erofs", "#!/bin/sh\necho mkfs.erofs 1.8\n", 0o755)
	put(t, root, "/sbin/mkfs.ext4", "#!/bin/sh\nexit 1\n", 0o755)
	put(t, root, "/var/lib/x", "", 0o644)
	put(t, root, "/run/x", "", 0o644)
	image := filepath.Join(root, "initrd.img")
	put(t, root, "/initrd.img", strings.Repeat("x", 3<<20), 0o644)
	static, err := os.ReadFile(os.Args[0]) // this test program has no interpreter where it is built without cgo
	if err != nil {
		t.Fatal(err)
	}
	put(t, root, "/bin/busybox", string(withoutInterpreter(t, static)), 0o755)
	return Inputs{
		Config: config.Config{VMM: "qemu", Accel: "auto", DataDir: "/var/lib/husk", RunDir: "/run/husk"},
		Driver: vmm.Info{Name: "qemu", Binary: "/usr/bin/qemu-system-x86_64", Version: "7.2.22", Isolation: vmm.Hardware},
		KVM:    kvm.Result{State: kvm.Real, Loop: 12 * time.Microsecond, Native: 3 * time.Microsecond},
		Guest: assets.Guest{
			Kind: "husk", Kernel: "/g/vmlinux", KernelVersion: "6.1.170", Initrd: image, Key: "0123456789abcdef",
		},
		FileService: FileService{Path: "/usr/libexec/virtiofsd", Kind: "Rust", Version: "1.13.2"},
		Arch:        "x86_64", MonitorUID: 0x60000001, Shells: []string{"/bin/busybox"}, Path: "/usr/bin", Root: root,
	}
}

// withoutInterpreter returns the least static program: an ELF header and no segments.
func withoutInterpreter(t *testing.T, program []byte) []byte {
	t.Helper()
	if len(program) < 64 {
		t.Fatal("the test program is no ELF file")
	}
	header := bytes.Clone(program[:64])
	clear(header[32:48]) // where program and section headers are
	clear(header[56:58]) // how many program headers
	clear(header[60:64]) // how many section headers
	return header
}

func item(t *testing.T, r Report, name string) Item {
	t.Helper()
	for _, i := range r.Items {
		if i.Name == name {
			return i
		}
	}
	t.Fatalf("no item %q in %+v", name, r.Items)
	return Item{}
}

func TestCompleteMachine(t *testing.T) {
	r := Make(complete(t))
	if !r.Ready || r.Isolation != vmm.Hardware {
		t.Errorf("ready %v, isolation %q; want true, hardware", r.Ready, r.Isolation)
	}
	var names []string
	for _, i := range r.Items {
		names = append(names, i.Name)
		if i.Status != OK || i.Value == "" || i.Why != "" || i.Fix != "" {
			t.Errorf("%+v; want ok with a value and nothing to mend", i)
		}
	}
	want := []string{
		"architecture", "kernel", "user", "kvm", "isolation", "vhost-vsock", "vhost-net", "qemu", "virtiofsd",
		"guest-kernel", "guest-image", "mkfs.erofs", "mkfs.ext4", "busybox", "cgroups", "data_dir", "run_dir",
	}
	if !reflect.DeepEqual(names, want) {
		t.Errorf("items %q, want %q: their names and order are promised", names, want)
	}
	for name, want := range map[string]string{
		"kernel": "6.1.0-17-amd64", "kvm": "real (a loop takes 4 times as long as outside of a guest)",
		"qemu": "7.2.22, /usr/bin/qemu-system-x86_64", "virtiofsd": "1.13.2 (Rust), /usr/libexec/virtiofsd",
		"mkfs.erofs": "1.8, /usr/bin/mkfs.erofs", "mkfs.ext4": "/sbin/mkfs.ext4" /* not in PATH */, "cgroups": "v2",
		"guest-kernel": "6.1.170 (husk), /g/vmlinux", "busybox": "/bin/busybox",
	} {
		if got := item(t, r, name).Value; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if v := item(t, r, "guest-image").Value; !strings.HasPrefix(v, "0123456789abcdef (3.0 MiB), ") {
		t.Errorf("guest-image is %q", v)
	}
	if v := item(t, r, "data_dir").Value; !strings.HasPrefix(v, "/var/lib/husk, ") || !strings.HasSuffix(v, " free") {
		t.Errorf("data_dir is %q", v)
	}
}

// TestWrong takes one thing away from a complete machine at a time.
func TestWrong(t *testing.T) {
	remove := func(path string) func(*testing.T, *Inputs) {
		return func(t *testing.T, in *Inputs) {
			if err := os.Remove(filepath.Join(in.Root, path)); err != nil {
				t.Fatal(err)
			}
		}
	}
	with := func(changes ...func(*testing.T, *Inputs)) func(*testing.T, *Inputs) {
		return func(t *testing.T, in *Inputs) {
			for _, c := range changes {
				c(t, in)
			}
		}
	}
	file := func(path, content string, mode os.FileMode) func(*testing.T, *Inputs) {
		return func(t *testing.T, in *Inputs) { put(t, in.Root, path, content, mode) }
	}
	state := func(s kvm.State) func(*testing.T, *Inputs) {
		return func(_ *testing.T, in *Inputs) { in.KVM = kvm.Result{State: s, Err: errors.New("it broke")} }
	}
	accel := func(a string) func(*testing.T, *Inputs) {
		return func(_ *testing.T, in *Inputs) { in.Config.Accel = a }
	}
	user := func(_ *testing.T, in *Inputs) { in.UID = 1000 }
	const modules = "/lib/modules/6.1.0-17-amd64/modules.dep"
	for name, c := range map[string]struct {
		change func(*testing.T, *Inputs)
		item   string
		status Status
		value  string // part of it
		why    string // part of it
		fix    string // all of it
	}{
		"unknown architecture": {func(_ *testing.T, in *Inputs) { in.Arch = "riscv64" }, "architecture", Missing, "riscv64", "x86_64 and arm64", ""},
		"not root":             {user, "user", Warning, "uid 1000", "subordinate ids", "sudo husk check"},
		"kvm emulated":         {state(kvm.Emulated), "kvm", Warning, "emulated", "interprets", ""},
		"kvm denied":           {with(user, state(kvm.Denied)), "kvm", Warning, "denied", "may not open", "usermod -aG kvm USER, and log in again"},
		"kvm denied to root":   {state(kvm.Denied), "kvm", Warning, "denied", "may not open", ""},
		"kvm broken":           {state(kvm.Broken), "kvm", Warning, "broken", "it broke", ""},
		"kvm insisted on":      {with(state(kvm.Broken), accel("kvm")), "kvm", Missing, "broken", "insists", ""},
		"kvm emulated, taken":  {with(state(kvm.Emulated), accel("kvm")), "kvm", Warning, "emulated", "interprets", ""},
		"no kvm module loaded": {with(state(kvm.Absent), file("/proc/cpuinfo", "flags : fpu svm\n", 0o644),
			file(modules, "kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz\n", 0o644)),
			"kvm", Warning, "absent", "the processor can", "modprobe kvm_amd"},
		"no kvm module":  {with(state(kvm.Absent), file("/proc/cpuinfo", "flags : fpu vmx\n", 0o644)), "kvm", Warning, "absent", "no module kvm_intel", ""},
		"no vmx":         {with(state(kvm.Absent), file("/proc/cpuinfo", "flags : fpu vmx_not\n", 0o644)), "kvm", Warning, "absent", "firmware", ""},
		"kvm root's":     {file("/dev/kvm", "", 0o600), "kvm", Missing, "real", "root alone", "chgrp kvm /dev/kvm && chmod 660 /dev/kvm"},
		"asked for tcg":  {accel("tcg"), "isolation", Warning, "emulated", "no security boundary", `set accel = "auto" in /etc/husk/config.toml`},
		"emulated":       {state(kvm.Absent), "isolation", Warning, "emulated", "no security boundary", ""},
		"no vsock":       {remove("/dev/vhost-vsock"), "vhost-vsock", Warning, "absent", "no module vhost_vsock", ""},
		"no vhost-net":   {remove("/dev/vhost-net"), "vhost-net", Warning, "absent", "moves packets itself", ""},
		"vsock unloaded": {with(remove("/dev/vhost-vsock"), file(modules, "a/b.ko:\nkernel/drivers/vhost/vhost_vsock.ko: x.ko\n", 0o644)), "vhost-vsock", Warning, "absent", "serial port", "modprobe vhost_vsock"},
		"no driver":      {func(_ *testing.T, in *Inputs) { in.DriverErr = errors.New("no driver \"x\"") }, "qemu", Missing, "no such driver", "no driver", ""},
		"no qemu":        {func(_ *testing.T, in *Inputs) { in.Driver = vmm.Info{} }, "qemu", Missing, "not found", "virtual machine", "apt-get install qemu-system-x86"},
		"no qemu on arm": {func(_ *testing.T, in *Inputs) { in.Driver = vmm.Info{}; in.Arch = "arm64" }, "qemu", Missing, "not found", "virtual machine", "apt-get install qemu-system-arm"},
		"wrong qemu":     {func(_ *testing.T, in *Inputs) { in.Driver = vmm.Info{}; in.Config.QEMU = "/opt/q" }, "qemu", Missing, "/opt/q not found", "", "set qemu in /etc/husk/config.toml, or leave it out"},
		"mute qemu":      {func(_ *testing.T, in *Inputs) { in.Driver.Version = "" }, "qemu", Missing, "/usr/bin/qemu-system-x86_64", "may not run", "/usr/bin/qemu-system-x86_64 --version"},
		"no virtiofsd":   {func(_ *testing.T, in *Inputs) { in.FileService = FileService{Err: errors.New("none")} }, "virtiofsd", Missing, "not found", "volumes", "apt-get install qemu-system-common"},
		"no virtiofsd on 13": {with(file("/etc/os-release", "ID=debian\nVERSION_ID=13\n", 0o644), func(_ *testing.T, in *Inputs) { in.FileService = FileService{} }),
			"virtiofsd", Missing, "not found", "volumes", "apt-get install virtiofsd"},
		"no virtiofsd on Ubuntu": {with(file("/etc/os-release", "ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n", 0o644), func(_ *testing.T, in *Inputs) { in.FileService = FileService{} }),
			"virtiofsd", Missing, "not found", "volumes", "apt-get install virtiofsd"},
		"strange virtiofsd":     {func(_ *testing.T, in *Inputs) { in.FileService.Err = errors.New("says \x1b[2Jnothing") }, "virtiofsd", Missing, "/usr/libexec/virtiofsd", "says [2Jnothing", "/usr/libexec/virtiofsd --version"},
		"no guest":              {func(_ *testing.T, in *Inputs) { in.GuestErr = errors.New("not built") }, "guest-kernel", Missing, "not found", "not built", "make kernel image"},
		"distro kernel":         {func(_ *testing.T, in *Inputs) { in.Guest.Kind = "distro" }, "guest-kernel", Warning, "6.1.170 (distro)", "slower", "make kernel image KERNEL=husk"},
		"no mkfs.erofs":         {remove("/usr/bin/mkfs.erofs"), "mkfs.erofs", Missing, "not found", "images", "apt-get install erofs-utils"},
		"mkfs.erofs no program": {file("/usr/bin/mkfs.erofs", "", 0o644), "mkfs.erofs", Missing, "not found", "images", "apt-get install erofs-utils"},
		"no mkfs.ext4":          {remove("/sbin/mkfs.ext4"), "mkfs.ext4", Missing, "not found", "writes", "apt-get install e2fsprogs"},
		"not Debian":            {with(remove("/sbin/mkfs.ext4"), file("/etc/os-release", "ID=fedora\nVERSION_ID=41\n", 0o644)), "mkfs.ext4", Missing, "not found", "writes", "install what Debian calls e2fsprogs"},
		"no busybox":            {remove("/bin/busybox"), "busybox", Warning, "not found", "husk shell", "apt-get install busybox-static"},
		"v1":                    {file("/proc/self/mountinfo", "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n32 30 0:27 / /mnt rw - cgroup cgroup rw,cpu\n", 0o644), "cgroups", OK, "v1 (1 hierarchies)", "", ""},
		"hybrid":                {file("/proc/self/mountinfo", v2Mount+"31 30 0:27 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n", 0o644), "cgroups", OK, "hybrid (v2 beside 1 v1 hierarchies)", "", ""},
		"no cgroups":            {file("/proc/self/mountinfo", "31 30 0:27 / / rw - ext4 /dev/sda rw\n", 0o644), "cgroups", Warning, "not mounted", "in the guest only", ""},
		"data_dir a file":       {func(_ *testing.T, in *Inputs) { in.Config.DataDir = "/var/lib/x/husk" }, "data_dir", Missing, "/var/lib/x/husk", "not a directory", ""},
	} {
		t.Run(name, func(t *testing.T) {
			in := complete(t)
			c.change(t, &in)
			r := Make(in)
			got := item(t, r, c.item)
			if got.Status != c.status || !strings.Contains(got.Value, c.value) || !strings.Contains(got.Why, c.why) || got.Fix != c.fix {
				t.Errorf("got %+v\nwant %s, value with %q, why with %q, fix %q", got, c.status, c.value, c.why, c.fix)
			}
			if got.Status != OK && got.Why == "" {
				t.Error("no word on why it matters")
			}
			if want := c.status != Missing; r.Ready != want {
				t.Errorf("ready is %v, want %v", r.Ready, want)
			}
			if r.Ready == (r.Isolation == "") {
				t.Errorf("ready is %v with isolation %q", r.Ready, r.Isolation)
			}
		})
	}
}

func TestDynamicBusybox(t *testing.T) {
	in := complete(t)
	for _, path := range []string{"/bin/sh", "/usr/bin/env"} {
		program, err := os.ReadFile(path)
		if err != nil {
			t.Skip(err)
		}
		put(t, in.Root, "/bin/busybox", string(program), 0o755)
		if static, err := isStatic(filepath.Join(in.Root, "/bin/busybox")); err != nil || static {
			continue
		}
		got := item(t, Make(in), "busybox")
		if got.Status != Warning || got.Value != "/bin/busybox is not static" {
			t.Errorf("%+v", got)
		}
		return
	}
	t.Skip("this machine has no dynamic program in the usual places")
}

func TestVersionIsBounded(t *testing.T) {
	in := complete(t)
	put(t, in.Root, "/usr/bin/mkfs.erofs", "#!/bin/sh\nyes mkfs.erofs | head -c 1000000\n", 0o755)
	m := &machine{Inputs: in}
	line, err := m.firstLine("/usr/bin/mkfs.erofs")
	if err != nil || line != "mkfs.erofs" {
		t.Errorf("first line %q, %v", line, err)
	}
	var h head
	for range 3 {
		if n, err := h.Write(make([]byte, versionLimit-1)); n > versionLimit || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(h) != versionLimit {
		t.Errorf("kept %d bytes, want %d", len(h), versionLimit)
	}
}

func TestFreeSpace(t *testing.T) {
	m := &machine{Inputs: complete(t)}
	got := m.directory("data_dir", "/var/lib/husk", 1<<62)
	if got.Status != Warning || got.Why != "less than 4294967296.0 GiB is free" || !strings.HasPrefix(got.Fix, "set data_dir in ") {
		t.Errorf("%+v", got)
	}
	for bytes, want := range map[uint64]string{0: "0 KiB", 3 << 10: "3 KiB", 5 << 19: "2.5 MiB", 1 << 30: "1.0 GiB"} {
		if got := size(bytes); got != want {
			t.Errorf("size(%d) = %q, want %q", bytes, got, want)
		}
	}
}

func TestPrint(t *testing.T) {
	in := complete(t)
	in.KVM.State = kvm.Emulated
	in.GuestErr = errors.New("n\xf6t built")
	r := Make(in)
	var out bytes.Buffer
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	for i, b := range out.Bytes() {
		if b > '~' || b < ' ' && b != '\n' {
			t.Fatalf("byte %d is %q, want plain ASCII", i, b)
		}
	}
	text := out.String()
	lines := strings.Split(text, "\n")
	column := strings.Index(lines[0], "STATUS")
	for i, it := range r.Items {
		if line := lines[i+1]; !strings.HasPrefix(line, it.Name+" ") || !strings.HasPrefix(line[column:], string(it.Status)+" ") {
			t.Errorf("line %q is not aligned, or not of %s", line, it.Name)
		}
	}
	for _, want := range []string{
		"\nmissing: guest-kernel: nt built.\n    make kernel image\n", "\nwarning: kvm: ",
		"\nContainers cannot run here: guest-kernel, guest-image.\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	out.Reset()
	if err := Make(complete(t)).Print(&out); err != nil {
		t.Fatal(err)
	}
	if want := "\nContainers can run here; isolation: hardware.\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("no verdict at the end of\n%s", out.String())
	}
}

func TestJSON(t *testing.T) {
	data, err := json.Marshal(Report{Ready: true, Isolation: vmm.Emulated, Items: []Item{
		{Name: "a", Status: OK, Value: "1"}, {Name: "b", Status: Missing, Value: "2", Why: "3", Fix: "4"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"ready":true,"isolation":"emulated","items":[{"name":"a","status":"ok","value":"1"},` +
		`{"name":"b","status":"missing","value":"2","why":"3","fix":"4"}]}`
	if string(data) != want {
		t.Errorf("got %s\nwant %s: this form is promised", data, want)
	}
}

// TestThisMachine runs on what is really there: it must neither fail nor miss this machine's kernel.
func TestThisMachine(t *testing.T) {
	c := config.Default()
	r := Make(Inputs{Config: c, KVM: kvm.Result{State: kvm.Absent}, Arch: runtime.GOARCH, UID: os.Getuid(), Path: os.Getenv("PATH")})
	if k := item(t, r, "kernel"); k.Status != OK {
		t.Errorf("%+v", k)
	}
	if c := item(t, r, "cgroups"); c.Value == "unknown" {
		t.Errorf("%+v", c)
	}
	if r.Ready {
		t.Error("ready without a monitor or a guest")
	}
}
