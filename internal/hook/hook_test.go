package hook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func sh(script string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

func TestHookGetsStateEnvironmentAndArguments(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HUSK_HOOK_TEST", "must not leak")
	state := specs.State{Version: "1.2.0", ID: "c", Status: specs.StateCreating, Pid: 7, Bundle: dir, Annotations: map[string]string{"k": "v"}}
	h := specs.Hook{
		Path: "/bin/sh", Args: []string{"zero", "-c", `/bin/cat >state; /usr/bin/env >env; echo "$0 $1" >args`, "a", "b c"},
		Env: []string{"ONLY=this"},
	}
	if err := Run(context.Background(), "prestart", []specs.Hook{h}, state); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	var got specs.State
	if err := json.Unmarshal(data, &got); err != nil || got.ID != "c" || got.Pid != 7 || got.Status != "creating" || got.Annotations["k"] != "v" {
		t.Errorf("state = %s, %v", data, err)
	}
	env, _ := os.ReadFile(filepath.Join(dir, "env"))
	if !strings.Contains(string(env), "ONLY=this\n") || strings.Contains(string(env), "HUSK_HOOK_TEST") {
		t.Errorf("environment = %q", env)
	}
	if args, _ := os.ReadFile(filepath.Join(dir, "args")); string(args) != "a b c\n" {
		t.Errorf("arguments = %q", args)
	}
}

func TestErrors(t *testing.T) {
	one := 1
	slow := sh("echo before >&2; sleep 60")
	slow.Timeout = &one
	cases := []struct {
		name string
		hook specs.Hook
		want string
	}{
		{"exit status", sh("echo first >&2; echo last line >&2; exit 3"), "hook createRuntime[0] /bin/sh: exit status 3: last line"},
		{"only stdout", sh("echo out; exit 1"), "hook createRuntime[0] /bin/sh: exit status 1: out"},
		{"silent", sh("exit 2"), "hook createRuntime[0] /bin/sh: exit status 2"},
		{"signal", sh("kill -9 $$"), "hook createRuntime[0] /bin/sh: signal: killed"},
		{"missing", specs.Hook{Path: "/none"}, "hook createRuntime[0] /none: fork/exec /none: no such file or directory"},
		{"timeout", slow, "hook createRuntime[0] /bin/sh: timed out after 1s: before"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := Run(context.Background(), "createRuntime", []specs.Hook{c.hook}, specs.State{})
			if err == nil || err.Error() != c.want {
				t.Errorf("Run: %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestLongOutputIsBounded(t *testing.T) {
	err := Run(context.Background(), "poststop", []specs.Hook{sh("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 1")}, specs.State{})
	if err == nil || len(err.Error()) > lineLimit+100 {
		t.Errorf("error of %d bytes", len(fmt.Sprint(err)))
	}
}

func TestStateNeedNotBeRead(t *testing.T) {
	state := specs.State{Annotations: map[string]string{"big": strings.Repeat("x", 1<<20)}}
	if err := Run(context.Background(), "prestart", []specs.Hook{sh("exit 0")}, state); err != nil {
		t.Error(err)
	}
}

func TestTimeoutKillsTheGroup(t *testing.T) {
	dir := t.TempDir()
	one := 1
	h := sh("sleep 60 & echo $! >pid; wait")
	h.Timeout = &one
	start := time.Now()
	if err := Run(context.Background(), "prestart", []specs.Hook{h}, specs.State{Bundle: dir}); err == nil {
		t.Fatal("no error")
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	data, err := os.ReadFile(filepath.Join(dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); running(pid); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("the hook's child %d lives on", pid)
		}
	}
}

// running tells whether pid is there and no zombie that its new parent has yet to reap.
func running(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(data), ") ")
	return err == nil && !strings.HasPrefix(rest, "Z")
}

func TestCancelledCallerStopsHooks(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := Run(ctx, "prestart", []specs.Hook{sh("sleep 60")}, specs.State{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run: %v", err)
	}
}

// TestDaemonLeftBehind has a hook leave a process that holds its outputs open.
func TestDaemonLeftBehind(t *testing.T) {
	dir := t.TempDir()
	if err := Run(context.Background(), "prestart", []specs.Hook{sh("sleep 30 & echo $! >pid")}, specs.State{Bundle: dir}); err != nil {
		t.Error(err)
	}
	data, _ := os.ReadFile(filepath.Join(dir, "pid"))
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	if !running(pid) {
		t.Error("the daemon was killed with its hook")
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

func TestOrder(t *testing.T) {
	dir := t.TempDir()
	state := specs.State{Bundle: dir}
	hooks := []specs.Hook{sh("echo 1 >>log"), sh("echo 2 >>log; exit 1"), sh("echo 3 >>log")}
	log := filepath.Join(dir, "log")
	if err := Run(context.Background(), "createRuntime", hooks, state); err == nil || !strings.Contains(err.Error(), "createRuntime[1]") {
		t.Errorf("Run: %v", err)
	}
	if got, _ := os.ReadFile(log); string(got) != "1\n2\n" {
		t.Errorf("Run ran %q", got)
	}
	os.Remove(log)
	if err := RunAll(context.Background(), "poststop", hooks, state); err == nil || !strings.Contains(err.Error(), "poststop[1]") {
		t.Errorf("RunAll: %v", err)
	}
	if got, _ := os.ReadFile(log); string(got) != "1\n2\n3\n" {
		t.Errorf("RunAll ran %q", got)
	}
}

func TestTail(t *testing.T) {
	var tl tail
	for i := range 3000 {
		fmt.Fprintf(&tl, "line %d\n", i)
	}
	if len(tl.kept) > outputLimit || tl.lastLine() != "line 2999" {
		t.Errorf("kept %d bytes, last line %q", len(tl.kept), tl.lastLine())
	}
}
