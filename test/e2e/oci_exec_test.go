package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestExec runs every flag of exec against one container.
func TestExec(t *testing.T) {
	begin(t)
	b := newBundle(t, "exec sleep 1000")
	b.spec.Process.Env = append(b.spec.Process.Env, "FROM=init", "KEEP=yes")
	b.spec.Process.NoNewPrivileges = false
	c := b.up()
	for name, test := range map[string]func(*testing.T, *box){
		"streams": execStreams, "codes": execCodes, "environment": execEnvironment, "cwd": execCwd,
		"user": execUser, "capabilities": execCapabilities, "process file": execProcessFile,
		"detach": execDetached, "pid file": execPidFile, "much": execMuch, "bad": execBad,
		"accepted": execAccepted, "signal": execSignal,
	} {
		t.Run(name, func(t *testing.T) {
			inside := *c
			inside.t = t
			test(t, &inside)
			expect(t, "status of the container", status(t, c.id), "running")
		})
	}
}

func execStreams(t *testing.T, c *box) {
	h := husk(t, "exec", "-i", c.id, "sh", "-c", "cat; echo err >&2; exit 5")
	h.in = "fed\n"
	expect(t, "result", h.run(), result{stdout: "fed\n", stderr: "err\n", code: 5})
}

func execCodes(t *testing.T, c *box) {
	expect(t, "exit code", husk(t, "exec", c.id, "sh", "-c", "exit 255").run().code, 255)
	expect(t, "exit code after a signal", husk(t, "exec", c.id, "sh", "-c", "kill -9 $$").run().code, 137)
	husk(t, "exec", c.id, "no-such-program").fails(127, "no-such-program")
	husk(t, "exec", c.id, "/no/such/program").fails(127, "/no/such/program")
	husk(t, "exec", c.id, "/etc/passwd").fails(126, "/etc/passwd", "permission denied")
	husk(t, "exec", c.id, "/etc").fails(126, "/etc")
}

func execEnvironment(t *testing.T, c *box) {
	out := husk(t, "exec", "--env", "A=1", "-e", "FROM=exec", "-e", "EMPTY=", c.id, "env").ok()
	for _, line := range []string{"A=1", "FROM=exec", "EMPTY=", "KEEP=yes"} {
		if !strings.Contains("\n"+out, "\n"+line+"\n") {
			t.Errorf("the environment has no %s: %s", line, out)
		}
	}
	if strings.Contains(out, "FROM=init") {
		t.Errorf("the environment has two FROM: %s", out)
	}
}

func execCwd(t *testing.T, c *box) {
	expect(t, "pwd", husk(t, "exec", "--cwd", "/etc", c.id, "pwd").ok(), "/etc\n")
	husk(t, "exec", "--cwd", "/no/such/dir", c.id, "pwd").fails(1, "/no/such/dir")
	husk(t, "exec", "--cwd", "relative", c.id, "pwd").fails(1, "relative", "absolute")
}

func execUser(t *testing.T, c *box) {
	ids := func(flags ...string) string {
		return strings.TrimSpace(husk(t, append(append([]string{"exec"}, flags...), c.id, "sh", "-c", "echo $(id -u):$(id -g) $(id -G)")...).ok())
	}
	expect(t, "ids", ids(), "0:0 0")
	expect(t, "ids of --user 1000", ids("--user", "1000"), "1000:0 0")
	expect(t, "ids of --user 1000:2000", ids("--user", "1000:2000"), "1000:2000 2000")
	expect(t, "ids with additional groups", ids("-u", "7:8", "--additional-gids", "9", "-g", "10"), "7:8 8 9 10")
	husk(t, "exec", "--user", "nobody", c.id, "true").fails(1, "nobody")
	husk(t, "exec", "--user", "1:2:3", c.id, "true").fails(1, "1:2:3")
	husk(t, "exec", "--user", "-1", c.id, "true").fails(1, "-1")
}

func execCapabilities(t *testing.T, c *box) {
	field := func(name string, flags ...string) string {
		return strings.TrimSpace(husk(t, append(append([]string{"exec"}, flags...), c.id, "sed", "-n", "s/^"+name+":.//p", "/proc/self/status")...).ok())
	}
	const own, admin = uint64(1<<29 | 1<<5 | 1<<10), uint64(1 << 21) // AUDIT_WRITE, KILL, NET_BIND_SERVICE; SYS_ADMIN
	expect(t, "CapEff", field("CapEff"), fmt.Sprintf("%016x", own))
	expect(t, "CapEff with --cap", field("CapEff", "--cap", "CAP_SYS_ADMIN"), fmt.Sprintf("%016x", own|admin))
	expect(t, "CapBnd with -c", field("CapBnd", "-c", "sys_admin"), fmt.Sprintf("%016x", own|admin))
	expect(t, "NoNewPrivs", field("NoNewPrivs"), "0")
	expect(t, "NoNewPrivs with --no-new-privs", field("NoNewPrivs", "--no-new-privs"), "1")
	husk(t, "exec", "--cap", "CAP_NONSENSE", c.id, "true").fails(1, "CAP_NONSENSE")
}

func execProcessFile(t *testing.T, c *box) {
	p := specs.Process{
		Args: []string{"sh", "-c", `echo "$A $(pwd) $(id -u) $(ulimit -n)"`}, Cwd: "/etc",
		Env: []string{"A=file", "PATH=/bin"}, User: specs.User{UID: 12, GID: 12},
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 64, Hard: 64}},
	}
	data, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "output", husk(t, "exec", "--process", file(t, string(data)), c.id).ok(), "file /etc 12 64\n")
	husk(t, "exec", "--process", "/no/such/file", c.id).fails(1, "/no/such/file")
	husk(t, "exec", "--process", file(t, "{"), c.id).fails(1, "line 1")
	husk(t, "exec", "--process", file(t, `{"args":[],"cwd":"/"}`), c.id).fails(1, "args")
	husk(t, "exec", "--process", file(t, `{"args":["true"]}`), c.id).fails(1, "cwd")
}

// execDetached runs a process as engines do: its host process carries stdio and exit code.
func execDetached(t *testing.T, c *box) {
	out, pidFile := file(t, ""), filepath.Join(t.TempDir(), "pid")
	cmd := husk(t, "exec", "--detach", "--pid-file", pidFile, c.id, "sh", "-c", "echo out; sleep 0.3; exit 9").cmd()
	f, err := os.OpenFile(out, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	r := begun(t, cmd)
	expect(t, "exit code of exec --detach", r.wait().code, 0)
	pid, err := strconv.Atoi(content(t, pidFile))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the host process is alive", alive(pid), true)
	expect(t, "its exit code", reaped(t, pid), 9)
	expect(t, "output", content(t, out), "out\n")
}

// execPidFile: with a pid file and no --detach, exec waits.
func execPidFile(t *testing.T, c *box) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	r := husk(t, "exec", "--pid-file", pidFile, c.id, "sh", "-c", "echo out; exit 4").run()
	expect(t, "result", r, result{stdout: "out\n", code: 4})
	if _, err := strconv.Atoi(content(t, pidFile)); err != nil {
		t.Error(err)
	}
	husk(t, "exec", "--pid-file", "/no/such/dir/pid", c.id, "true").fails(1, "/no/such/dir")
}

// execMuch checks that nothing of a larger output and input is lost, nor anything of many short ones.
func execMuch(t *testing.T, c *box) {
	data := strings.Repeat("0123456789abcdef", 256<<10/16)
	h := husk(t, "exec", c.id, "cat")
	h.in = data
	if out := h.ok(); sha256.Sum256([]byte(out)) != sha256.Sum256([]byte(data)) {
		t.Errorf("%d bytes went in, %d other bytes came out", len(data), len(out))
	}
	for i := range 5 {
		want := fmt.Sprintf("short %d", i)
		expect(t, "output", husk(t, "exec", c.id, "echo", want).ok(), want+"\n")
	}
}

func execBad(t *testing.T, c *box) {
	husk(t, "exec", c.id).fails(1, "command")
	husk(t, "exec").fails(1, "container id")
	husk(t, "exec", c.id, "").fails(1, "args")
	husk(t, "exec", "--env", "=x", c.id, "true").fails(1, "=x")
	husk(t, "exec", "--no-such-flag", c.id, "true").fails(1, "--no-such-flag")
	husk(t, "exec", "--tty", "--detach", c.id, "true").fails(1, "--console-socket")
	husk(t, "exec", "--tty", c.id, "true").fails(1, "not a terminal")
	husk(t, "exec", "--console-socket", "/no/such/socket", "--tty", c.id, "true").fails(1, "/no/such/socket")
	husk(t, "exec", "--console-socket", "/no/such/socket", c.id, "true").fails(1, "--console-socket")
}

// execAccepted are flags of runc that engines pass and that have no meaning here.
func execAccepted(t *testing.T, c *box) {
	out := husk(t, "exec", "--preserve-fds", "0", "--apparmor", "x", "--process-label", "y", "--ignore-paused", "--cgroup", "z", c.id, "echo", "--flag").ok()
	expect(t, "output", out, "--flag\n")
}

// execSignal: what exec's own process is sent goes to the process in the container.
func execSignal(t *testing.T, c *box) {
	r := husk(t, "exec", c.id, "sh", "-c", `trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done`).start()
	r.prints("ready\n")
	r.signal(syscall.SIGTERM)
	expect(t, "result", r.wait(), result{stdout: "ready\nbye\n", code: 3})
}
