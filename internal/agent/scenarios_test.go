package agent_test

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
)

// scenarios is what every agent must do, wherever it runs.
func scenarios(t *testing.T, s *subject) {
	for _, c := range []struct {
		name string
		test func(*testing.T, *subject)
	}{
		{"hello", testHello}, {"output and status", testRun}, {"killed", testKilled},
		{"create then start", testCreateStart}, {"states", testStates},
		{"no such command", testNoCommand}, {"stdin", testStdin}, {"reader gone", testReaderGone},
		{"large output", testLargeOutput}, {"exec", testExec}, {"exec leaves a child", testExecLeavesChild},
		{"terminal", testTerminal}, {"exec terminal", testExecTerminal}, {"signals", testSignals},
		{"pause", testPause}, {"zombies", testZombies}, {"processes", testProcesses},
		{"shared namespaces", testNamespaces}, {"shell", testShell}, {"refusals", testRefusals},
		{"output as a user", testUserOutput}, {"dies at once", testDiesAtOnce},
		{"seccomp", testSeccomp},
		{"copy", testCopy}, {"copy of users", testCopyUsers}, {"copy stopped", testCopyStopped}, {"copy paused", testCopyPaused},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, s) })
	}
}

func wantCode(t *testing.T, err error, want codes.Code, text string) {
	t.Helper()
	message, code := guest.Reason(err)
	if err == nil || code != want || !strings.Contains(message, text) {
		t.Errorf("error is %v, want %v with %q", err, want, text)
	}
}

func testHello(t *testing.T, s *subject) {
	h := s.Greeting()
	if h.Version != agentv1.Version || h.Kernel == "" || !strings.HasPrefix(h.Runner, "crun version") {
		t.Errorf("greeting is %v", h)
	}
	if h.MemoryTotalKib == 0 || h.MemoryUsedKib == 0 || h.AgentRssKib == 0 || h.BootMicroseconds == 0 {
		t.Errorf("greeting lacks figures: %v", h)
	}
	// Hello may have waited for the guest to boot, so the clock that it set is behind until the next call.
	if _, err := s.Ping(t.Context(), &agentv1.PingRequest{NowUnixNanos: time.Now().UnixNano()}); err != nil {
		t.Fatal(err)
	}
	r, err := s.Ping(t.Context(), &agentv1.PingRequest{NowUnixNanos: time.Now().UnixNano()})
	if err != nil {
		t.Fatal(err)
	}
	if off := time.Duration(r.OffsetNanoseconds).Abs(); off > time.Second {
		t.Errorf("clock is off by %v after it was set", off)
	}
}

func testRun(t *testing.T, s *subject) {
	status, out, err := s.run(t, "sh", "-c", "echo out; echo err >&2; hostname; exit 7")
	if status != 7 || out != "out\nbox\n" || err != "err\n" {
		t.Errorf("status %d, out %q, err %q", status, out, err)
	}
}

func testKilled(t *testing.T, s *subject) {
	id := s.sleeper(t, nil)
	if _, err := s.Signal(t.Context(), &agentv1.SignalRequest{Container: id, Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if got := s.exit(t, id, ""); got != 137 {
		t.Errorf("status is %d, want 137", got)
	}
	_, err := s.Signal(t.Context(), &agentv1.SignalRequest{Container: id, Signal: 9})
	wantCode(t, err, codes.NotFound, id)
}

func testCreateStart(t *testing.T, s *subject) {
	p := s.open(t, false)
	id := s.create(t, config(process("echo", "started"), nil), p.stdio, false)
	time.Sleep(50 * time.Millisecond)
	if out := p.out.String(); out != "" {
		t.Errorf("output before start: %q", out)
	}
	if _, err := s.StartContainer(t.Context(), &agentv1.ContainerRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	if status, out := s.exit(t, id, ""), p.out.all(t); status != 0 || out != "started\n" {
		t.Errorf("status %d, output %q", status, out)
	}
	_, err := s.StartContainer(t.Context(), &agentv1.ContainerRequest{Id: id})
	wantCode(t, err, codes.FailedPrecondition, "it is stopped")
}

func testStates(t *testing.T, s *subject) {
	ctx := t.Context()
	id := s.create(t, config(process("sleep", "1000"), nil), &agentv1.Stdio{}, false)
	r := &agentv1.ContainerRequest{Id: id}
	_, err := s.CreateContainer(ctx, &agentv1.CreateContainerRequest{Id: id, Spec: config(process("true"), nil), Rootfs: s.root()})
	wantCode(t, err, codes.AlreadyExists, id)
	_, err = s.Pause(ctx, r)
	wantCode(t, err, codes.FailedPrecondition, "it is created")
	_, err = s.Resume(ctx, r)
	wantCode(t, err, codes.FailedPrecondition, "it is created")
	if _, err = s.StartContainer(ctx, r); err != nil {
		t.Fatal(err)
	}
	_, err = s.StartContainer(ctx, r)
	wantCode(t, err, codes.FailedPrecondition, "it is running")
	_, err = s.DeleteContainer(ctx, r)
	wantCode(t, err, codes.FailedPrecondition, "it is running")
	if _, err = s.Signal(ctx, &agentv1.SignalRequest{Container: id, Signal: 9}); err != nil {
		t.Fatal(err)
	}
	s.exit(t, id, "")
	if _, err = s.DeleteContainer(ctx, r); err != nil {
		t.Fatal(err)
	}
	_, err = s.DeleteContainer(ctx, r)
	wantCode(t, err, codes.NotFound, id)

	// One that was never started can be killed, and deleted without that.
	for _, kill := range []bool{true, false} {
		id = s.create(t, config(process("sleep", "1000"), nil), &agentv1.Stdio{}, false)
		if kill {
			if _, err := s.Signal(ctx, &agentv1.SignalRequest{Container: id, Signal: 9}); err != nil {
				t.Fatal(err)
			}
			if got := s.exit(t, id, ""); got != 137 {
				t.Errorf("status is %d, want 137", got)
			}
		}
		if _, err := s.DeleteContainer(ctx, &agentv1.ContainerRequest{Id: id}); err != nil {
			t.Error(err)
		}
	}
}

func testNoCommand(t *testing.T, s *subject) {
	for _, c := range []struct {
		program string
		code    codes.Code
		text    string
	}{
		{"/nope", codes.NotFound, `exec "/nope": no such file or directory`},
		{"nope", codes.NotFound, `exec "nope": executable file not found in $PATH`},
		{"/plain", codes.PermissionDenied, "permission denied"},
		{"/bin", codes.PermissionDenied, "permission denied"},
	} {
		id := s.id("c")
		_, err := s.CreateContainer(t.Context(), &agentv1.CreateContainerRequest{
			Id: id, Spec: config(process(c.program), nil), Rootfs: s.root(), Start: true,
		})
		wantCode(t, err, c.code, c.text)
		_, err = s.DeleteContainer(t.Context(), &agentv1.ContainerRequest{Id: id})
		wantCode(t, err, codes.NotFound, id)
	}
	id := s.sleeper(t, nil)
	for _, c := range []struct {
		program string
		code    codes.Code
	}{{"/nope", codes.NotFound}, {"nope", codes.NotFound}, {"/plain", codes.PermissionDenied}} {
		p := s.open(t, false)
		_, err := s.Exec(t.Context(), &agentv1.ExecRequest{
			Container: id, Exec: s.id("e"), Process: marshal(process(c.program)), Stdio: p.stdio,
		})
		wantCode(t, err, c.code, "exec")
		if out := p.err.all(t); out != "" {
			t.Errorf("the runner's own words came out as the process': %q", out)
		}
	}
	bad := process("true")
	bad["cwd"] = "/nowhere"
	_, err := s.Exec(t.Context(), &agentv1.ExecRequest{Container: id, Exec: "cwd", Process: marshal(bad)})
	wantCode(t, err, codes.InvalidArgument, `working directory "/nowhere"`)
}

func testStdin(t *testing.T, s *subject) {
	p := s.open(t, false)
	id := s.create(t, config(process("cat"), nil), p.stdio, true)
	for _, text := range []string{"one\n", "two\n"} {
		if _, err := io.WriteString(p.in, text); err != nil {
			t.Fatal(err)
		}
		p.out.until(t, text)
	}
	p.in.Close()
	if status, out := s.exit(t, id, ""), p.out.all(t); status != 0 || out != "one\ntwo\n" {
		t.Errorf("status %d, output %q", status, out)
	}
}

// testReaderGone closes an output stream early: the process gets SIGPIPE, or as the first of its PID
// namespace, which that does not kill, an error.
func testReaderGone(t *testing.T, s *subject) {
	token, conn, err := s.Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := s.create(t, config(process("cat", "/dev/zero"), nil), &agentv1.Stdio{Stdout: token}, true)
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if got := s.exit(t, id, ""); got == 0 {
		t.Errorf("status is %d, want that of a broken pipe", got)
	}
}

func testLargeOutput(t *testing.T, s *subject) {
	const size = 64 << 20
	token, conn, err := s.Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	in, feed, err := s.Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := s.create(t, config(process("cat"), nil), &agentv1.Stdio{Stdin: in, Stdout: token}, true)
	sent, received := md5.New(), md5.New()
	go func() {
		random := rand.NewChaCha8([32]byte{1})
		_, _ = io.Copy(io.MultiWriter(feed, sent), io.LimitReader(random, size)) // a loss shows below
		feed.Close()
	}()
	began := time.Now()
	n, err := io.Copy(received, conn)
	if err != nil || n != size {
		t.Fatalf("%d bytes came back, %v", n, err)
	}
	t.Logf("%.0f MiB/s there and back", size/1e6/time.Since(began).Seconds())
	if got, want := hex.EncodeToString(received.Sum(nil)), hex.EncodeToString(sent.Sum(nil)); got != want {
		t.Errorf("what came back has digest %s, sent was %s", got, want)
	}
	s.exit(t, id, "")
}

func testExec(t *testing.T, s *subject) {
	id := s.sleeper(t, nil)
	p := s.open(t, false)
	what := process("sh", "-c", "id -u; id -g; echo $COLOUR; pwd; read line; echo got $line; exit 3")
	what["user"] = map[string]any{"uid": 1000, "gid": 1001}
	what["env"] = []string{"PATH=/bin", "COLOUR=green"}
	what["cwd"] = "/tmp"
	exec := s.start(t, id, p, what)
	if _, err := io.WriteString(p.in, "input\n"); err != nil {
		t.Fatal(err)
	}
	if status, out := s.exit(t, id, exec), p.out.all(t); status != 3 || out != "1000\n1001\ngreen\n/tmp\ngot input\n" {
		t.Errorf("status %d, output %q", status, out)
	}
	_, err := s.Exec(t.Context(), &agentv1.ExecRequest{Container: "none", Exec: "e", Process: marshal(process("true"))})
	wantCode(t, err, codes.NotFound, `no container "none"`)
}

// testExecLeavesChild has a process leave a child with its output: the stream ends with the process.
func testExecLeavesChild(t *testing.T, s *subject) {
	id := s.sleeper(t, nil)
	p := s.open(t, false)
	exec := s.start(t, id, p, process("sh", "-c", "sleep 1000 & head -c 300000 /dev/zero; echo end"))
	if status, out := s.exit(t, id, exec), p.out.all(t); status != 0 || len(out) != 300004 {
		t.Errorf("status %d, %d bytes of output, want 300004", status, len(out))
	}
}

func testTerminal(t *testing.T, s *subject) {
	p := s.open(t, true)
	id := s.create(t, config(process("sh", "-c", "stty size; read line; echo got $line; stty size; exit 4"), nil), p.stdio, true)
	p.out.until(t, "24 80")
	if _, err := s.Resize(t.Context(), &agentv1.ResizeRequest{Container: id, Rows: 50, Columns: 132}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p.in, "typed\n"); err != nil {
		t.Fatal(err)
	}
	status, out := s.exit(t, id, ""), p.out.all(t)
	if status != 4 || !strings.Contains(out, "got typed\r\n") || !strings.Contains(out, "50 132\r\n") {
		t.Errorf("status %d, output %q", status, out)
	}
}

func testExecTerminal(t *testing.T, s *subject) {
	id := s.sleeper(t, nil)
	p := s.open(t, true)
	exec := s.start(t, id, p, process("sh", "-c", "stty size; cat; exit 5"))
	p.out.until(t, "24 80")
	if _, err := io.WriteString(p.in, "a line\n\x04"); err != nil { // Ctrl-D ends cat
		t.Fatal(err)
	}
	if status, out := s.exit(t, id, exec), p.out.all(t); status != 5 || strings.Count(out, "a line\r\n") != 2 {
		t.Errorf("status %d, output %q, want an echo and a copy", status, out)
	}
	_, err := s.Resize(t.Context(), &agentv1.ResizeRequest{Container: id, Rows: 1, Columns: 1})
	wantCode(t, err, codes.FailedPrecondition, "no terminal")
}

func testSignals(t *testing.T, s *subject) {
	p := s.open(t, false)
	id := s.create(t, config(process("sh", "-c", "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done"), nil), p.stdio, true)
	p.out.until(t, "ready")
	if _, err := s.Signal(t.Context(), &agentv1.SignalRequest{Container: id, Signal: 15}); err != nil {
		t.Fatal(err)
	}
	if status, out := s.exit(t, id, ""), p.out.all(t); status != 9 || out != "ready\ncaught\n" {
		t.Errorf("status %d, output %q", status, out)
	}

	id = s.sleeper(t, nil)
	exec := s.start(t, id, &streams{}, process("sleep", "1000"))
	if _, err := s.Signal(t.Context(), &agentv1.SignalRequest{Container: id, Exec: exec, Signal: 15}); err != nil {
		t.Fatal(err)
	}
	if got := s.exit(t, id, exec); got != 143 {
		t.Errorf("exec's status is %d, want 143", got)
	}
	exec = s.start(t, id, &streams{}, process("sleep", "1000"))
	if _, err := s.Signal(t.Context(), &agentv1.SignalRequest{Container: id, Signal: 9, All: true}); err != nil {
		t.Fatal(err)
	}
	if one, two := s.exit(t, id, ""), s.exit(t, id, exec); one != 137 || two != 137 {
		t.Errorf("statuses are %d and %d, want 137", one, two)
	}
	_, err := s.Signal(t.Context(), &agentv1.SignalRequest{Container: id, Signal: 99})
	wantCode(t, err, codes.InvalidArgument, "99")
}

func testPause(t *testing.T, s *subject) {
	p := s.open(t, false)
	id := s.create(t, config(process("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"), nil), p.stdio, true)
	p.out.until(t, "2\n")
	r := &agentv1.ContainerRequest{Id: id}
	if _, err := s.Pause(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // what is on its way arrives
	before := p.out.String()
	time.Sleep(300 * time.Millisecond)
	if after := p.out.String(); after != before {
		t.Errorf("%d bytes of output while paused", len(after)-len(before))
	}
	_, err := s.Exec(t.Context(), &agentv1.ExecRequest{Container: id, Exec: "x", Process: marshal(process("true"))})
	wantCode(t, err, codes.FailedPrecondition, "it is paused")
	if _, err := s.Resume(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	p.out.until(t, before+fmt.Sprint(strings.Count(before, "\n")+1))
	if _, err := s.Pause(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Signal(t.Context(), &agentv1.SignalRequest{Container: id, Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if got := s.exit(t, id, ""); got != 137 {
		t.Errorf("status of what was killed while paused is %d, want 137", got)
	}
}

// testZombies leaves orphans to the agent, in a container that has no PID numbers of its own.
func testZombies(t *testing.T, s *subject) {
	linux := map[string]any{"namespaces": []any{map[string]any{"type": "mount"}}}
	p := s.open(t, false)
	script := "for i in 1 2 3 4 5; do (sleep 0.05 &) ; done; sleep 0.5; ps -o stat,comm | tail -n +2; sleep 1000 &"
	id := s.create(t, config(process("sh", "-c", script), map[string]any{"linux": linux, "hostname": ""}), p.stdio, true)
	if status, out := s.exit(t, id, ""), p.out.all(t); status != 0 || strings.Contains(out, "Z") || !strings.Contains(out, "ps") {
		t.Errorf("status %d; zombies or nothing in the list:\n%s", status, out)
	}
	r, err := s.Processes(t.Context(), &agentv1.ContainerRequest{Id: id})
	for deadline := time.Now().Add(wait); err == nil && len(r.Processes) > 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		r, err = s.Processes(t.Context(), &agentv1.ContainerRequest{Id: id})
	}
	if err != nil || len(r.Processes) > 0 {
		t.Errorf("left after init: %v, %v", r, err)
	}
}

func testProcesses(t *testing.T, s *subject) {
	id := s.sleeper(t, nil)
	p := s.open(t, true)
	what := process("sleep", "999")
	what["user"] = map[string]any{"uid": 12, "gid": 0}
	s.start(t, id, p, what)
	var r *agentv1.ProcessesResponse
	var one, two *agentv1.Process
	for deadline := time.Now().Add(wait); (one == nil || two == nil) && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var err error // until the runner has become what it runs, it is seen in its place
		if r, err = s.Processes(t.Context(), &agentv1.ContainerRequest{Id: id}); err != nil {
			t.Fatal(err)
		}
		byCommand := map[string]*agentv1.Process{}
		for _, p := range r.Processes {
			byCommand[p.Command] = p
		}
		one, two = byCommand["sleep 1000"], byCommand["sleep 999"]
	}
	if len(r.Processes) != 2 || one == nil || two == nil {
		t.Fatalf("processes are %v", r.Processes)
	}
	if one.Uid != 0 || one.Tty != "?" || two.Uid != 12 || !strings.HasPrefix(two.Tty, "pts/") {
		t.Errorf("processes are %v", r.Processes)
	}
	if age := time.Since(time.Unix(int64(one.StartedUnix), 0)); age < -5*time.Second || age > 2*wait {
		t.Errorf("init was started %v ago", age)
	}
}
