package e2e

import (
	"strings"
	"testing"
)

func TestRunPrintsAndExits(t *testing.T) {
	begin(t)
	out := husk(t, "run", "--rm", demo, "sh", "-c", "echo out; echo err >&2; uname -r").run()
	if out.code != 0 || !strings.HasPrefix(out.stdout, "out\n") || out.stderr != "err\n" {
		t.Errorf("code %d, stdout %q, stderr %q", out.code, out.stdout, out.stderr)
	}
}

func TestExitCodes(t *testing.T) {
	begin(t)
	for _, c := range []struct {
		script string
		code   int
	}{{"exit 0", 0}, {"exit 7", 7}, {"exit 255", 255}, {"sh -c 'kill -9 $$'; exit $?", 137}} {
		if r := husk(t, "run", "--rm", demo, "sh", "-c", c.script).run(); r.code != c.code {
			t.Errorf("%q: exit code %d, want %d; stderr %q", c.script, r.code, c.code, r.stderr)
		}
	}
}

func TestCommandNotFoundAndNotExecutable(t *testing.T) {
	begin(t)
	husk(t, "run", "--rm", demo, "/no/such/command").fails(127, "/no/such/command")
	husk(t, "run", "--rm", demo, "/etc/passwd").fails(126, "/etc/passwd")
}

func TestRunReadsStdin(t *testing.T) {
	begin(t)
	c := husk(t, "run", "--rm", "-i", demo, "sh", "-c", "cat; echo end")
	c.in = "one\ntwo\n"
	if got := c.ok(); got != "one\ntwo\nend\n" {
		t.Errorf("printed %q, want what was fed and its end", got)
	}
}

func TestRunWithoutInteractiveHasEmptyStdin(t *testing.T) {
	begin(t)
	c := husk(t, "run", "--rm", demo, "wc", "-c")
	c.in = "not for the container"
	if got := strings.TrimSpace(c.ok()); got != "0" {
		t.Errorf("the container read %s bytes, want 0", got)
	}
}
