package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// counts are how many containers the stress test starts: side by side, and one after the other. HUSK_TEST_LONG=1 makes
// them 50 and 500, "N M" any.
func counts(t *testing.T) (parallel, sequence int) {
	t.Helper()
	switch long := os.Getenv("HUSK_TEST_LONG"); long {
	case "", "0":
		return 6, 6
	case "1":
		return 50, 500
	default:
		if _, err := fmt.Sscan(long, &parallel, &sequence); err != nil {
			t.Fatalf("HUSK_TEST_LONG=%q: %v", long, err)
		}
		return parallel, sequence
	}
}

// trial is one of many containers: it exits with a code of its own, from 0 to 255, or is killed for want of memory.
type trial struct {
	flags  []string
	script string // of the shell in the container
	code   int
}

func newTrial(i int) trial {
	if i%25 == 3 {
		return trial{[]string{"--memory", "64m"}, "x=a; while :; do x=$x$x; done", 137}
	}
	code := (i * 17) % 256 // all of them, once every 256
	return trial{script: "exit " + strconv.Itoa(code), code: code}
}

// stress runs many trials, side by side and one after the other, by a function that gives each one's container a name.
func stress(t *testing.T, run func(name string, one trial) result) {
	parallel, sequence := counts(t)
	try := func(t *testing.T, i int) {
		one := newTrial(i)
		if r := run("stress-"+strconv.Itoa(i), one); r.code != one.code {
			t.Errorf("container %d: exit code %d, want %d: %s", i, r.code, one.code, r.stderr)
		}
	}
	t.Run("parallel", func(t *testing.T) {
		var all sync.WaitGroup
		for i := range parallel {
			all.Go(func() { try(t, i) })
		}
		all.Wait()
	})
	t.Run("sequence", func(t *testing.T) {
		for i := range sequence {
			try(t, 1000+i)
		}
	})
}

// TestStress starts and removes many containers, of which nothing is left.
func TestStress(t *testing.T) {
	begin(t)
	stress(t, func(name string, one trial) result {
		return husk(t, slices.Concat([]string{"run", "--rm", "--name", name}, one.flags, []string{demo, "sh", "-c", one.script})...).run()
	})
	expect(t, "containers left", husk(t, "list", "--quiet").ok(), "")
}

// inEngine runs a trial with an engine: flags are those of its run.
func (n *node) inEngine(engine, flags, name string, one trial) result {
	return n.run("husk", fmt.Sprintf("exec %s run --rm --name %s %s %s demo sh -c '%s'", engine, name, flags, strings.Join(one.flags, " "), one.script))
}

// TestPodmanStress is TestStress with podman.
func TestPodmanStress(t *testing.T) {
	begin(t)
	defer noCgroups(t)()
	n := newNode(t)
	stress(t, func(name string, one trial) result { return n.inEngine("p", "$N", name, one) })
	expect(t, "containers left", n.must("husk", "p ps -aq; $RUNTIME list -q"), "")
}

// TestDockerStress is TestStress with Docker, which removes a container in its own time once its client has ended.
func TestDockerStress(t *testing.T) {
	begin(t)
	n := newDocker(t)
	stress(t, func(name string, one trial) result { return n.inEngine("d", "", name, one) })
	until(t, "no container is left", patience, func() bool { return n.must("husk", "d ps -aq") == "" })
	until(t, "nothing of husk is left", patience, func() bool { return len(n.ofHusk()) == 0 })
}

// TestOrphanedCreate: an engine that dies while its container is made knows nothing of it, and so it is not kept.
func TestOrphanedCreate(t *testing.T) {
	begin(t)
	b := newBundle(t, "exec sleep 1000")
	id, said := name(t), file(t, "")
	create := husk(t, "create", "--bundle", b.write(), id).cmd()
	// create knows who called it before the container has a directory.
	script := `"$0" "$@" >/dev/null 2>` + said + ` </dev/null & for i in $(seq 1000); do [ ! -d ` + filepath.Join(env.run, id) + ` ] || break; sleep 0.01; done; kill -9 $$`
	engine := exec.Command("sh", append([]string{"-c", script}, create.Args...)...)
	begun(t, engine).wait()
	until(t, "create has given up", patience, func() bool { return strings.Contains(content(t, said), "has died") })
	until(t, "the container is gone", patience, func() bool { return status(t, id) == "none" })
}
