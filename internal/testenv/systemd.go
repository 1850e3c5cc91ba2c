package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// systemdUnits are those that the systemd of the tests starts: a bus, and nothing else of this machine's.
var systemdUnits = map[string]string{
	"husk-test.target": "[Unit]\nDefaultDependencies=no\nWants=dbus.socket dbus.service\nAllowIsolate=yes\n",
	"dbus.socket":      "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
	"dbus.service": "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n[Service]\nType=notify\n" +
		"ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --nosyslog\n",
}

// systemdStart makes the namespaces in which systemd is the first process, with control groups of version 2 alone, in which it has
// none but those below the one that it starts in. What it would set of this machine's it cannot write.
const systemdStart = `mount --make-rprivate /; umount -R -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup
	for d in /proc/sys/fs /proc/sys/kernel; do mount --bind $d $d; mount -o remount,bind,ro $d; done
	mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/lock /run/netns /run/systemd/system; cp $UNITS/* /run/systemd/system
	mount --bind /run/systemd/system /etc/systemd/system
	mount --make-rshared /; ip link set lo up; echo 1 >/proc/sys/net/ipv4/ip_forward
	exec env -i PATH=$PATH container=husk-test /lib/systemd/systemd --system --unit=husk-test.target --log-target=null --show-status=no`

// systemdWait bounds the waits for systemd; it is no promise.
const systemdWait = time.Minute

// Systemd starts a real systemd and a bus in namespaces of their own (network, mount, IPC, UTS, PID, control group), with
// control groups of version 2 alone, and returns its process id here: nsenter(1) gets there. It ends with the test, and all that it
// started.
func Systemd(t testing.TB) (pid int) {
	t.Helper()
	NeedRoot(t)
	for _, program := range []string{"/lib/systemd/systemd", "systemctl", "dbus-daemon"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v (make setup installs it)", err)
		}
	}
	units := t.TempDir()
	for name, text := range systemdUnits {
		if err := os.WriteFile(filepath.Join(units, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "-ec", `echo $$ >$0/cgroup.procs; exec unshare --net --mount --ipc --uts --pid --cgroup --fork --kill-child --mount-proc sh -ec "$1"`,
		unifiedGroup(t), systemdStart)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Env = append(os.Environ(), "UNITS="+units)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	// The first process of the namespaces is there before it is systemd.
	systemdUntil(t, "systemd and its bus run", func() bool {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%[1]d/task/%[1]d/children", cmd.Process.Pid))
		if _, none := fmt.Sscan(string(children), &pid); err != nil || none != nil {
			return false
		}
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || strings.TrimSpace(string(name)) != "systemd" {
			return false
		}
		return exec.Command("nsenter", "--all", "--target", fmt.Sprint(pid), "systemctl", "is-active", "dbus.service").Run() == nil
	})
	return pid
}

func systemdUntil(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(systemdWait); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v still not true: %s", systemdWait, what)
		}
	}
}

// unifiedGroup makes a control group of version 2, which is removed at the end with all below it.
func unifiedGroup(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("findmnt", "-n", "-t", "cgroup2", "-o", "TARGET").Output()
	if err != nil {
		t.Skipf("no control groups of version 2 are mounted: %v", err)
	}
	group := filepath.Join(strings.Fields(string(out))[0], "husk-test-systemd")
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		systemdUntil(t, "the control groups of the test are removed", func() bool {
			_ = exec.Command("find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run() // those in use at the next try
			_, err := os.Stat(group)
			return err != nil
		})
	})
	return group
}
