package shim

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/child"
	"husk.dev/husk/internal/testenv"
)

// TestPublishOOM tells a real containerd of a container without memory, and looks for what it tells its clients.
func TestPublishOOM(t *testing.T) {
	testenv.NeedRoot(t)
	for _, program := range []string{"containerd", "ctr"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v (make setup installs it)", err)
		}
	}
	dir := t.TempDir()
	socket, config := filepath.Join(dir, "c.sock"), filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", dir+"/root", dir+"/state", socket)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func(args ...string) *bufio.Scanner {
		cmd := exec.Command(args[0], args[1:]...)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(cmd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
		return bufio.NewScanner(out)
	}
	start("containerd", "--config", config, "--log-level", "error")
	ready := func() bool { return exec.Command("ctr", "--address", socket, "version").Run() == nil }
	for end := time.Now().Add(time.Minute); !ready(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("containerd does not answer")
		}
	}
	seen := start("ctr", "--address", socket, "--namespace", "moby", "events")
	// A client hears of what comes after it has asked: the event goes out until it does.
	heard := make(chan string, 1)
	go func() {
		seen.Scan()
		heard <- seen.Text()
	}()
	for end := time.After(time.Minute); ; {
		if err := PublishOOM(socket+".ttrpc", "moby", "the-id"); err != nil {
			t.Fatal(err)
		}
		select {
		case line := <-heard:
			if !strings.Contains(line, "moby /tasks/oom") || !strings.Contains(line, "the-id") {
				t.Errorf("containerd tells %q", line)
			}
			if err := PublishOOM(filepath.Join(dir, "none"), "moby", "the-id"); err == nil {
				t.Error("no containerd has taken the event")
			}
			return
		case <-end:
			t.Fatal("containerd tells nothing")
		case <-time.After(100 * time.Millisecond):
		}
	}
}
