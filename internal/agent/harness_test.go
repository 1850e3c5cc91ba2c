package agent_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/guest"
)

// wait bounds every single wait of a test. An emulated guest is slow.
const wait = 60 * time.Second

// subject is a running agent under test.
type subject struct {
	*guest.Client
	root    func() *agentv1.Rootfs // of a container with busybox in it
	machine bool                   // a guest with all of cgroup v2, not a process of this machine

	mu     sync.Mutex
	next   int                         // guarded by mu
	events map[string][]*agentv1.Event // by container and exec; guarded by mu
	news   chan struct{}               // closed and replaced at each event; guarded by mu
}

// greet connects to the agent behind a dialer.
func greet(t *testing.T, dialer guest.Dialer) *subject {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	client, err := guest.Connect(ctx, dialer, guest.Options{Hostname: "tested"})
	if err != nil {
		t.Fatal(err)
	}
	s := &subject{Client: client, events: map[string][]*agentv1.Event{}, news: make(chan struct{})}
	watch, stop := context.WithCancel(context.Background())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		_ = client.Watch(watch, s.note) // ends with the test
	}()
	t.Cleanup(func() { stop(); client.Close(); <-watched })
	return s
}

func (s *subject) note(e *agentv1.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := e.Container + "/" + e.Exec
	s.events[key] = append(s.events[key], e)
	close(s.news)
	s.news = make(chan struct{})
}

// id returns a new name.
func (s *subject) id(kind string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	return fmt.Sprintf("%s%d", kind, s.next)
}

// await returns the first event of a process for which match says so.
func (s *subject) await(t *testing.T, container, exec string, match func(*agentv1.Event) bool) *agentv1.Event {
	t.Helper()
	timer := time.After(wait)
	for {
		s.mu.Lock()
		for _, e := range s.events[container+"/"+exec] {
			if match(e) {
				s.mu.Unlock()
				return e
			}
		}
		news := s.news
		s.mu.Unlock()
		select {
		case <-news:
		case <-timer:
			t.Fatalf("no such event of container %q exec %q", container, exec)
		}
	}
}

// exit waits for a process to exit and returns its status.
func (s *subject) exit(t *testing.T, container, exec string) uint32 {
	t.Helper()
	return s.await(t, container, exec, func(e *agentv1.Event) bool { return e.GetExit() != nil }).GetExit().Status
}

// streams are a process' stdio, seen from the host.
type streams struct {
	stdio *agentv1.Stdio
	in    net.Conn
	out   *capture
	err   *capture
}

// capture collects a stream until its end.
type capture struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
	done chan struct{}
}

func collect(conn net.Conn) *capture {
	c := &capture{done: make(chan struct{})}
	go func() {
		defer close(c.done)
		_, _ = io.Copy(c, conn)
		conn.Close()
	}()
	return c
}

func (c *capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// all waits for the stream's end.
func (c *capture) all(t *testing.T) string {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(wait):
		t.Fatalf("stream did not end; so far: %.1000q", c.String())
	}
	return c.String()
}

// until waits for a text in the stream.
func (c *capture) until(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(wait); !strings.Contains(c.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in the stream; so far: %.1000q", text, c.String())
		}
	}
}

// open opens all streams of a process.
func (s *subject) open(t *testing.T, terminal bool) *streams {
	t.Helper()
	p := &streams{stdio: &agentv1.Stdio{Terminal: terminal, Rows: 24, Columns: 80}}
	stream := func() (uint64, net.Conn) {
		token, conn, err := s.Stream(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return token, conn
	}
	var conn net.Conn
	p.stdio.Stdin, p.in = stream()
	p.stdio.Stdout, conn = stream()
	p.out = collect(conn)
	if !terminal {
		p.stdio.Stderr, conn = stream()
		p.err = collect(conn)
	}
	return p
}

// process is an OCI process.
func process(args ...string) map[string]any {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_DAC_OVERRIDE"}
	return map[string]any{
		"args": args, "cwd": "/", "env": []string{"PATH=/bin:/usr/bin", "TERM=xterm"},
		"user":            map[string]any{"uid": 0, "gid": 0},
		"capabilities":    map[string]any{"bounding": caps, "effective": caps, "permitted": caps},
		"noNewPrivileges": true,
	}
}

// config is an OCI configuration as an engine makes it, with paths of the host that mean nothing in a guest.
func config(p map[string]any, changes map[string]any) []byte {
	c := map[string]any{
		"ociVersion": "1.0.2",
		"root":       map[string]any{"path": "/var/lib/engine/rootfs"},
		"process":    p,
		"hostname":   "box",
		"hooks":      map[string]any{"prestart": []any{map[string]any{"path": "/usr/bin/of-the-host"}}},
		"mounts": []any{
			map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
			map[string]any{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"mode=755"}},
			map[string]any{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666"}},
		},
		"linux": map[string]any{
			"cgroupsPath": "/of/the/host",
			"namespaces": []any{
				map[string]any{"type": "pid"}, map[string]any{"type": "ipc"}, map[string]any{"type": "uts"},
				map[string]any{"type": "mount"}, map[string]any{"type": "network", "path": "/var/run/netns/of-the-host"},
			},
			"resources": map[string]any{"devices": []any{
				map[string]any{"allow": false, "access": "rwm"},
				map[string]any{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
			}},
			"maskedPaths": []string{"/proc/kcore"}, "readonlyPaths": []string{"/proc/sys"},
		},
	}
	maps.Copy(c, changes)
	return marshal(c)
}

func marshal(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // the tests' own data
	}
	return text
}

// create makes a container, to be deleted at the end of the test.
func (s *subject) create(t *testing.T, c []byte, stdio *agentv1.Stdio, start bool) string {
	t.Helper()
	id := s.id("c")
	_, err := s.CreateContainer(t.Context(), &agentv1.CreateContainerRequest{
		Id: id, Spec: c, Rootfs: s.root(), Stdio: stdio, Start: start,
	})
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	t.Cleanup(func() { s.destroy(t, id) })
	return id
}

// destroy ends and deletes a container that a test may have deleted itself.
func (s *subject) destroy(t *testing.T, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	if _, err := s.Signal(ctx, &agentv1.SignalRequest{Container: id, Signal: 9, All: true}); err != nil {
		return // deleted
	}
	s.exit(t, id, "")
	if _, err := s.DeleteContainer(ctx, &agentv1.ContainerRequest{Id: id}); err != nil {
		t.Errorf("delete: %v", err)
	}
}

// run runs a container to its end.
func (s *subject) run(t *testing.T, args ...string) (status uint32, out, err string) {
	t.Helper()
	p := s.open(t, false)
	id := s.create(t, config(process(args...), nil), p.stdio, true)
	p.in.Close()
	return s.exit(t, id, ""), p.out.all(t), p.err.all(t)
}

// sleeper starts a container that does nothing.
func (s *subject) sleeper(t *testing.T, changes map[string]any) string {
	t.Helper()
	return s.create(t, config(process("sleep", "1000"), changes), &agentv1.Stdio{}, true)
}

// start executes a process in a container.
func (s *subject) start(t *testing.T, container string, p *streams, what map[string]any) string {
	t.Helper()
	exec := s.id("e")
	_, err := s.Exec(t.Context(), &agentv1.ExecRequest{
		Container: container, Exec: exec, Process: marshal(what), Stdio: p.stdio,
	})
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	return exec
}

// busyboxRoot makes a root with busybox in it.
func busyboxRoot(t *testing.T) string {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox (Debian: busybox-static): ", err)
	}
	dir := t.TempDir()
	for _, sub := range []string{"bin", "proc", "sys", "dev", "tmp", "etc"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("bin/busybox", string(program), 0o755)
	write("etc/passwd", "root:x:0:0::/:/bin/sh\n", 0o644)
	write("plain", "text", 0o644)
	for _, name := range []string{"sh", "sleep", "cat", "echo", "id", "true", "false", "head", "md5sum", "dd", "stty", "ps", "hostname", "kill", "tail", "ls", "mount", "nproc", "grep"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
