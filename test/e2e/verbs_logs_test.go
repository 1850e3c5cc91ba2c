package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// split runs a command whose two outputs are looked at apart.
func split(t *testing.T, args ...string) (stdout, stderr string) {
	t.Helper()
	r := husk(t, args...).run()
	if r.code != 0 {
		t.Fatalf("husk %q: exit code %d, stderr %q", args, r.code, r.stderr)
	}
	return r.stdout, r.stderr
}

func TestLogs(t *testing.T) {
	begin(t)
	id := detach(t, "logs-a", demo, "sh", "-c", `echo one; sleep 0.2; echo oops >&2; sleep 0.2; printf 'a\000b\r\377\nno end'; sleep 2; echo; echo last`)
	logged(t, id, "oops")
	follow := husk(t, "logs", "--follow", id).start()
	r := follow.wait()
	const out, errors = "one\na\x00b\r\xff\nno end\nlast\n", "oops\n"
	if r.code != 0 || r.stdout != out || r.stderr != errors {
		t.Errorf("followed to the end: %+v", r)
	}
	expect(t, "exit code", husk(t, "wait", id).ok(), "0\n")
	stdout, stderr := split(t, "logs", id)
	expect(t, "stdout", stdout, out)
	expect(t, "stderr", stderr, errors)

	stdout, stderr = split(t, "logs", "--timestamps", id)
	const at = `(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) `
	if !regexp.MustCompile("^"+at+"one\n"+at+"a\x00b\r.\n"+at+"no end\n"+at+"last\n$").MatchString(stdout) ||
		!regexp.MustCompile("^"+at+"oops\n$").MatchString(stderr) {
		t.Errorf("with times: %q and %q", stdout, stderr)
	}
	times := regexp.MustCompile(at).FindAllStringSubmatch(stdout, -1)
	if len(times) != 4 {
		t.Fatalf("%d times", len(times))
	}
	second, last := times[1][1], times[3][1]
	moment, err := time.Parse(time.RFC3339Nano, last)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, out, err string }{
		{"--tail 0", "", ""},
		{"-n 1", "last\n", ""},
		{"--tail 3", "a\x00b\r\xff\nno end\nlast\n", ""},
		{"--tail 4", "a\x00b\r\xff\nno end\nlast\n", errors},
		{"--tail all", out, errors},
		{"--tail 99", out, errors},
		{"--since " + second, "a\x00b\r\xff\nno end\nlast\n", ""},
		{"--until " + second, "one\n", errors},
		{"--since " + second + " --until " + last, "a\x00b\r\xff\nno end", ""},
		{fmt.Sprintf("--since %d.%09d", moment.Unix(), moment.Nanosecond()), "last\n", ""},
		{"--since 1h", out, errors},
		{"--until 1h", "", ""},
		{"--since 1h --tail 1", "last\n", ""},
		{"--follow --tail 1", "last\n", ""}, // one that has ended
		{"--follow --until " + second, "one\n", errors},
	} {
		stdout, stderr := split(t, append(append([]string{"logs"}, strings.Fields(c.args)...), id)...)
		if c.args == "--since "+second+" --until "+last {
			stdout = strings.TrimSuffix(stdout, "\n") // the newline comes with the last line, or before it
		}
		if stdout != c.out || stderr != c.err {
			t.Errorf("logs %s printed %q and %q, want %q and %q", c.args, stdout, stderr, c.out, c.err)
		}
	}
	husk(t, "logs", "--tail", "some", id).fails(1, "--tail", "some")
	husk(t, "logs", "--since", "yesterday", id).fails(1, "--since", "yesterday", "RFC 3339")
	husk(t, "logs", "--until", "1e5", id).fails(1, "--until")
	husk(t, "logs", "--console", "--follow", id).fails(1, "console", "follow")
	if out := husk(t, "logs", "--help").ok(); !strings.Contains(out, "--follow --tail 10 web") {
		t.Errorf("help of logs is %q", out)
	}
	if out := husk(t, "__complete", "logs", "--tail", "").ok(); !strings.HasPrefix(out, "all\n") {
		t.Errorf("completion of --tail is %q", out)
	}
}

// TestLogsFollow ends viewers, and then the container under them.
func TestLogsFollow(t *testing.T) {
	begin(t)
	id := detach(t, "logs-follow", "--rm", demo, "sh", "-c", "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.1; done")
	logged(t, id, "ready")
	first := husk(t, "logs", "-f", id).start()
	second := husk(t, "logs", "-f", "-n", "0", id).start()
	until(t, "the viewer prints", seenWithin, func() bool { return first.stdout.String() == "ready\n" })
	if err := first.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if r := first.wait(); r.code != 130 || r.stderr != "" {
		t.Errorf("the viewer that was interrupted: %+v", r)
	}
	expect(t, "status after it", status(t, id), "running")
	husk(t, "kill", id, "TERM").ok()
	if r := second.wait(); r.code != 0 || r.stdout != "bye\n" || r.stderr != "" { // the log goes with the container
		t.Errorf("the viewer of a container that ended: %+v", r)
	}

	id = detach(t, "logs-lost", demo, "sh", "-c", "echo ready; sleep 1000")
	logged(t, id, "ready")
	viewer := husk(t, "logs", "-f", id).start()
	until(t, "the viewer prints", seenWithin, func() bool { return viewer.stdout.String() == "ready\n" })
	kill9(t, record(t, id).Owner.PID)
	if r := viewer.wait(); r.code != 0 || r.stdout != "ready\n" {
		t.Errorf("the viewer of a container whose owner was killed: %+v", r)
	}
}

// TestLogsFollowLoud follows more than is kept, over the log's new files, and compares every byte.
func TestLogsFollowLoud(t *testing.T) {
	begin(t)
	const blocks = 640 // of 64 KiB; with times it is more than the 64 MiB that are kept
	id := detach(t, "logs-loud", demo, "sh", "-c",
		fmt.Sprintf("sleep 2; yes 0123456789abcdefghijklmnopqrstuvwxyz | dd bs=64k iflag=fullblock count=%d 2>/dev/null; exec sleep 1000", blocks))
	viewer := husk(t, "logs", "--follow", id).start()
	path := record(t, id).Log
	until(t, "all is printed", patience, func() bool { return viewer.stdout.Len() >= blocks<<16 })
	if _, err := os.Stat(path + ".1"); err != nil {
		t.Errorf("the log did not begin a new file: %v", err)
	}
	if err := viewer.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	r := viewer.wait()
	if want := strings.Repeat("0123456789abcdefghijklmnopqrstuvwxyz\n", blocks<<16/37+1)[:blocks<<16]; r.stdout != want || r.stderr != "" {
		t.Errorf("%d bytes were printed that are not the %d that were written; stderr %q", len(r.stdout), len(want), r.stderr)
	}
}

// TestLogsHostile prints NULs without a newline, without end: neither the owner nor a viewer grows, and the container can be ended.
func TestLogsHostile(t *testing.T) {
	begin(t)
	id := detach(t, "logs-hostile", demo, "sh", "-c", "exec cat /dev/zero")
	path := record(t, id).Log
	until(t, "the log has begun a new file", patience, func() bool { _, err := os.Stat(path + ".1"); return err == nil })
	viewer := husk(t, "logs", "--follow", id).cmd() // which nobody reads
	pipe, err := viewer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	r := begun(t, viewer)
	before := memory(t, record(t, id).Owner.PID)
	for range 20 {
		time.Sleep(100 * time.Millisecond)
		if kib := memory(t, record(t, id).Owner.PID); kib > before+32<<10 || memory(t, r.cmd.Process.Pid) > 64<<10 {
			t.Fatalf("the owner takes %d KiB, after %d; the viewer %d", kib, before, memory(t, r.cmd.Process.Pid))
		}
	}
	info, err := filepath.Glob(path + "*")
	if err != nil || len(info) > 3 {
		t.Errorf("files of the log: %q (%v)", info, err)
	}
	if out := husk(t, "exec", id, "echo", "alive").ok(); out != "alive\n" {
		t.Errorf("exec printed %q", out)
	}
	husk(t, "rm", "--force", id).ok()
}

// memory is what a process has in memory, in KiB.
func memory(t *testing.T, pid int) (kib int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatalf("memory of process %d: %v", pid, err)
	}
	return kib
}

// TestLogsOfTerminal has one stream, with the terminal's line ends.
func TestLogsOfTerminal(t *testing.T) {
	begin(t)
	id := detach(t, "logs-tty", "-t", demo, "sh", "-c", "tty >/dev/null && echo terminal; echo oops >&2")
	husk(t, "wait", id).ok()
	stdout, stderr := split(t, "logs", id)
	expect(t, "stdout", stdout, "terminal\r\noops\r\n")
	expect(t, "stderr", stderr, "")
}

// TestLogsDiskFull prints to a disk that is full: the container goes on, its owner tells it once.
func TestLogsDiskFull(t *testing.T) {
	begin(t)
	disk := smallDisk(t, "48m")
	config := disk.config(filepath.Join(t.TempDir(), "run"), filepath.Join(disk.dir, "data"))
	disk.husk(config, "import", "--cmd", "sh", env.rootfs, "first").ok()
	const id = "logs-full"
	t.Cleanup(func() { disk.husk(config, "delete", "--force", id).ok() })
	disk.husk(config, "run", "-d", "--name", id, "--storage-size", "0", "first", "sh", "-c", "while :; do echo line of the log; done").ok()
	disk.fill(64 << 10)
	const warning = "output of a container is missing in its log"
	until(t, "the owner tells it", patience, func() bool { return strings.Contains(disk.husk(config, "logs", "--owner", id).ok(), warning) })
	time.Sleep(time.Second)
	if out := disk.husk(config, "exec", id, "echo", "alive").ok(); out != "alive\n" {
		t.Errorf("exec printed %q", out)
	}
	if log := disk.husk(config, "logs", "--owner", id).ok(); strings.Count(log, warning) != 1 || !strings.Contains(log, "no space left") {
		t.Errorf("the owner's log has\n%s", log)
	}
	if err := os.Remove(filepath.Join(disk.seen, "ballast")); err != nil {
		t.Fatal(err)
	}
	until(t, "the log goes on", patience, func() bool {
		return disk.husk(config, "logs", "--tail", "2", "--since", "1s", id).ok() == strings.Repeat("line of the log\n", 2)
	})
}
