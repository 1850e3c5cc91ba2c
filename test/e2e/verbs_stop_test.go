package e2e

import (
	"strings"
	"syscall"
	"testing"
	"time"
)

// obedient ends with 7 when it is told to.
const obedient = `trap 'exit 7' TERM; trap 'exit 8' INT; echo ready; while :; do sleep 0.1; done`

// logged waits until the output of a detached container has text.
func logged(t *testing.T, id, text string) {
	t.Helper()
	until(t, id+" prints "+text, patience, func() bool {
		r := husk(t, "logs", id).run()
		return strings.Contains(r.stdout+r.stderr, text)
	})
}

func TestStop(t *testing.T) {
	begin(t)
	a := detach(t, "stop-a", demo, "sh", "-c", obedient)
	b := detach(t, "stop-b", "--stop-signal", "INT", demo, "sh", "-c", obedient)
	deaf := detach(t, "stop-deaf", "--stop-timeout", "1", demo, "sh", "-c", `trap "" TERM; echo ready; while :; do sleep 0.1; done`)
	for _, id := range []string{a, b, deaf} {
		logged(t, id, "ready")
	}
	expect(t, "ids", husk(t, "stop", "-t", "-1", a, b).ok(), a+"\n"+b+"\n")
	expect(t, "ids of one that ignores it", husk(t, "stop", deaf).ok(), deaf+"\n")
	expect(t, "exit codes", husk(t, "wait", a, b, deaf).ok(), "7\n8\n137\n")
	expect(t, "status", status(t, a), "stopped")
	expect(t, "stopped again", husk(t, "stop", a).ok(), a+"\n")
	r := husk(t, "stop", "no-such-container", b).run()
	if r.code != 1 || r.stdout != b+"\n" || !strings.Contains(r.stderr, "no-such-container") {
		t.Errorf("stop of one that does not exist and one that does: %+v", r)
	}
	expect(t, "ignored", husk(t, "stop", "--ignore", "no-such-container").ok(), "no-such-container\n")
	husk(t, "stop", "--signal", "NOSUCH", a).fails(1, "--signal", "NOSUCH")
	husk(t, "stop").fails(1, "--all")
	expect(t, "removed", husk(t, "rm", "-v", a, b).ok(), a+"\n"+b+"\n")
	husk(t, "rm", a).fails(1, "does not exist")
	expect(t, "removed by force", husk(t, "rm", "--force", a).ok(), a+"\n")
}

// TestStopPausedAndCreated stops what does not run, and a bundle's container.
func TestStopPausedAndCreated(t *testing.T) {
	begin(t)
	id := detach(t, "stop-paused", demo, "sh", "-c", obedient)
	logged(t, id, "ready")
	husk(t, "pause", id).ok()
	husk(t, "rm", id).fails(1, "paused", "husk stop")
	husk(t, "stop", "--time", "-1", id).ok()
	expect(t, "exit code", husk(t, "wait", id).ok(), "7\n")

	dir := newBundle(t, "exec sleep 1000").write()
	r := newRuntime(t, "husk")
	remove(t, "stop-created")
	if !r.create("stop-created", dir) {
		t.Fatal("create failed")
	}
	husk(t, "stop", "stop-created").ok()
	expect(t, "status", status(t, "stop-created"), "stopped")
}

// TestStopAll leaves alone what husk run has not made.
func TestStopAll(t *testing.T) {
	begin(t)
	own := detach(t, "stopall-own", demo, "sh", "-c", obedient)
	logged(t, own, "ready")
	engine := newBundle(t, "exec sleep 1000").up().id
	expect(t, "ids", husk(t, "stop", "--all").ok(), own+"\n")
	expect(t, "the engine's container", status(t, engine), "running")
	expect(t, "removed", husk(t, "rm", "--all").ok(), own+"\n")
	expect(t, "the engine's container", status(t, engine), "running")
}

func TestWait(t *testing.T) {
	begin(t)
	id := detach(t, "wait-a", demo, "sh", "-c", obedient)
	expect(t, "running", husk(t, "wait", "--condition", "running", id).ok(), "-1\n")
	logged(t, id, "ready")
	waits := husk(t, "wait", id).start()
	removed := husk(t, "wait", "--condition", "removed", id).start()
	time.Sleep(200 * time.Millisecond)
	husk(t, "kill", "--signal", "TERM", id).ok()
	expect(t, "exit code", waits.wait().stdout, "7\n")
	husk(t, "wait", "--condition", "paused", id).fails(1, "has stopped")
	husk(t, "rm", id).ok()
	if r := removed.wait(); r.code != 0 {
		t.Errorf("wait for the removal: %+v", r)
	}
	husk(t, "wait", id).fails(1, "does not exist")
	expect(t, "ignored", husk(t, "wait", "--ignore", id).ok(), "-1\n")
	husk(t, "wait", "--condition", "happy", id).fails(1, "--condition", "must be one of")
}

// TestWaitOwnerKilled: whoever waits is told of the end of a container whose owner was killed.
func TestWaitOwnerKilled(t *testing.T) {
	begin(t)
	id := detach(t, "wait-killed", demo, "sleep", "1000")
	waits := husk(t, "wait", id).start()
	time.Sleep(200 * time.Millisecond)
	kill9(t, record(t, id).Owner.PID)
	if r := waits.wait(); r.code != 0 || r.stdout != "137\n" {
		t.Errorf("%+v, want 137", r)
	}
	expect(t, "stopped", husk(t, "stop", id).ok(), id+"\n")
}

// TestStopMonitorHangs: a VM that does nothing any more is not waited for without end by rm --force.
func TestStopMonitorHangs(t *testing.T) {
	begin(t)
	id := detach(t, "stop-hangs", demo, "sleep", "1000")
	pid := helper(t, id, "vmm")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	husk(t, "rm", "--force", id).ok()
	expect(t, "status", status(t, id), "none")
}
