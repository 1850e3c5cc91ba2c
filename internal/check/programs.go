package check

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"husk.dev/husk/internal/child"
	"husk.dev/husk/internal/config"
)

const (
	// versionWait bounds a program that is asked for its version.
	versionWait = 5 * time.Second
	// versionLimit is how much of its answer is read, in bytes.
	versionLimit = 4096
)

// superuser are the directories that a user's PATH may lack.
var superuser = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// find returns the first of the candidates that is an executable file: absolute paths as they are, names
// in PATH and in the directories of the superuser.
func (m *machine) find(candidates ...string) string {
	for _, c := range candidates {
		if filepath.IsAbs(c) {
			if executable(m.at(c)) {
				return c
			}
			continue
		}
		for _, dir := range append(filepath.SplitList(m.Path), superuser...) {
			if path := filepath.Join(dir, c); filepath.IsAbs(path) && executable(m.at(path)) {
				return path
			}
		}
	}
	return ""
}

// at is where path lies below Root.
func (m *machine) at(path string) string { return filepath.Join(m.Root, path) }

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// firstLine runs a program and returns the first line it prints, on success only.
func (m *machine) firstLine(path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), versionWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.at(path), args...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var out head
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := child.Start(cmd); err != nil {
		return "", fmt.Errorf("run %s: %w", path, err)
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer within %v", versionWait)
		}
		return "", fmt.Errorf("run %s: %w", path, err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return printable(line), nil
}

// head keeps the start of what is written to it.
type head []byte

func (h *head) Write(p []byte) (int, error) {
	*h = append(*h, p[:min(len(p), versionLimit-len(*h))]...)
	return len(p), nil
}

// printable leaves out what is not ASCII to look at: the table is plain.
func printable(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s))
}

// monitor is the VMM. Its driver has looked for it already.
func (m *machine) monitor() Item {
	item := Item{Name: m.Config.VMM, Status: OK}
	switch {
	case m.DriverErr != nil:
		item.Status, item.Value, item.Why = Missing, "no such driver", printable(m.DriverErr.Error())
	case m.Driver.Binary == "":
		item.Status, item.Value, item.Why = Missing, "not found", "every container runs in a virtual machine"
		item.Fix = m.distro.install(m.qemuPackage())
		if m.Config.QEMU != "" {
			item.Value = m.Config.QEMU + " not found"
			item.Fix = "set qemu in " + config.DefaultFile + ", or leave it out"
		}
	case m.Driver.Version == "":
		item.Status, item.Value, item.Why = Missing, m.Driver.Binary, "it does not tell its version, so it may not run at all"
		item.Fix = m.Driver.Binary + " --version"
	default:
		item.Value = m.Driver.Version + ", " + m.Driver.Binary
	}
	return item
}

func (m *machine) qemuPackage() string {
	if m.Arch == "arm64" {
		return "qemu-system-arm"
	}
	return "qemu-system-x86"
}

func (m *machine) virtiofsd() Item {
	f := m.FileService
	item := Item{Name: "virtiofsd", Status: Missing, Why: "directories and volumes of the host reach the guest through it"}
	switch {
	case f.Path == "" && m.Config.Virtiofsd != "":
		item.Value, item.Fix = m.Config.Virtiofsd+" not found", "set virtiofsd in "+config.DefaultFile+", or leave it out"
		return item
	case f.Path == "":
		item.Value, item.Fix = "not found", m.distro.install(m.distro.virtiofsdPackage())
		return item
	case f.Err != nil:
		item.Value, item.Why, item.Fix = f.Path, printable(f.Err.Error()), f.Path+" --version"
		return item
	}
	return Item{Name: "virtiofsd", Status: OK, Value: fmt.Sprintf("%s (%s), %s", f.Version, f.Kind, f.Path)}
}

func (m *machine) mkfsErofs() Item {
	return m.tool("mkfs.erofs", "erofs-utils", "images are kept as EROFS: without it none can be pulled, loaded or imported")
}

func (m *machine) mkfsExt4() Item {
	return m.tool("mkfs.ext4", "e2fsprogs", "the disk that takes what a container writes is ext4")
}

// tool is a program that husk runs. Old ones cannot tell their version; their path must do.
func (m *machine) tool(name, pkg, why string) Item {
	path := m.find(name)
	if path == "" {
		return Item{Name: name, Status: Missing, Value: "not found", Why: why, Fix: m.distro.install(pkg)}
	}
	value := path
	if line, err := m.firstLine(path, "-V"); err == nil && line != "" {
		value = strings.TrimPrefix(line, name+" ") + ", " + path
	}
	return Item{Name: name, Status: OK, Value: value}
}

// busybox is carried into a guest for husk shell. It must be static: the guest has no libraries for it.
func (m *machine) busybox() Item {
	dynamic := ""
	for _, path := range m.Shells {
		switch static, err := isStatic(m.at(path)); {
		case err == nil && static:
			return Item{Name: "busybox", Status: OK, Value: path}
		case err == nil && dynamic == "":
			dynamic = path
		}
	}
	item := Item{
		Name: "busybox", Status: Warning, Value: "not found", Why: "husk shell has no program to run in the guest",
		Fix: m.distro.install("busybox-static"),
	}
	if dynamic != "" {
		item.Value = dynamic + " is not static"
	}
	return item
}

func isStatic(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false, nil
		}
	}
	return true, nil
}
