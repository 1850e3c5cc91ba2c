package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// loopDevice makes a loop device over a file of 8 MiB that begins with text, and is gone when the test ends.
func loopDevice(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "volume")
	if err := os.WriteFile(file, append([]byte(text), make([]byte, 8<<20-len(text))...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", file).CombinedOutput()
	if err != nil {
		t.Skipf("this machine gives no loop device: %s", out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %s", device, out)
		}
	})
	return device
}

// opens counts the descriptors of all processes that lead to a file.
func opens(path string) (n int) {
	all, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range all {
		if target, err := os.Readlink(fd); err == nil && target == path {
			n++
		}
	}
	return n
}

// ctrNative runs a container whose root is a directory that is no overlay.
func ctrNative(e *engine) {
	r := e.ctr(runs("--rm", "--snapshotter", "native", criImage, "native", "sh", "-c", "echo x >/x; cat /x; exit 4")...)
	if r.stdout != "x\n" || r.code != 4 {
		e.t.Errorf("run printed %q and exited with %d: %s", r.stdout, r.code, r.stderr)
	}
}

// ctrDevices gives block devices to a container, and to one that joins the virtual machine of another.
func ctrDevices(e *engine) {
	device := loopDevice(e.t, "a volume")
	written := func() string {
		e.t.Helper()
		data, err := os.ReadFile(device)
		if err != nil {
			e.t.Fatal(err)
		}
		return string(bytes.TrimRight(data[512:1024], "\x00"))
	}
	script := func(text string) string {
		return "head -c 8 " + device + "; printf " + text + " | dd of=" + device + " bs=512 seek=1 conv=notrunc 2>/dev/null"
	}
	r := e.ctr(runs("--rm", "--device", device, criImage, "disk", "sh", "-c", script("first"))...)
	if r.stdout != "a volume" || r.code != 0 || written() != "first" {
		e.t.Errorf("run printed %q, wrote %q and exited with %d: %s", r.stdout, written(), r.code, r.stderr)
	}
	pod := func(kind string) []string {
		return []string{"-d", "--annotation", "io.kubernetes.cri.container-type=" + kind, "--annotation", "io.kubernetes.cri.sandbox-id=base"}
	}
	e.ok(runs(append(pod("sandbox"), criImage, "base", "sleep", "1000")...)...)
	e.ok(runs(append(pod("container"), "--device", device, criImage, "member", "sleep", "1000")...)...)
	r = e.ctr("task", "exec", "--exec-id", "one", "member", "sh", "-c", script("second")+"; stat -c %t "+device)
	if number := strings.TrimPrefix(r.stdout, "a volume"); number == r.stdout || r.code != 0 || number == "7\n" {
		e.t.Errorf("in a pod exec printed %q and exited with %d, want the content and the guest's number: %s", r.stdout, r.code, r.stderr)
	}
	if opens(device) == 0 {
		e.t.Error("nobody has the device open")
	}
	for _, id := range []string{"member", "base"} {
		e.ctr("task", "rm", "-f", id)
		e.ok("containers", "rm", id)
		if n := opens(device); n != 0 {
			e.t.Errorf("without container %s the device is open %d times", id, n)
		}
	}
	if written() != "second" {
		e.t.Errorf("the device holds %q, want what the pod's container wrote", written())
	}
}
