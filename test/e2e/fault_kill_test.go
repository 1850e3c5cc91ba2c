package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// seenWithin bounds how long a container may be taken for running after something that it needs has died.
// It is an order of magnitude, not a promise of speed: on a busy emulated machine a tenth of it is usual.
const seenWithin = time.Minute

// root is a kind of root that a container can have, and run's arguments for it.
type root struct {
	kind string
	args []string
}

func roots() []root {
	return []root{{"image", []string{demo}}, {"directory", []string{"--rootfs", env.rootfs}}}
}

// run is a run of a container with this root.
func (r root) run(t *testing.T, id string, program ...string) *command {
	return husk(t, append(append([]string{"run", "--name", id}, r.args...), program...)...)
}

// fault is something that a container does not survive.
type fault struct {
	name   string
	strike func(t *testing.T, id string)
	says   []string // in the warning of whoever waits
}

// faults are those that a container with a foreground command is struck by.
func faults(kind string) []fault {
	all := []fault{
		{"owner", func(t *testing.T, id string) { kill9(t, record(t, id).Owner.PID) }, []string{"owner"}},
		{"monitor", func(t *testing.T, id string) { kill9(t, helper(t, id, "vmm")) }, []string{"QEMU", "killed"}},
		{"kernel panic", func(t *testing.T, id string) { inGuest(t, id, "echo c >/proc/sysrq-trigger") },
			[]string{"console", "panic"}},
		{"agent crash", func(t *testing.T, id string) { inGuest(t, id, "kill -SEGV 1") }, []string{"console", "panic"}},
		{"guest reboots", func(t *testing.T, id string) { inGuest(t, id, "reboot -f") }, []string{"guest"}},
	}
	if kind == "directory" {
		all = append(all,
			fault{"file service", func(t *testing.T, id string) { kill9(t, helper(t, id, "virtiofsd")) }, []string{"file service"}},
			fault{"file service's worker", func(t *testing.T, id string) { kill9(t, childOf(t, helper(t, id, "virtiofsd"))) },
				[]string{"file service"}})
	}
	return all
}

// inGuest runs a script in the guest itself that the guest does not survive.
func inGuest(t *testing.T, id, script string) {
	t.Helper()
	husk(t, "shell", id, "sh", "-c", script).start()
}

// sleeper is a container's program that says when it runs and then waits.
var sleeper = []string{"sh", "-c", "echo up; exec sleep 1000"}

// TestFaultEndsContainer takes away what a container lives on. Whoever waits for it learns that it is gone
// and why, its state says stopped, it can be deleted, and nothing is left.
func TestFaultEndsContainer(t *testing.T) {
	begin(t)
	for _, root := range roots() {
		for _, f := range faults(root.kind) {
			t.Run(f.name+" of "+root.kind, func(t *testing.T) {
				begin(t)
				const id = "faulty"
				remove(t, id)
				waits := root.run(t, id, sleeper...).start()
				waits.prints("up\n")
				f.strike(t, id)
				took := until(t, "the container's state is stopped", seenWithin, func() bool { return status(t, id) == "stopped" })
				r := waits.wait()
				t.Logf("seen as stopped after %v; told: %s", took.Round(time.Millisecond), strings.TrimSpace(r.stderr))
				if r.code != 137 {
					t.Errorf("the command that waited exited with %d, want 137", r.code)
				}
				for _, words := range append(f.says, "faulty was lost") {
					if !strings.Contains(r.stderr, words) {
						t.Errorf("the command that waited said %q, want %q in it", r.stderr, words)
					}
				}
				husk(t, "exec", id, "true").fails(1, "stopped")
				husk(t, "delete", id).ok()
				if s := status(t, id); s != "none" {
					t.Errorf("after delete the container is %s", s)
				}
			})
		}
	}
}

// TestFaultOfHostProcess kills the process that stands for a container on the host: who waits for it there
// is gone, so the container is too.
func TestFaultOfHostProcess(t *testing.T) {
	begin(t)
	for _, root := range roots() {
		t.Run("attend of "+root.kind, func(t *testing.T) {
			begin(t)
			id := detach(t, "attended", append(root.args, sleeper...)...)
			kill9(t, record(t, id).Host.PID)
			took := until(t, "the container's state is stopped", seenWithin, func() bool { return status(t, id) == "stopped" })
			t.Logf("seen as stopped after %v", took.Round(time.Millisecond))
			husk(t, "delete", id).ok()
		})
		t.Run("foreground run of "+root.kind, func(t *testing.T) {
			begin(t)
			const id = "abandoned"
			remove(t, id)
			waits := root.run(t, id, sleeper...).start()
			waits.prints("up\n")
			waits.signal(syscall.SIGKILL)
			took := until(t, "the container's state is stopped", seenWithin, func() bool { return status(t, id) == "stopped" })
			t.Logf("seen as stopped after %v", took.Round(time.Millisecond))
			if got := record(t, id).ExitStatus; got != 137 {
				t.Errorf("exit status on record is %d, want 137", got)
			}
			husk(t, "delete", id).ok()
		})
	}
	t.Run("foreground run with --rm", func(t *testing.T) {
		begin(t)
		waits := husk(t, append([]string{"run", "--rm", "--name", "unmourned", demo}, sleeper...)...).start()
		waits.prints("up\n")
		waits.signal(syscall.SIGKILL)
		until(t, "the container is gone without a delete", seenWithin, func() bool { return status(t, "unmourned") == "none" })
	})
}

// TestFaultOfExec kills the command of an exec: the process in the container goes, the container stays. And
// it takes the container from under an exec.
func TestFaultOfExec(t *testing.T) {
	begin(t)
	id := detach(t, "visited", append([]string{demo}, sleeper...)...)
	visit := func() *running {
		e := husk(t, "exec", id, "sh", "-c", "echo up; exec sleep 999").start()
		e.prints("up\n")
		return e
	}
	visit().signal(syscall.SIGKILL)
	until(t, "the process of the killed exec has ended", seenWithin, func() bool {
		return !strings.Contains(husk(t, "exec", id, "ps").ok(), "sleep 999")
	})
	if s := status(t, id); s != "running" {
		t.Errorf("the container is %s, want running", s)
	}
	for _, c := range []struct {
		name string
		end  func()
		says string
	}{
		{"container killed", func() { husk(t, "kill", id, "KILL").ok() }, ""},
		{"monitor killed", func() { kill9(t, helper(t, id, "vmm")) }, "was lost: QEMU"},
		{"container deleted", func() { husk(t, "delete", "--force", id).ok() }, ""},
	} {
		e := visit()
		c.end()
		if r := e.wait(); r.code != 137 || !strings.Contains(r.stderr, c.says) {
			t.Errorf("%s: the exec's exit code is %d, want 137; stderr %q, want %q in it", c.name, r.code, r.stderr, c.says)
		}
		husk(t, "delete", "--force", id).ok()
		id = detach(t, "visited", append([]string{demo}, sleeper...)...)
	}
}

// TestFaultWhileCreating kills create and run at many moments of their work. Whatever is there by then,
// `delete --force` leaves nothing of it.
func TestFaultWhileCreating(t *testing.T) {
	begin(t)
	husk(t, "run", "--rm", demo, "true").ok() // what is made once is there from here on
	bundle := newBundle(t, "exec sleep 1000").write()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	const id = "unfinished"
	verbs := [][]string{
		append([]string{"run", "--name", id, demo}, sleeper...),
		append([]string{"run", "--rm", "--name", id, "--rootfs", env.rootfs}, sleeper...),
		{"create", "--bundle", bundle, id},
	}
	for i := range 18 {
		verb := verbs[i%len(verbs)]
		delay := time.Duration(random.IntN(1500)) * time.Millisecond
		t.Run(fmt.Sprintf("%s after %v", verb[0], delay), func(t *testing.T) {
			begin(t)
			remove(t, id)
			cmd := husk(t, verb...).cmd()
			cmd.Stdout, cmd.Stderr = null, null // what a created container would hold open
			c := begun(t, cmd)
			time.Sleep(delay)
			_ = cmd.Process.Kill() // fails where it was quicker
			<-c.done
			if i%2 == 0 { // else delete meets what the owner is about to undo
				time.Sleep(2 * time.Second)
			}
			before := status(t, id)
			husk(t, "delete", "--force", id).ok()
			if after := status(t, id); after != "none" {
				t.Errorf("before delete --force the container was %s, after it is %s", before, after)
			}
			t.Logf("the container was %s", before)
		})
	}
}

// TestFaultOwnerIsTold sends the owner SIGTERM: it ends its VM in good order.
func TestFaultOwnerIsTold(t *testing.T) {
	begin(t)
	const id = "told"
	remove(t, id)
	volume := t.TempDir()
	waits := husk(t, "run", "--name", id, "-v", volume+":/volume", demo,
		"sh", "-c", "echo kept >/volume/file; echo up; exec sleep 1000").start()
	waits.prints("up\n")
	if err := syscall.Kill(record(t, id).Owner.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r := waits.wait()
	if r.code != 137 || !strings.Contains(r.stderr, "terminated") {
		t.Errorf("exit code %d, want 137; said %q, want the signal's name in it", r.code, r.stderr)
	}
	if rec := record(t, id); status(t, id) != "stopped" || rec.ExitedAt.IsZero() || rec.Reason == "" {
		t.Errorf("on record: status %s, exited at %v, reason %q: want all three", rec.Status, rec.ExitedAt, rec.Reason)
	}
	if data, err := os.ReadFile(filepath.Join(volume, "file")); err != nil || string(data) != "kept\n" {
		t.Errorf("what was written to the volume is %q (%v)", data, err)
	}
	husk(t, "delete", id).ok()
}

// TestFaultFrozenMonitor stops the monitor, so that nothing in the guest answers: the container can still be
// deleted.
func TestFaultFrozenMonitor(t *testing.T) {
	begin(t)
	for _, root := range roots() {
		t.Run(root.kind, func(t *testing.T) {
			begin(t)
			id := detach(t, "frozen", append(root.args, sleeper...)...)
			if err := syscall.Kill(helper(t, id, "vmm"), syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			husk(t, "delete", "--force", id).ok()
			t.Logf("deleted after %v", time.Since(began).Round(time.Millisecond))
			if s := status(t, id); s != "none" {
				t.Errorf("after delete the container is %s", s)
			}
		})
	}
}

// TestFaultDeletesAtOnce deletes a running container several times at the same moment.
func TestFaultDeletesAtOnce(t *testing.T) {
	begin(t)
	id := detach(t, "unwanted", append([]string{demo}, sleeper...)...)
	all := make([]*running, 4)
	for i := range all {
		all[i] = husk(t, "delete", "--force", id).start()
	}
	for i, c := range all {
		if r := c.wait(); r.code != 0 {
			t.Errorf("delete %d: exit code %d, stderr %q", i, r.code, r.stderr)
		}
	}
	if s := status(t, id); s != "none" {
		t.Errorf("the container is %s", s)
	}
}

// TestFaultForkBomb starts processes without end, with a limit and without one: husk stays in charge.
func TestFaultForkBomb(t *testing.T) {
	begin(t)
	for _, flags := range [][]string{{"--pids-limit", "40"}, nil} {
		args := append(flags, demo, "sh", "-c", "bomb() { bomb | bomb & }; echo up; bomb 2>/dev/null & exec sleep 1000")
		id := detach(t, "bomb", args...)
		until(t, "the bomb has started", seenWithin, func() bool { return husk(t, "logs", id).ok() != "" })
		time.Sleep(3 * time.Second)
		if s := status(t, id); s != "running" {
			t.Errorf("%q: the container is %s, want running", flags, s)
		}
		began := time.Now()
		husk(t, "delete", "--force", id).ok()
		t.Logf("%q: deleted after %v", flags, time.Since(began).Round(time.Millisecond))
	}
}

// TestFaultConsoleFlood prints to the guest's console without end: its log stays below 1 MiB and the
// container lives on.
func TestFaultConsoleFlood(t *testing.T) {
	begin(t)
	id := detach(t, "loud", append([]string{demo}, sleeper...)...)
	flood := husk(t, "shell", id, "sh", "-c", "exec timeout 8 cat /dev/zero >/dev/hvc0").start()
	var most, written int64
	logs := filepath.Join(env.run, id, "console.log*")
	for running := true; running; {
		select {
		case <-flood.done:
			running = false
		case <-time.After(50 * time.Millisecond):
		}
		size := int64(0)
		files, err := filepath.Glob(logs)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if info, err := os.Stat(f); err == nil {
				size += info.Size()
			}
		}
		most, written = max(most, size), size
	}
	t.Logf("the console's log had at most %d bytes, %d at the end", most, written)
	if most > 1<<20 {
		t.Errorf("the console's log grew to %d bytes, want at most 1 MiB", most)
	}
	if most < 1<<19 {
		t.Errorf("the console's log grew to %d bytes only: the flood did not reach it", most)
	}
	if out := husk(t, "exec", id, "echo", "alive").ok(); out != "alive\n" {
		t.Errorf("exec in the container printed %q", out)
	}
}

// TestFaultInterrupt sends SIGINT to a foreground run: the container gets it, and one that does not mind is
// killed by the third.
func TestFaultInterrupt(t *testing.T) {
	begin(t)
	t.Run("one for a shell that traps it", func(t *testing.T) {
		begin(t)
		c := husk(t, "run", "--rm", demo, "sh", "-c", "trap 'echo caught; exit 42' INT; echo up; while :; do sleep 0.1; done").start()
		c.prints("up\n")
		c.signal(syscall.SIGINT)
		if r := c.wait(); r.code != 42 || !strings.Contains(r.stdout, "caught") {
			t.Errorf("exit code %d, want 42; stdout %q, stderr %q", r.code, r.stdout, r.stderr)
		}
	})
	t.Run("three for a shell that ignores it", func(t *testing.T) {
		begin(t)
		c := husk(t, "run", "--rm", demo, "sh", "-c", "trap '' INT TERM; echo up; while :; do sleep 0.1; done").start()
		c.prints("up\n")
		for i := range 3 {
			select {
			case <-c.done:
				t.Fatalf("it ended after %d interrupts", i)
			case <-time.After(500 * time.Millisecond):
			}
			c.signal(syscall.SIGINT)
		}
		if r := c.wait(); r.code != 137 {
			t.Errorf("exit code %d, want 137; stderr %q", r.code, r.stderr)
		}
	})
	t.Run("one while the guest boots", func(t *testing.T) {
		begin(t)
		c := husk(t, "run", "--name", "early", demo, "echo", "too late").start()
		until(t, "the container is being made", patience, func() bool {
			_, err := os.Stat(filepath.Join(env.run, "early", "console.log"))
			return err == nil
		})
		c.signal(syscall.SIGINT)
		r := c.wait()
		if r.code == 0 || strings.Contains(r.stdout, "too late") {
			t.Errorf("exit code %d, stdout %q: the run was interrupted before it began", r.code, r.stdout)
		}
		if s := status(t, "early"); s != "none" {
			t.Errorf("the container is %s, want none", s)
		}
	})
}

// TestFaultStubborn meets a container that ignores SIGTERM.
func TestFaultStubborn(t *testing.T) {
	begin(t)
	id := detach(t, "stubborn", demo, "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
	husk(t, "kill", id, "TERM").ok()
	time.Sleep(time.Second)
	if s := status(t, id); s != "running" {
		t.Fatalf("after SIGTERM the container is %s, want running", s)
	}
	husk(t, "delete", id).fails(1, "running")
	husk(t, "kill", id, "KILL").ok()
	until(t, "the container is stopped", seenWithin, func() bool { return status(t, id) == "stopped" })
	if got := record(t, id).ExitStatus; got != 137 {
		t.Errorf("exit status on record is %d, want 137", got)
	}
	husk(t, "delete", id).ok()
	id = detach(t, "stubborn", demo, "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
	husk(t, "delete", "--force", id).ok()
}

// TestFaultReaderGone closes the output of a run before its program has ended, as `head` does. The kernel
// spares the first process of a PID namespace the signal; that one sees its write fail.
func TestFaultReaderGone(t *testing.T) {
	begin(t)
	for _, c := range []struct {
		program []string
		code    int
	}{{[]string{"sh", "-c", "yes; exit $?"}, 128 + int(syscall.SIGPIPE)}, {[]string{"yes"}, 1}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := husk(t, append([]string{"run", "--rm", demo}, c.program...)...).cmd()
		cmd.Stdout = w
		run := begun(t, cmd)
		w.Close()
		line := make([]byte, 2)
		if _, err := io.ReadFull(r, line); err != nil || string(line) != "y\n" {
			t.Errorf("%q: read %q (%v), want a line of yes", c.program, line, err)
		}
		r.Close()
		if got := run.wait(); got.code != c.code {
			t.Errorf("%q: exit code %d, want %d; stderr %q", c.program, got.code, c.code, got.stderr)
		}
	}
}
