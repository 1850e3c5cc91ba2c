package e2e

import (
	"strings"
	"testing"
)

// step is one verb on the container of a table, which must leave it in the state then.
type step struct {
	verb string // with ID for the container's id
	code int
	says string // part of the error
	then string
}

// TestStateMachine calls every verb in every state: it is allowed and does what it says, or it is refused
// with one clear line and changes nothing. What a table moves from state to state is one container.
func TestStateMachine(t *testing.T) {
	begin(t)
	b := newBundle(t, "exec sleep 1000")
	id := name(t)
	dir := b.write()
	step{"delete --force ID", 0, "", "none"}.do(t, id)
	for _, verb := range []string{"start", "state", "kill", "delete", "pause", "resume", "update --pids-limit 9", "ps", "events --stats", "shell", "logs"} {
		step{verb + " ID", 1, "does not exist", "none"}.do(t, id)
	}
	step{"exec ID true", 1, "does not exist", "none"}.do(t, id)

	c := b.create()
	for _, s := range append(anywhere(dir, "created"), []step{
		{"pause ID", 1, "created", "created"},
		{"resume ID", 1, "created", "created"},
		{"exec ID true", 0, "", "created"},
		{"start ID", 0, "", "running"},
	}...) {
		s.do(t, c.id)
	}
	for _, s := range append(anywhere(dir, "running"), []step{
		{"start ID", 1, "running", "running"},
		{"resume ID", 1, "running", "running"},
		{"delete ID", 1, "running", "running"},
		{"exec ID true", 0, "", "running"},
		{"pause ID", 0, "", "paused"},
	}...) {
		s.do(t, c.id)
	}
	for _, s := range append(anywhere(dir, "paused"), []step{
		{"start ID", 1, "paused", "paused"},
		{"pause ID", 1, "paused", "paused"},
		{"delete ID", 1, "paused", "paused"},
		{"exec ID true", 1, "paused", "paused"},
		{"resume ID", 0, "", "running"},
		{"pause ID", 0, "", "paused"},
		{"kill ID KILL", 0, "", ""},
	}...) {
		s.do(t, c.id)
	}
	expect(t, "exit code of a container that was killed while paused", c.exited(), 137)
	c.stopped()
	for _, s := range []step{
		{"start ID", 1, "stopped", "stopped"},
		{"exec ID true", 1, "stopped", "stopped"},
		{"pause ID", 1, "not running", "stopped"},
		{"resume ID", 1, "not running", "stopped"},
		{"update --pids-limit 9 ID", 1, "not running", "stopped"},
		{"kill ID", 1, "not running", "stopped"},
		{"kill --all ID KILL", 1, "not running", "stopped"},
		{"ps ID", 1, "not running", "stopped"},
		{"events --stats ID", 1, "not running", "stopped"},
		{"shell ID", 1, "not running", "stopped"},
		{"create --bundle " + dir + " ID", 1, "in use", "stopped"},
		{"state ID", 0, "", "stopped"},
		{"logs --owner ID", 0, "", "stopped"},
		{"delete ID", 0, "", "none"},
	} {
		s.do(t, c.id)
	}
}

// anywhere are steps that are the same as long as the container's virtual machine is there.
func anywhere(dir, state string) []step {
	return []step{
		{"state ID", 0, "", state},
		{"ps ID", 0, "", state},
		{"events --stats ID", 0, "", state},
		{"update --pids-limit 50 ID", 0, "", state},
		{"kill ID 0", 0, "", state},
		{"kill ID NOSUCHSIGNAL", 1, "unknown signal", state},
		{"shell ID true", 0, "", state},
		{"logs --console ID", 0, "", state},
		{"create --bundle " + dir + " ID", 1, "in use", state},
		{"run --bundle " + dir + " ID", 1, "in use", state},
	}
}

func (s step) do(t *testing.T, id string) {
	t.Helper()
	args := strings.Fields(s.verb)
	for i, a := range args {
		if a == "ID" {
			args[i] = id
		}
	}
	c := husk(t, args...)
	if s.code == 0 {
		c.ok()
	} else {
		c.fails(s.code, s.says)
	}
	if s.then != "" {
		if now := status(t, id); now != s.then {
			t.Errorf("after husk %s the container is %s, want %s", s.verb, now, s.then)
		}
	}
}

// TestDeleteCreated: a container that was never started is deleted without force, as runc does.
func TestDeleteCreated(t *testing.T) {
	begin(t)
	c := newBundle(t, "echo never").create()
	husk(t, "delete", c.id).ok()
	expect(t, "status", status(t, c.id), "none")
	if code := c.exited(); code == 0 {
		t.Error("the host process of a container that never ran exited with 0")
	}
	expect(t, "output", content(t, c.out), "")
}

// TestKillCreated: a signal ends a container whose program was never run.
func TestKillCreated(t *testing.T) {
	begin(t)
	c := newBundle(t, "echo never").create()
	husk(t, "kill", c.id, "KILL").ok()
	expect(t, "exit code", c.exited(), 137)
	c.stopped()
	husk(t, "start", c.id).fails(1, "stopped")
	husk(t, "delete", c.id).ok()
}
