package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// outOfMemory is a script that prints what an engine says of containers that had no memory: of the init, of another
// process, of one that was killed and one that ended by itself.
func outOfMemory(engine, flags string) string {
	return strings.NewReplacer("ENGINE", engine, "FLAGS", flags).Replace(`
		said() { ENGINE wait $A >/dev/null; ENGINE inspect -f '{{.State.OOMKilled}} {{.State.ExitCode}}' $A; ENGINE rm -f $A >/dev/null; }
		all='x=a; while :; do x=$x$x; done'
		ENGINE run -d --name $A FLAGS --memory 64m demo sh -c "$all" >/dev/null; said
		ENGINE run -d --name $A FLAGS --memory 64m demo sh -c "($all) 2>/dev/null; exit 5" >/dev/null; said
		ENGINE run -d --name $A FLAGS --memory 64m demo sleep 1000 >/dev/null; ENGINE kill $A >/dev/null; said
		ENGINE run -d --name $A FLAGS --memory 64m demo true >/dev/null; said`)
}

const wantOutOfMemory = "true 137\ntrue 5\nfalse 137\nfalse 0"

// exitCodes is a script that prints the exit codes of containers as who runs them and who waits for them see them.
func exitCodes(engine, flags string) string {
	return strings.NewReplacer("ENGINE", engine, "FLAGS", flags).Replace(`for c in 0 1 2 125 126 127 128 137 143 255; do
		ENGINE run --name $A FLAGS demo sh -c "exit $c"; echo $c $? $(ENGINE wait $A) $(ENGINE inspect -f '{{.State.ExitCode}}' $A); ENGINE rm $A >/dev/null; done
		ENGINE run -d --name $A FLAGS demo sh -c 'trap "" TERM; while :; do sleep 0.1; done' >/dev/null; ENGINE exec $A true
		ENGINE stop -t 1 $A >/dev/null; echo $(ENGINE wait $A) $(ENGINE inspect -f '{{.State.ExitCode}}' $A); ENGINE rm $A >/dev/null`)
}

const wantExitCodes = "0 0 0 0\n1 1 1 1\n2 2 2 2\n125 125 125 125\n126 126 126 126\n127 127 127 127\n128 128 128 128\n137 137 137 137\n143 143 143 143\n255 255 255 255\n137 137"

// monitors are the processes of conmon in the node: those of exec sessions, or those of containers.
func (n *node) monitors(exec bool) (pids []int) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range all {
		line, err := os.ReadFile(file)
		if err != nil || !strings.Contains(strings.SplitN(string(line), "\x00", 2)[0], "conmon") || !strings.Contains(string(line), n.dir+"/") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && strings.Contains(string(line), "--exec-process-spec") == exec {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killMonitors kills conmon a time after there is one. None is left where its container has ended.
func (n *node) killMonitors(exec bool, after time.Duration) {
	n.t.Helper()
	until(n.t, "conmon runs", patience, func() bool { return len(n.monitors(exec)) > 0 })
	time.Sleep(after)
	for _, pid := range n.monitors(exec) {
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	}
}

// must runs a script that must not fail.
func (n *node) must(runtime, script string) string {
	n.t.Helper()
	r := n.run(runtime, script)
	if r.code != 0 {
		n.t.Fatalf("%s: %q: exit code %d, %s%s", runtime, script, r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// engineFault is something that an engine's part does not survive, while a container is made or runs.
type engineFault struct {
	name   string
	strike func(n *node, runtime string)
}

const sleeps = "p run -d --name $A $N demo sleep 1000"

// podmanFaults kill podman and conmon. A container of which the engine has lost hold is still the engine's to remove.
func podmanFaults() []engineFault {
	all := []engineFault{
		{name: "conmon of a running container", strike: func(n *node, runtime string) {
			n.must(runtime, sleeps)
			n.killMonitors(false, 0)
			expect(n.t, "exec", n.must(runtime, "p exec $A echo hi"), "hi")
		}},
		{name: "conmon of an exec", strike: func(n *node, runtime string) {
			n.must(runtime, sleeps)
			exec := n.start(runtime, "p exec $A sleep 1000")
			n.killMonitors(true, time.Second)
			if r := exec.wait(); r.code == 0 {
				n.t.Errorf("%s: podman exec exited with 0", runtime)
			}
			expect(n.t, "next exec", n.must(runtime, "p exec $A echo hi"), "hi")
		}},
		{name: "podman in the foreground", strike: func(n *node, runtime string) {
			run := n.start(runtime, "exec p run --name $A $N demo sh -c 'echo up; exec sleep 1000'")
			run.prints("up\n")
			kill9(n.t, childOf(n.t, run.cmd.Process.Pid))
			run.wait()
			expect(n.t, "status and exec", n.must(runtime, "p inspect -f '{{.State.Status}}' $A; p exec $A echo hi"), "running\nhi")
		}},
	}
	for _, after := range []time.Duration{0, 30, 100, 300, 600, 1000} {
		after *= time.Millisecond
		all = append(all, engineFault{name: fmt.Sprintf("conmon %v into a start", after), strike: func(n *node, runtime string) {
			run := n.start(runtime, sleeps)
			n.killMonitors(false, after)
			run.wait() // in time or not
		}}, engineFault{name: fmt.Sprintf("podman %v into a start", after), strike: func(n *node, runtime string) {
			run := n.start(runtime, "exec "+sleeps)
			until(n.t, "conmon runs", patience, func() bool { return len(n.monitors(false)) > 0 })
			time.Sleep(after)
			select {
			case <-run.done:
			default:
				kill9(n.t, childOf(n.t, run.cmd.Process.Pid))
			}
			run.wait()
		}})
	}
	return all
}

// TestPodmanFaults kills podman's processes and conmon at different moments, with runc and with husk: podman can remove
// the container, and nothing of it is left.
func TestPodmanFaults(t *testing.T) {
	begin(t)
	defer noCgroups(t)()
	n := newPodman(t, true)
	for _, f := range podmanFaults() {
		for _, runtime := range []string{"runc", "husk"} {
			t.Run(f.name+"/"+runtime, func(t *testing.T) {
				begin(t)
				inside := *n
				inside.t = t
				f.strike(&inside, runtime)
				if r := inside.run(runtime, "p rm -f -t 0 -i $A"); r.code != 0 {
					t.Errorf("podman rm: exit code %d, %s", r.code, r.stderr)
				}
				expect(t, "containers left", inside.must(runtime, "p ps -aq"), "")
				// A podman that lost hold of a container does not have the runtime delete it, whichever that is.
				inside.must(runtime, "for c in $($RUNTIME list -q); do $RUNTIME delete --force $c; done")
				expect(t, "containers of the runtime", inside.must(runtime, "$RUNTIME list -q"), "")
				if runtime == "runc" { // which leaves groups in the hierarchies without controllers
					inside.run(runtime, "find /sys/fs/cgroup -depth -path '*/libpod_parent/*' -type d -exec rmdir {} ';'")
				}
			})
		}
	}
}

// TestPodmanExitCodes has containers end with the codes that engines use themselves.
func TestPodmanExitCodes(t *testing.T) {
	begin(t)
	defer noCgroups(t)()
	n := newNode(t)
	n.like("exit codes", wantExitCodes, exitCodes("p", "$N"))
}

// ofHusk are husk's processes, and the containers that it has on record in the node.
func (n *node) ofHusk() (left []string) {
	all, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, file := range all {
		if program, err := os.Readlink(file); err == nil && program == env.binary {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
			left = append(left, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return append(left, strings.Fields(n.run("husk", "find /run/docker-test/runtime-husk -name state.json").stdout)...)
}

// killShims is a script that kills the shims of the node, and prints how many there were.
const killShims = `for p in /proc/[0-9]*; do case $(readlink $p/exe) in */containerd-shim-runc-v2) kill -9 ${p#/proc/} && echo shim ;; esac; done; true`

// TestDockerFaults kills dockerd and its containerd at different moments of a start, with runc and with husk: they come
// back, the container can be removed, and nothing of it is left.
func TestDockerFaults(t *testing.T) {
	begin(t)
	n := newDocker(t)
	const kill = "for f in /run/docker-test.pid /run/docker-test/containerd/containerd.pid; do kill -9 $(cat $f); done 2>/dev/null; true" // one may be gone already
	for _, after := range []time.Duration{100, 300, 600, 1000, 1500, 2500} {
		after *= time.Millisecond
		for _, runtime := range []string{"runc", "husk"} {
			t.Run(fmt.Sprintf("%v into a start/%s", after, runtime), func(t *testing.T) {
				inside := *n
				inside.t = t
				run := inside.start(runtime, "d run -d --name $A demo sleep 1000")
				time.Sleep(after)
				inside.must(runtime, kill)
				r := run.wait()
				inside.must(runtime, "up")
				if r.code == 0 { // it had started, and runs on
					expect(t, "exec", inside.must(runtime, "d exec $A echo hi"), "hi")
				}
				inside.must(runtime, "d ps -aq | xargs -r d rm -f")
				expect(t, "containers left", inside.must(runtime, "d ps -aq"), "")
				// A shim that containerd has lost before it knew of the container keeps it, with runc too.
				if inside.must(runtime, killShims) != "" {
					inside.must(runtime, `r=/run/docker-test/runtime-$(basename $RUNTIME)/moby; for c in $($RUNTIME --root $r list -q); do $RUNTIME --root $r delete --force $c; done`)
				}
				until(t, "nothing of husk is left", patience, func() bool { return len(inside.ofHusk()) == 0 })
				if runtime == "runc" { // which leaves the groups of a container that it had not made yet, and at first its process
					until(t, "what runc leaves is gone", soon, func() bool {
						return inside.run(runtime, "find /sys/fs/cgroup -depth -path '*/docker/*' -type d -exec rmdir {} ';' -print").stdout == ""
					})
				}
			})
		}
	}
}

// TestDockerExitCodes has containers end with the codes that engines use themselves.
func TestDockerExitCodes(t *testing.T) {
	begin(t)
	n := newDocker(t)
	n.like("exit codes", wantExitCodes, exitCodes("d", ""))
}
