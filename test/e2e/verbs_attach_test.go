package e2e

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// answering is a script that answers to lines.
const answering = `echo ready; while read -r line; do echo "got:$line"; case $line in err) echo oops >&2 ;; exit) exit 7 ;; esac; done; echo end-of-input`

// viewer is a husk attach with an open stdin.
func viewer(t *testing.T, args ...string) (*running, io.WriteCloser) {
	t.Helper()
	cmd := husk(t, append([]string{"attach"}, args...)...).cmd()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	cmd.Stdin = r
	started := begun(t, cmd)
	r.Close()
	return started, w
}

func say(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// TestAttach has three viewers of one container: they see the same, two may type, and have its exit code.
func TestAttach(t *testing.T) {
	begin(t)
	id := detach(t, "attach-a", "-i", demo, "sh", "-c", answering)
	logged(t, id, "ready")
	first, in := viewer(t, id)
	say(t, in, "one\n")
	until(t, "the first viewer has its answer", seenWithin, func() bool { return first.stdout.String() == "got:one\n" })
	second, in2 := viewer(t, id)
	third, in3 := viewer(t, "--no-stdin", id)
	say(t, in3, "nobody hears this\n")
	say(t, in2, "two\n")
	until(t, "the second viewer has its answer", seenWithin, func() bool { return strings.Contains(second.stdout.String(), "got:two\n") })
	in.Close() // the container's stdin stays open
	// The third viewer may have come after the second line, and is there when it sees one.
	until(t, "the third viewer sees a line", seenWithin, func() bool { say(t, in2, "\n"); return third.stdout.String() != "" })
	say(t, in2, "err\nexit\n")
	for i, r := range []*running{first, second, third} {
		got := r.wait()
		if got.code != 7 || !strings.HasSuffix(got.stdout, "got:err\ngot:exit\n") || got.stderr != "oops\n" {
			t.Errorf("viewer %d: %+v", i+1, got)
		}
		if strings.Contains(got.stdout, "nobody") || strings.Contains(got.stdout, "ready") {
			t.Errorf("viewer %d saw %q", i+1, got.stdout)
		}
	}
	stdout, stderr := split(t, "logs", id)
	if !strings.HasPrefix(stdout, "ready\ngot:one\n") || !strings.HasSuffix(stdout, "got:exit\n") || stderr != "oops\n" {
		t.Errorf("logs: %q and %q", stdout, stderr)
	}
	husk(t, "attach", id).fails(1, id, "stopped", "husk logs")
}

func TestAttachSignals(t *testing.T) {
	begin(t)
	id := detach(t, "attach-sig", demo, "sh", "-c", "trap 'echo got-int' INT; trap 'exit 9' TERM; echo ready; while :; do echo tick; sleep 0.1; done")
	logged(t, id, "ready")
	plain, _ := viewer(t, "--sig-proxy=false", id)
	until(t, "the viewer is attached", seenWithin, func() bool { return strings.Contains(plain.stdout.String(), "tick") })
	if err := plain.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	expect(t, "exit code of who hands on no signals", plain.wait().code, 130)
	killed, _ := viewer(t, id)
	until(t, "the viewer is attached", seenWithin, func() bool { return strings.Contains(killed.stdout.String(), "tick") })
	kill9(t, killed.cmd.Process.Pid)
	killed.wait()
	expect(t, "status after them", status(t, id), "running")

	proxy, _ := viewer(t, id)
	until(t, "the viewer is attached", seenWithin, func() bool { return strings.Contains(proxy.stdout.String(), "tick") })
	for i := range 4 { // a container is not killed by impatience, as with run
		if err := proxy.cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		until(t, "the container has the signal", seenWithin, func() bool { return strings.Count(proxy.stdout.String(), "got-int") > i })
	}
	husk(t, "pause", id).ok()
	husk(t, "attach", id).fails(1, "paused", "husk resume")
	husk(t, "resume", id).ok()
	if err := proxy.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	expect(t, "exit code", proxy.wait().code, 9)
}

// TestAttachTerminal comes and goes: size, keys that detach, the terminal's own mode afterwards.
func TestAttachTerminal(t *testing.T) {
	begin(t)
	id := detach(t, "attach-tty", "-it", demo, "sh", "-c", interactive)
	logged(t, id, "/dev/") // its trap is set
	term, cmd := onTerminal(t, 40, 100, husk(t, "attach", id))
	term.shows(`winch 40 100\r\n`)
	if mode(t, term.slave) == term.before {
		t.Error("the terminal is not in raw mode while the container has it")
	}
	term.types("hello\r")
	term.shows(`hello\r\n(winch 40 100\r\n)?line:hello\r\n`) // the window may have had two sizes
	term.turns(20, 60)
	term.types("\r")
	term.shows(`winch 20 60\r\n`)
	term.types("\x10\x11")
	expect(t, "exit code", ended(t, cmd), 0)
	term.shows(`read escape sequence`)
	expect(t, "mode of the terminal afterwards", mode(t, term.slave), term.before)
	expect(t, "status", status(t, id), "running")

	term, cmd = onTerminal(t, 20, 60, husk(t, "attach", "--detach-keys", "ctrl-x,x", id)) // of the same size as the last one
	term.shows(`winch 20 60\r\n`)
	term.types("\x10\x11a\r") // are input now
	term.shows(`line:.*a\r\n`)
	term.types("\x18x")
	expect(t, "exit code", ended(t, cmd), 0)

	watch, _ := viewer(t, "--no-stdin", id)
	term, cmd = onTerminal(t, 30, 90, husk(t, "attach", id))
	term.shows(`winch 30 90\r\n`)
	term.types("exit\r")
	expect(t, "exit code", ended(t, cmd), 6)
	expect(t, "exit code of who only watches", watch.wait().code, 6)
	expect(t, "mode of the terminal afterwards", mode(t, term.slave), term.before)

	expect(t, "started again", husk(t, "start", id).ok(), id+"\n")
	term, cmd = onTerminal(t, 30, 90, husk(t, "attach", id))
	term.types("exit\r")
	expect(t, "exit code of the second time", ended(t, cmd), 6)
}

// TestAttachNotRead has a viewer that does not read what a loud container prints: it is let go of, others and the log go on.
func TestAttachNotRead(t *testing.T) {
	begin(t)
	id := detach(t, "attach-loud", demo, "sh", "-c", "trap 'exit 3' TERM; while :; do dd if=/dev/zero bs=64k count=4 2>/dev/null; sleep 0.01; done")
	lazy := husk(t, "attach", "--no-stdin", id).cmd()
	pipe, err := lazy.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	r := begun(t, lazy)
	good := husk(t, "attach", "--no-stdin", id).cmd()
	good.Stdout = io.Discard
	reads := begun(t, good)
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Fatal("who does not read stays attached")
	}
	if code := lazy.ProcessState.ExitCode(); code != 1 || !strings.Contains(r.stderr.String(), "was not read") {
		t.Errorf("who does not read: exit code %d, stderr %q", code, r.stderr.String())
	}
	if kib := memory(t, record(t, id).Owner.PID); kib > 128<<10 {
		t.Errorf("the owner takes %d KiB", kib)
	}
	expect(t, "status", status(t, id), "running")
	husk(t, "kill", id, "TERM").ok()
	if code := reads.wait().code; code != 3 {
		t.Errorf("who reads: exit code %d, stderr %q", code, reads.stderr.String())
	}
}

// TestAttachOwnerKilled kills what holds the streams.
func TestAttachOwnerKilled(t *testing.T) {
	begin(t)
	id := detach(t, "attach-lost", "-i", demo, "sh", "-c", answering)
	logged(t, id, "ready")
	v, in := viewer(t, id)
	say(t, in, "one\n")
	until(t, "the viewer is attached", seenWithin, func() bool { return v.stdout.String() == "got:one\n" })
	kill9(t, record(t, id).Owner.PID)
	if r := v.wait(); r.code != 137 || !strings.Contains(r.stderr, "was lost") {
		t.Errorf("the viewer: %+v", r)
	}
}

func TestBadAttach(t *testing.T) {
	begin(t)
	id := detach(t, "attach-bad", "-dt", "-i", demo, "sleep", "1000")
	husk(t, "attach", id).fails(1, "terminal", "--no-stdin")
	husk(t, "attach", "--detach-keys", "ctrl-1", id).fails(1, "--detach-keys", "ctrl-1")
	husk(t, "attach", "no-such-container").fails(1, "does not exist")
	husk(t, "attach").fails(1, "arg")
	b := newBundle(t, "exec sleep 1000").up()
	husk(t, "attach", b.id).fails(1, "husk run --detach")
	if out := husk(t, "attach", "--help").ok(); !strings.Contains(out, "husk attach --no-stdin web") {
		t.Errorf("help of attach is %q", out)
	}
	if out := husk(t, "__complete", "attach", "").ok(); !strings.Contains(out, id+"\n") {
		t.Errorf("completion of attach is %q", out)
	}
	expect(t, "open stdin", husk(t, "inspect", "--format", "{{.Config.OpenStdin}} {{.Config.Tty}}", id).ok(), fmt.Sprintln("true true"))
}
