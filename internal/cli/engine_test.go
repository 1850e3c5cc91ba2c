package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/shim"
)

// TestEngineOf has processes with the names of engines' monitors, as whoever asks for a container.
func TestEngineOf(t *testing.T) {
	t.Setenv(shim.EventsEnv, "/run/c.sock.ttrpc")
	events := &controlv1.Engine{Events: "/run/c.sock.ttrpc", Namespace: "moby"}
	file := &controlv1.Engine{OomFiles: []string{"/bundle/oom"}}
	for _, c := range []struct {
		name string
		args []string
		want *controlv1.Engine
	}{
		{"conmon", nil, file},
		{"conmonrs", nil, file},
		{"conmon", []string{"-b", "/bundle", "--persist-dir", "/run/p/id", "--full-attach"}, &controlv1.Engine{OomFiles: []string{"/bundle/oom", "/run/p/id/oom"}}},
		{"conmonster", nil, nil},
		{"containerd-shim", []string{"-namespace", "moby"}, events}, // dockerd's containerd
		{"containerd-shim-runc-v2", []string{"-id", "x", "--namespace=moby"}, events},
		{"containerd-shim-runc-v2", []string{"-id", "x"}, nil},
		{"containerd-shim-runc-v2", []string{"-namespace"}, nil},
		{"sh", []string{"-namespace", "moby"}, nil},
	} {
		cmd := named(t, c.name, c.args...)
		if got := engineOf(cmd.Process.Pid, "/bundle"); !proto.Equal(got, c.want) {
			t.Errorf("asked by %s %q: %+v, want %+v", c.name, c.args, got, c.want)
		}
	}
	t.Setenv(shim.EventsEnv, "")
	if got := engineOf(named(t, "containerd-shim", "-namespace", "moby").Process.Pid, "/bundle"); got != nil {
		t.Errorf("without a socket: %+v", got)
	}
	gone := named(t, "conmon")
	_, _ = gone.Process.Kill(), gone.Wait()
	if got := engineOf(gone.Process.Pid, "/bundle"); got != nil {
		t.Errorf("asked by one that has died: %+v", got)
	}
}

// named starts a process with a name, that lives as long as the test.
func named(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	if err := os.Symlink("/bin/sh", program); err != nil {
		t.Fatal(err)
	}
	// The shell ignores what comes after its script, and has said its name once it reads.
	cmd := exec.Command(program, append([]string{"-c", "echo up; read x", "sh"}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestTouch makes the file that engines look for, once and again.
func TestTouch(t *testing.T) {
	file := filepath.Join(t.TempDir(), "oom")
	for range 2 {
		if err := touch(file); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Lstat(file); err != nil || info.Size() != 0 || !info.Mode().IsRegular() {
		t.Errorf("%v: %v", info, err)
	}
	if err := touch(filepath.Join(t.TempDir(), "none", "oom")); err == nil {
		t.Error("a file in a directory that is gone was made")
	}
}
