package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// TestStress starts and removes many containers; each exits with its own code, from 0 to 255, or is killed for
// want of memory, and nothing is left of any.
func TestStress(t *testing.T) {
	begin(t)
	parallel, sequence := counts(t)
	one := func(i int) (what string, got, want int) {
		code := (i * 17) % 256 // all of them, once every 256
		args := []string{"run", "--rm", "--name", "stress-" + strconv.Itoa(i), demo, "sh", "-c", "exit " + strconv.Itoa(code)}
		if i%25 == 3 {
			args, code = []string{"run", "--rm", "--memory", "64m", "--name", "stress-" + strconv.Itoa(i), demo, "sh", "-c", "x=a; while :; do x=$x$x; done"}, 137
		}
		r := husk(t, args...).run()
		return fmt.Sprintf("container %d: %s", i, r.stderr), r.code, code
	}
	t.Run("parallel", func(t *testing.T) {
		var all sync.WaitGroup
		for i := range parallel {
			all.Add(1)
			go func() {
				defer all.Done()
				if what, got, want := one(i); got != want {
					t.Errorf("%s: exit code %d, want %d", what, got, want)
				}
			}()
		}
		all.Wait()
	})
	t.Run("sequence", func(t *testing.T) {
		for i := range sequence {
			if what, got, want := one(1000 + i); got != want {
				t.Errorf("%s: exit code %d, want %d", what, got, want)
			}
		}
	})
	expect(t, "containers left", husk(t, "list", "--quiet").ok(), "")
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
