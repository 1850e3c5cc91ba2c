package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/state"
)

// countsStarts adds a line to a file of its root for each start, and tells how many there are.
const countsStarts = `trap 'exit 7' TERM; echo x >> /starts; echo "start $(wc -l < /starts)"; while :; do sleep 0.1; done`

// TestRestart brings one container up again and again: what it wrote, its volume and its settings are as they were.
func TestRestart(t *testing.T) {
	begin(t)
	volume := t.TempDir()
	id := detach(t, "restart-a", "--network", "none", "-e", "WORD=kept", "-v", volume+":/vol", demo, "sh", "-c",
		`echo $WORD >> /vol/words; `+countsStarts)
	logged(t, id, "start 1")
	created := record(t, id).Created
	husk(t, "start", id).fails(1, "cannot start", "running")
	for _, n := range []string{"2", "3", "4"} {
		expect(t, "id", husk(t, "restart", "--timeout", "-1", id).ok(), id+"\n")
		logged(t, id, "start "+n)
	}
	husk(t, "stop", "-t", "-1", id).ok()
	expect(t, "exit code", husk(t, "wait", id).ok(), "7\n")
	expect(t, "id", husk(t, "start", id).ok(), id+"\n")
	logged(t, id, "start 5")
	expect(t, "status", status(t, id), "running")
	if now := record(t, id); !now.Created.Equal(created) || now.Name != id {
		t.Errorf("the record is now of %s, created %v; want %v", now.Name, now.Created, created)
	}
	expect(t, "log", husk(t, "logs", id).ok(), "start 1\nstart 2\nstart 3\nstart 4\nstart 5\n")
	words, err := os.ReadFile(filepath.Join(volume, "words"))
	if err != nil || string(words) != strings.Repeat("kept\n", 5) {
		t.Errorf("the volume has %q, %v", words, err)
	}
}

// TestRestartKilled: what was on the disk is there after the virtual machine, and after its owner, was killed.
func TestRestartKilled(t *testing.T) {
	begin(t)
	id := detach(t, "restart-killed", "--network", "none", demo, "sh", "-c", `echo x >> /starts; sync; exec sh -c "$0"`, strings.Replace(countsStarts, "echo x >> /starts; ", "", 1))
	logged(t, id, "start 1")
	kill9(t, helper(t, id, "vmm"))
	until(t, "the container has stopped", patience, func() bool { return status(t, id) == "stopped" })
	husk(t, "start", id).ok()
	logged(t, id, "start 2")
	kill9(t, record(t, id).Owner.PID)
	until(t, "the container has stopped", patience, func() bool { return status(t, id) == "stopped" })
	husk(t, "restart", id).ok()
	logged(t, id, "start 3")
}

// TestRestartAtOnce: of two that start a container one does.
func TestRestartAtOnce(t *testing.T) {
	begin(t)
	id := detach(t, "restart-once", "--network", "none", demo, "sh", "-c", countsStarts)
	logged(t, id, "start 1")
	husk(t, "stop", "-t", "-1", id).ok()
	a, b := husk(t, "start", id).start(), husk(t, "start", id).start()
	won, lost := a.wait(), b.wait()
	if won.code != 0 {
		won, lost = lost, won
	}
	if won.code != 0 || lost.code != 1 || !strings.Contains(lost.stderr, "cannot start") || strings.Count(lost.stderr, "\n") != 1 {
		t.Errorf("two at once: %+v and %+v", won, lost)
	}
	logged(t, id, "start 2")
	expect(t, "status", status(t, id), "running")
}

// TestRestartCutShort: a start that is killed leaves the container stopped or running, and it can be started or removed.
func TestRestartCutShort(t *testing.T) {
	begin(t)
	id := detach(t, "restart-short", "--network", "none", demo, "sh", "-c", countsStarts)
	logged(t, id, "start 1")
	for _, after := range []time.Duration{20 * time.Millisecond, 200 * time.Millisecond} {
		husk(t, "stop", "-t", "-1", id).ok()
		cmd := husk(t, "start", id).cmd()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		until(t, "it is stopped or runs", patience, func() bool { s := status(t, id); return s == "stopped" || s == "running" })
		if status(t, id) == "stopped" {
			husk(t, "start", id).ok()
		}
		expect(t, "status", status(t, id), "running")
	}
	husk(t, "rm", "--force", id).ok()
	expect(t, "status", status(t, id), "none")
}

// TestRestartRefused names why a container cannot be started again, before it ends anything.
func TestRestartRefused(t *testing.T) {
	begin(t)
	memory := detach(t, "restart-memory", "--network", "none", "--storage-size", "0", demo, "sh", "-c", countsStarts)
	husk(t, "restart", memory).fails(1, "--storage-size 0")
	expect(t, "status", status(t, memory), "running")
	bundle := newBundle(t, "exit 0").up().id
	until(t, "the bundle's container has stopped", patience, func() bool { return status(t, bundle) == string(state.Stopped) })
	husk(t, "start", bundle).fails(1, "cannot start", "stopped")
	husk(t, "restart", bundle).fails(1, "not one of husk run")
}

// TestStartAttached hands on output and exit code, and a start that fails leaves what there was.
func TestStartAttached(t *testing.T) {
	begin(t)
	volume := filepath.Join(t.TempDir(), "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	remove(t, "start-attached")
	r := husk(t, "run", "--name", "start-attached", "--network", "none", "-v", volume+":/vol", demo, "sh", "-c",
		"echo x >> /starts; wc -l < /starts; exit 5").run()
	expect(t, "output", r.stdout, "1\n")
	if err := os.Remove(volume); err != nil {
		t.Fatal(err)
	}
	husk(t, "start", "start-attached").fails(1, volume)
	expect(t, "status", status(t, "start-attached"), "stopped")
	expect(t, "exit code", husk(t, "wait", "start-attached").ok(), "5\n")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	r = husk(t, "start", "--attach", "start-attached").run()
	if r.code != 5 || r.stdout != "2\n" {
		t.Errorf("start --attach: %+v", r)
	}
}

// TestRestartImage: a container stays one of the image that it was made of, whatever has that one's name now, and keeps it.
func TestRestartImage(t *testing.T) {
	begin(t)
	t.Cleanup(func() { husk(t, "rmi", "restart-image").ok() })
	husk(t, "import", "--cmd", "sh", env.rootfs, "restart-image").ok()
	id := detach(t, "restart-tagged", "--network", "none", "restart-image", "sh", "-c", countsStarts)
	logged(t, id, "start 1")
	husk(t, "stop", "-t", "-1", id).ok()
	image := strings.TrimSpace(husk(t, "inspect", "--format", "{{.Image}}", id).ok())
	other := t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "other"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	husk(t, "import", other, "restart-image").ok()
	husk(t, "rmi", image).fails(1, id)
	husk(t, "start", id).ok()
	logged(t, id, "start 2")
	husk(t, "rm", "--force", id).ok()
	husk(t, "rmi", image).ok()
}

// TestRestartPorts: the ports of a container lead to it again.
func TestRestartPorts(t *testing.T) {
	begin(t)
	m, _ := uplink(t)
	probe := probe(t)
	remove(t, "restart-ports")
	if r := m.husk(env.config, "run", "-d", "--name", "restart-ports", "-p", "8080:80", "-v", probe+":/probe:ro", demo, "/probe", "serve", "80").wait(); r.code != 0 {
		t.Fatalf("run: %+v", r)
	}
	logged(t, "restart-ports", "serving\n")
	m.run(probe + " tcp 127.0.0.1:8080 300000")
	if r := m.husk(env.config, "restart", "-t", "1", "restart-ports").wait(); r.code != 0 || r.stdout != "restart-ports\n" {
		t.Fatalf("restart: %+v", r)
	}
	logged(t, "restart-ports", "serving\nserving\n")
	m.run(probe + " tcp 127.0.0.1:8080 300000")
}
