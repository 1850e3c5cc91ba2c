package agent_test

import (
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// testNamespaces runs a second container of a pod, with the namespaces of the first.
func testNamespaces(t *testing.T, s *subject) {
	first := s.sleeper(t, map[string]any{"hostname": "the-pod"})
	linux := map[string]any{"namespaces": []any{
		map[string]any{"type": "mount"}, map[string]any{"type": "pid", "path": "husk:" + first},
		map[string]any{"type": "uts", "path": "/proc/4711/ns/uts"}, map[string]any{"type": "ipc", "path": "/proc/4711/ns/ipc"},
	}}
	p := s.open(t, false)
	changes := map[string]any{"linux": linux, "hostname": ""}
	id := s.create(t, config(process("sh", "-c", "ps -o pid,args; hostname"), changes), p.stdio, true)
	status, out := s.exit(t, id, ""), p.out.all(t)
	if status != 0 || !strings.Contains(out, "1 sleep 1000") || !strings.HasSuffix(out, "the-pod\n") {
		t.Errorf("status %d, output %q, error %q", status, out, p.err.all(t))
	}
}

func testShell(t *testing.T, s *subject) {
	_, err := s.Shell(t.Context(), &agentv1.ShellRequest{Exec: "early"})
	wantCode(t, err, codes.FailedPrecondition, "no shell")
	program := s.program(t)
	p := s.open(t, true)
	if _, err := s.Shell(t.Context(), &agentv1.ShellRequest{Exec: "sh1", Stdio: p.stdio, Program: program}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p.in, "stty size; ps | head -n 2; exit 6\n"); err != nil {
		t.Fatal(err)
	}
	if status, out := s.exit(t, "", "sh1"), p.out.all(t); status != 6 || !strings.Contains(out, "24 80") {
		t.Errorf("status %d, output %q", status, out)
	}
	p = s.open(t, false) // the program is there now
	if _, err := s.Shell(t.Context(), &agentv1.ShellRequest{Exec: "sh2", Stdio: p.stdio, Args: []string{"echo", "from", "args"}}); err != nil {
		t.Fatal(err)
	}
	if status, out := s.exit(t, "", "sh2"), p.out.all(t); status != 0 || out != "from args\n" {
		t.Errorf("status %d, output %q", status, out)
	}
}

func testRefusals(t *testing.T, s *subject) {
	ctx := t.Context()
	ok := config(process("true"), nil)
	for _, c := range []struct {
		name string
		req  *agentv1.CreateContainerRequest
		text string
	}{
		{"id", &agentv1.CreateContainerRequest{Id: "../x", Spec: ok, Rootfs: s.root()}, "invalid container id"},
		{"dots", &agentv1.CreateContainerRequest{Id: "..", Spec: ok, Rootfs: s.root()}, "invalid container id"},
		{"spec", &agentv1.CreateContainerRequest{Id: "x", Spec: []byte("{"), Rootfs: s.root()}, "OCI configuration"},
		{"process", &agentv1.CreateContainerRequest{Id: "x", Spec: []byte("{}"), Rootfs: s.root()}, "no process"},
		{"args", &agentv1.CreateContainerRequest{Id: "x", Spec: config(process(), nil), Rootfs: s.root()}, "no args"},
		{"root", &agentv1.CreateContainerRequest{Id: "x", Spec: ok, Rootfs: &agentv1.Rootfs{Path: "/etc"}}, "not below"},
		{"root with dots", &agentv1.CreateContainerRequest{Id: "x", Spec: ok, Rootfs: &agentv1.Rootfs{Path: agentv1.ShareDir + "/../.."}}, "not below"},
		{"no root", &agentv1.CreateContainerRequest{Id: "x", Spec: ok}, "0 read-only layers"},
		{"tag", &agentv1.CreateContainerRequest{Id: "x", Spec: ok, Rootfs: s.root(), Shares: []string{"../x"}}, "share"},
		{"join", &agentv1.CreateContainerRequest{Id: "x", Rootfs: s.root(), Spec: config(process("true"), map[string]any{
			"linux": map[string]any{"namespaces": "none"},
		})}, "linux"},
	} {
		_, err := s.CreateContainer(ctx, c.req)
		wantCode(t, err, codes.InvalidArgument, c.text)
	}
	// Nothing of them is left: the id is free.
	id := s.create(t, ok, &agentv1.Stdio{}, true)
	s.exit(t, id, "")
}

func testUserOutput(t *testing.T, s *subject) {
	p := s.open(t, false)
	what := process("sh", "-c", "echo written > /proc/self/fd/1")
	what["user"] = map[string]any{"uid": 1000, "gid": 1000}
	id := s.create(t, config(what, nil), p.stdio, true)
	if status, out := s.exit(t, id, ""), p.out.all(t); status != 0 || out != "written\n" {
		t.Errorf("status %d, output %q: %s", status, out, p.err.all(t))
	}
}

// testDiesAtOnce runs processes that are gone before the runner has told their pids.
func testDiesAtOnce(t *testing.T, s *subject) {
	id := s.sleeper(t, nil)
	for range 5 {
		p := s.open(t, false)
		exec := s.start(t, id, p, process("false"))
		if got := s.exit(t, id, exec); got != 1 {
			t.Errorf("status is %d, want 1", got)
		}
	}
}

// testSeccomp runs containers with one filter, which is compiled for the first and reused for the others:
// each of their processes has it.
func testSeccomp(t *testing.T, s *subject) {
	linux := map[string]any{
		"namespaces": []any{map[string]any{"type": "pid"}, map[string]any{"type": "mount"}, map[string]any{"type": "uts"}},
		"seccomp": map[string]any{
			"defaultAction": "SCMP_ACT_ALLOW",
			"syscalls":      []any{map[string]any{"names": []string{"sethostname"}, "action": "SCMP_ACT_ERRNO", "errnoRet": 7}}, // E2BIG
		},
	}
	what := func() map[string]any {
		return process("sh", "-c", "grep ^Seccomp: /proc/self/status; hostname other")
	}
	for n := range 3 {
		p := s.open(t, false)
		id := s.create(t, config(what(), map[string]any{"linux": linux}), p.stdio, true)
		status, out, errs := s.exit(t, id, ""), p.out.all(t), p.err.all(t)
		if status == 0 || out != "Seccomp:\t2\n" || !strings.Contains(errs, "Argument list too long") {
			t.Errorf("container %d: status %d, output %q, %q", n, status, out, errs)
		}
		id = s.sleeper(t, map[string]any{"linux": linux})
		p = s.open(t, false)
		exec := s.start(t, id, p, what())
		status, out, errs = s.exit(t, id, exec), p.out.all(t), p.err.all(t)
		if status == 0 || out != "Seccomp:\t2\n" || !strings.Contains(errs, "Argument list too long") {
			t.Errorf("exec %d: status %d, output %q, %q", n, status, out, errs)
		}
	}
}
