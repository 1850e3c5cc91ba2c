package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestImageConfig runs what an image says, and what the user says in its place.
func TestImageConfig(t *testing.T) {
	begin(t)
	users := layerOf(t, regular("etc/passwd", "root:x:0:0::/root:/bin/sh\nada:x:1001:1002::/home/ada:/bin/sh\n"),
		regular("etc/group", "root:x:0:\nada:x:1002:\nwheel:x:10:ada\n"), directory("work/place", 0o777))
	tag := load(t, "example.test/configured:1", imageOf(t, v1.Config{
		Entrypoint: []string{"sh", "-c", `echo "$0" "$@"; id -u; id -g; id -G; pwd; echo $COLOUR $HOME; hostname`},
		Cmd:        []string{"from", "image"}, Env: []string{"COLOUR=blue", "PATH=/bin:/usr/bin"}, User: "ada", WorkingDir: "/work/place",
	}, busyboxLayer(t), users))
	for _, c := range []struct {
		name string
		args []string // after --name configured
		want string
	}{
		{"as it is", []string{tag}, "from image\n1001\n1002\n1002 10\n/work/place\nblue /home/ada\nconfigured\n"},
		{"arguments", []string{tag, "from", "user"}, "from user\n1001\n1002\n1002 10\n/work/place\nblue /home/ada\nconfigured\n"},
		{"all of it", []string{"-e", "COLOUR=red", "-w", "/tmp", "-u", "7:8", "--hostname", "elsewhere", tag},
			"from image\n7\n8\n8\n/tmp\nred /\nelsewhere\n"},
		{"entrypoint", []string{"--entrypoint", "echo", tag, "only", "this"}, "only this\n"},
		{"environment of the caller", []string{"-e", "COLOUR", "--entrypoint", "sh", tag, "-c", "echo $COLOUR"}, "green\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("COLOUR", "green")
			begin(t)
			if got := husk(t, append([]string{"run", "--rm", "--name", "configured"}, c.args...)...).ok(); got != c.want {
				t.Errorf("printed %q, want %q", got, c.want)
			}
		})
	}
	husk(t, "run", "--rm", "-u", "nobody-here", tag).fails(125, "nobody-here")
	husk(t, "run", "--rm", "-w", "relative", tag).fails(125, "relative")
	husk(t, "run", "--rm", "--entrypoint", "echo", "--pull", "sometimes", tag).fails(125, "sometimes")
}

// TestImageVolumes shares a directory and files of the host.
func TestImageVolumes(t *testing.T) {
	begin(t)
	host := t.TempDir()
	for name, text := range map[string]string{"dir/a": "a\n", "single": "one\n", "fixed": "same\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(host, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(host, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, root := range roots() {
		script := `cat /volume/dir/a /file /ro/dir/a; echo from ` + root.kind + ` >/volume/dir/b; echo more >>/file
for f in /ro/new /fixed; do (echo x >$f) 2>/dev/null && echo "$f is writable"; done; ls /volume /volume/dir`
		all := append([]string{"run", "--rm", "-v", host + ":/volume", "-v", host + "/single:/file",
			"-v", host + ":/ro:ro", "-v", host + "/fixed:/fixed:ro"}, root.args...)
		if err := os.WriteFile(filepath.Join(host, "single"), []byte("one\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		got := husk(t, append(all, "sh", "-c", script)...).ok()
		want := "a\none\na\n/volume:\ndir\nfixed\nsingle\n\n/volume/dir:\na\nb\n"
		if got != want {
			t.Errorf("root by %s: printed %q, want %q", root.kind, got, want)
		}
		for name, want := range map[string]string{"dir/b": "from " + root.kind + "\n", "single": "one\nmore\n", "fixed": "same\n"} {
			if data, err := os.ReadFile(filepath.Join(host, name)); err != nil || string(data) != want {
				t.Errorf("root by %s: on the host %s holds %q (%v), want %q", root.kind, name, data, err, want)
			}
		}
	}
	husk(t, "run", "--rm", "-v", host+"/missing:/volume", demo, "true").fails(125, "missing")
}

// TestImageReadOnly lets nothing be written to the root.
func TestImageReadOnly(t *testing.T) {
	begin(t)
	out := husk(t, "run", "--rm", "--read-only", demo, "sh", "-c",
		"touch /x 2>&1; touch /etc/x 2>&1; touch /dev/shm/x && echo shm").ok()
	if strings.Count(out, "Read-only file system") != 2 || !strings.HasSuffix(out, "shm\n") {
		t.Errorf("printed %q", out)
	}
}

// TestImageSize sizes the container and its machine.
func TestImageSize(t *testing.T) {
	begin(t)
	script := `cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max; nproc; awk '/MemTotal/ {print $2}' /proc/meminfo`
	for _, c := range []struct {
		flags    []string
		limits   string
		from, to int // MiB of the machine's memory as its kernel counts it
	}{
		{nil, "max\nmax 100000\nmax\n1\n", 400, 512},
		{[]string{"--memory", "128m"}, "134217728\nmax 100000\nmax\n1\n", 128, 224},
		{[]string{"--cpus", "2", "--pids-limit", "77"}, "max\n200000 100000\n77\n2\n", 400, 512},
		{[]string{"--cpus", "0.5", "-m", "1g"}, "1073741824\n50000 100000\nmax\n1\n", 1024, 1120},
	} {
		out := husk(t, append(append([]string{"run", "--rm"}, c.flags...), demo, "sh", "-c", script)...).ok()
		rest, ok := strings.CutPrefix(out, c.limits)
		if !ok {
			t.Errorf("%q: limits %q, want %q first", c.flags, out, c.limits)
			continue
		}
		kib, err := strconv.Atoi(strings.TrimSpace(rest))
		if err != nil || kib>>10 < c.from || kib>>10 > c.to {
			t.Errorf("%q: the machine has %q KiB, want %d to %d MiB", c.flags, rest, c.from, c.to)
		}
		t.Logf("%q: MemTotal %d MiB", c.flags, kib>>10)
	}
	husk(t, "run", "--rm", "--memory", "4k", demo, "true").fails(125, "memory")
	husk(t, "run", "--rm", "--memory", "900000g", demo, "true").fails(125, "memory")
}

// TestImageDetached follows the life of a container in the background through the verbs for people.
func TestImageDetached(t *testing.T) {
	begin(t)
	const id = "background"
	remove(t, id)
	if out := husk(t, "run", "-d", "--name", id, demo, "sh", "-c", "echo out; echo err >&2; sleep 1000").ok(); out != id+"\n" {
		t.Errorf("run -d printed %q, want the name", out)
	}
	until(t, "the log has both lines", seenWithin, func() bool {
		log := husk(t, "logs", id).run()
		return log.code == 0 && log.stdout == "out\n" && log.stderr == "err\n"
	})
	if list := husk(t, "ps").ok(); !strings.Contains(list, id) || !strings.Contains(list, demo) || !strings.Contains(list, "running") {
		t.Errorf("ps prints\n%s", list)
	}
	if list := husk(t, "ps", id).ok(); !strings.Contains(list, "sleep 1000") {
		t.Errorf("ps %s prints\n%s", id, list)
	}
	var listed []struct{ ID, Status string }
	if err := json.Unmarshal([]byte(husk(t, "ps", "--format", "json").ok()), &listed); err != nil || len(listed) != 1 || listed[0].ID != id {
		t.Errorf("ps --format json: %v (%v)", listed, err)
	}
	husk(t, "rm", id).fails(1, "running")
	husk(t, "kill", id, "KILL").ok()
	until(t, "the container is stopped", seenWithin, func() bool { return status(t, id) == "stopped" })
	if list := husk(t, "ps").ok(); strings.Contains(list, id) {
		t.Errorf("ps lists a stopped container:\n%s", list)
	}
	if list := husk(t, "ps", "-a").ok(); !strings.Contains(list, "exited (137)") {
		t.Errorf("ps -a prints\n%s", list)
	}
	if log := husk(t, "logs", id).ok(); !strings.Contains(log, "out\n") {
		t.Errorf("logs of the stopped container: %q", log)
	}
	husk(t, "rm", id).ok()
	husk(t, "logs", id).fails(1, id)
	husk(t, "run", "-d", "--rm", "--name", id, demo, "true").ok()
	until(t, "a container with --rm is gone", seenWithin, func() bool { return status(t, id) == "none" })
}

// TestImageLogsAreBounded prints more than is kept: the newest is there, the file on the host is bounded.
func TestImageLogsAreBounded(t *testing.T) {
	begin(t)
	id := detach(t, "verbose", demo, "sh", "-c",
		"yes 0123456789abcdefghijklmnopqrstuvwxyz | dd bs=64k iflag=fullblock count=1600 2>/dev/null; echo; echo the end; sleep 1000")
	name := record(t, id).Log
	size := func(name string) int64 {
		info, err := os.Stat(name)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	var most int64
	began := time.Now()
	until(t, "the container has printed all", patience, func() bool {
		most = max(most, size(name)+size(name+".1"))
		f, err := os.Open(name)
		if err != nil {
			return false
		}
		defer f.Close()
		tail := make([]byte, 16)
		n, _ := f.ReadAt(tail, max(0, size(name)-16))
		return strings.Contains(string(tail[:n]), "the end\n")
	})
	t.Logf("100 MiB of output took %v; at most %d MiB on disk", time.Since(began).Round(100*time.Millisecond), most>>20)
	if most > 64<<20 {
		t.Errorf("the log took %d bytes, want at most 64 MiB", most)
	}
	if log := husk(t, "logs", id).ok(); !strings.HasSuffix(log, "\nthe end\n") {
		t.Errorf("the log ends with %q", log[max(0, len(log)-40):])
	}
}
