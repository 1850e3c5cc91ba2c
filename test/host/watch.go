package host

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Files of a saved host's directory, beside its disk.
const (
	savedMemory = "memory"
	savedState  = "state"
)

const (
	memoryMiB  = 4096
	processors = 2
)

// A host stands still when its emulator has worked for stillWork, or stillWait has passed, without a sign of life. It is the
// emulator's work that counts: a busy machine lets it wait for as long as it likes. One that boots says nothing until it is up, and
// has bootWork.
const (
	stillWork = 90 * time.Second
	bootWork  = 8 * time.Minute
	stillWait = 30 * time.Minute
)

// arguments are QEMU's. A host that is saved and one that continues are the same machine; what it writes while it is saved stays.
func arguments(m Machine, dir, console string, saving bool) []string {
	memory, root, keep := fmt.Sprintf("memory-backend-ram,id=ram,size=%dM", memoryMiB), filepath.Join(m.Image, imageRoot), "on"
	if m.Saved != "" {
		share := "off" // a private copy
		if saving {
			share, keep = "on", "off"
		}
		memory = fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=%s", memoryMiB, filepath.Join(m.Saved, savedMemory), share)
		root = filepath.Join(m.Saved, imageRoot)
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", "tcg,tb-size=1024,thread=multi", "-cpu", "max,+svm,-la57", "-machine", "q35,memory-backend=ram",
		"-smp", fmt.Sprint(processors), "-m", fmt.Sprint(memoryMiB), "-object", memory,
		"-kernel", filepath.Join(m.Image, imageKernel), "-initrd", filepath.Join(m.Image, imageInitrd),
		"-append", "console=ttyS0 root=/dev/vda rw panic=-1 oops=panic mitigations=off tsc=reliable no_timer_check quiet systemd.show_status=0",
		"-chardev", "file,id=console,path=" + console, "-serial", "chardev:console",
		"-drive", "file=" + root + ",if=none,id=root,format=raw,cache=unsafe,snapshot=" + keep, "-device", "virtio-blk-pci,drive=root",
		"-device", "virtio-rng-pci", "-device", "pcie-root-port,id=port0,chassis=1",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=port,server=on,wait=off,path=" + filepath.Join(dir, "port"),
		"-device", "virtserialport,chardev=port,name=husk-test",
		"-qmp", "unix:" + filepath.Join(dir, "qmp") + ",server=on,wait=off",
	}
	if m.Saved != "" && !saving {
		args = append(args, "-incoming", "defer")
	}
	return args
}

// watch ends a host that stands still, or whose kernel has given up.
func (h *Host) watch() {
	seen, since, work := -1, time.Now(), time.Duration(0)
	for {
		select {
		case <-h.ended:
			h.lose("the emulator ended")
			return
		case <-time.After(time.Second):
		}
		h.mu.Lock()
		signs, limit := h.signs+len(h.console()), h.still
		if h.boots && h.signs == 0 {
			limit = bootWork
		}
		h.mu.Unlock()
		used := h.work()
		if signs != seen {
			seen, since, work = signs, time.Now(), used
			continue
		}
		if used-work > limit || time.Since(since) > stillWait {
			h.lose(fmt.Sprintf("it stands still: no sign of life for %v, in which its emulator worked for %v",
				time.Since(since).Round(time.Second), (used - work).Round(time.Second)))
			_ = h.cmd.Process.Kill()
			return
		}
	}
}

// lose notes why the host is lost; the first reason counts.
func (h *Host) lose(why string) *LostError {
	if last := panicked(h.console()); last != "" {
		why = last
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lost == nil && !h.stopped {
		h.lost = &LostError{Why: why}
	}
	if h.lost == nil {
		return &LostError{Why: "it was closed"}
	}
	return h.lost
}

// panicked is what the kernel said when it gave up, or "".
func panicked(console string) string {
	for line := range strings.Lines(console) {
		if i := strings.Index(line, "Kernel panic"); i >= 0 {
			return strings.TrimSpace(line[i:])
		}
	}
	return ""
}

// work is the processor time of the emulator so far.
func (h *Host) work() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", h.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// proc(5): after the name in brackets utime and stime are the 12th and the 13th, in hundredths of a second.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var user, system int64
	if len(fields) > 12 {
		_, _ = fmt.Sscan(fields[11], &user)
		_, _ = fmt.Sscan(fields[12], &system)
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}
