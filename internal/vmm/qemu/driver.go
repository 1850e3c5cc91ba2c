// Package qemu runs VMs with QEMU: on KVM where KVM is real, emulated everywhere else.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"husk.dev/husk/internal/child"
	"husk.dev/husk/internal/sys/kvm"
	"husk.dev/husk/internal/vmm"
)

// name is what the driver calls itself in errors and Info.
const name = "qemu"

// The two machines of vmm.Spec.
const (
	microvm = "microvm"
	q35     = "q35"
)

// Options choose how VMs are run. The zero value is right where QEMU is installed from a package.
type Options struct {
	Binary string // path of QEMU; empty: qemu-system-<arch> in PATH
}

// Driver starts VMs with QEMU. It is safe for concurrent use.
type Driver struct {
	options Options
	version func() string
}

// New returns a driver. It looks for QEMU only when it needs it.
func New(o Options) *Driver {
	d := &Driver{options: o}
	d.version = sync.OnceValue(d.readVersion)
	return d
}

// Info tells what QEMU can do here. The first call runs `qemu --version` and measures KVM.
func (d *Driver) Info() vmm.Info {
	info := vmm.Info{Name: name, Isolation: vmm.Emulated, Shares: true}
	if kvm.Measure().State == kvm.Real {
		info.Isolation = vmm.Hardware
	}
	binary, err := d.binary()
	if err != nil {
		return info
	}
	info.Binary, info.Version = binary, d.version()
	return info
}

// binary returns the absolute path of QEMU.
func (d *Driver) binary() (string, error) {
	want, pkg := "qemu-system-x86_64", "qemu-system-x86"
	if runtime.GOARCH == "arm64" {
		want, pkg = "qemu-system-aarch64", "qemu-system-arm"
	}
	if d.options.Binary != "" {
		want = d.options.Binary
	}
	path, err := exec.LookPath(want)
	if err != nil {
		return "", fmt.Errorf("find %s: %w (install the package %s, or name the binary in the configuration)", want, bare(err), pkg)
	}
	return filepath.Abs(path)
}

// bare drops the name of what was looked for, which the caller says itself.
func bare(err error) error {
	var e *exec.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}

func (d *Driver) readVersion() string {
	binary, err := d.binary()
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "--version")
	cmd.Env = environment
	var out tail
	cmd.Stdout = &out
	if child.Start(cmd) != nil || cmd.Wait() != nil {
		return ""
	}
	// "QEMU emulator version 7.2.22 (Debian …)"
	line, _, _ := strings.Cut(out.String(), "\n")
	_, version, _ := strings.Cut(line, "version ")
	version, _, _ = strings.Cut(version, " ")
	return version
}

// resolveAccel turns Spec.Accel into kvm or tcg. Asked for by name, KVM is taken even where it
// measured too slow: whoever asks may know better.
func resolveAccel(asked string, measure func() kvm.Result) (string, error) {
	if asked == "tcg" {
		return asked, nil
	}
	measured := measure()
	if asked == "" {
		if measured.State == kvm.Real {
			return "kvm", nil
		}
		return "tcg", nil
	}
	switch measured.State {
	case kvm.Real, kvm.Emulated:
		return asked, nil
	case kvm.Denied:
		return "", fmt.Errorf("use KVM: %w (join the group of %s, or set accel to tcg)", measured.Err, kvm.Device)
	}
	return "", fmt.Errorf("use KVM: %s is %s: %w", kvm.Device, measured.State, measured.Err)
}

// hostFacts finds what the command line needs to know of this machine.
func hostFacts(accel string) facts {
	f := facts{arch: runtime.GOARCH, accel: accel, amd: isAMD()}
	if accel == "tcg" {
		f.tscKHz = hostTSC()
	}
	return f
}

func isAMD() bool {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && strings.Contains(string(cpuinfo), "AuthenticAMD")
}
