// Package scripts_test tests the build's shell functions.
package scripts_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bash runs a script that has cache.sh sourced and its cache in dir.
func bash(t *testing.T, dir, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("bash", "-c", "set -euo pipefail; . ./cache.sh; "+script)
	cmd.Env = append(os.Environ(), "HUSK_CACHE="+dir)
	return cmd
}

// output runs a script and returns what it printed; its standard error becomes the test's log.
func output(t *testing.T, dir, script string) (string, error) {
	t.Helper()
	cmd := bash(t, dir, script)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	t.Logf("%s\n%s%s", script, out, errs.String())
	return strings.TrimSpace(string(out)), err
}

func TestCachedBuildsOnce(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	build := `build() { echo built >>` + log + `; mkdir "$1"; echo "$TMPDIR" >"$1/tmp"; }; `
	// Two at a time, and one more later.
	first, err := output(t, dir, build+`cached kind key build & cached kind key build & wait`)
	if err != nil {
		t.Fatal(err)
	}
	want := filepath.Join(dir, "kind-key")
	if first != want+"\n"+want {
		t.Errorf("two calls print %q, want %q twice", first, want)
	}
	if later, err := output(t, dir, build+`cached kind key build`); err != nil || later != want {
		t.Errorf("a later call prints %q, %v", later, err)
	}
	if text, err := os.ReadFile(log); err != nil || string(text) != "built\n" {
		t.Errorf("it was built %d times, %v", strings.Count(string(text), "built"), err)
	}
	tmp, err := os.ReadFile(filepath.Join(want, "tmp"))
	if err != nil || !strings.HasPrefix(string(tmp), dir) {
		t.Errorf("the build works in %q, %v: not in the cache, where it is cleaned up", tmp, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.partial.*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestCachedFailure(t *testing.T) {
	for _, c := range []struct{ name, build string }{
		{"fails before it makes anything", `build() { return 3; }; `},
		{"fails half way", `build() { mkdir "$1"; touch "$1/half"; return 3; }; `},
		{"makes nothing", `build() { :; }; `},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			out, err := output(t, dir, c.build+`cached kind key build`)
			if err == nil || out != "" {
				t.Errorf("the call prints %q and ends with %v", out, err)
			}
			// A caller that handles the failure switches errexit off inside.
			out, err = output(t, dir, c.build+`cached kind key build || echo handled`)
			if err != nil || out != "handled" {
				t.Errorf("a caller with a fallback prints %q and ends with %v", out, err)
			}
			left, err := filepath.Glob(filepath.Join(dir, "*"))
			if want := []string{filepath.Join(dir, "kind.lock")}; err != nil || !slices.Equal(left, want) {
				t.Errorf("left behind: %v, %v, want %v", left, err, want)
			}
		})
	}
}

func TestCachedKilled(t *testing.T) {
	dir := t.TempDir()
	cmd := bash(t, dir, `build() { mkdir "$1"; touch "$TMPDIR/started"; sleep 60; }; cached kind key build`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started := func() bool {
		found, _ := filepath.Glob(filepath.Join(dir, "kind.partial.*", "started"))
		return len(found) == 1
	}
	for deadline := time.Now().Add(30 * time.Second); !started(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the build does not start")
		}
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if _, err := os.Stat(filepath.Join(dir, "kind-key")); err == nil {
		t.Error("a killed build left a result")
	}
	if out, err := output(t, dir, `build() { mkdir "$1"; }; cached kind key build`); err != nil || !strings.HasSuffix(out, "kind-key") {
		t.Errorf("the next build prints %q and ends with %v", out, err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.partial.*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestCachePrunes(t *testing.T) {
	dir := t.TempDir()
	// The first stays because it is used between.
	script := `build() { mkdir "$1"; }; keep=$cache_keep
		cached kind first build >/dev/null
		for ((i = 0; i < 2 * keep; i++)); do
			touch -d "-$((1000 - i)) seconds" "$HUSK_CACHE"/kind-*
			cached kind first build >/dev/null
			cached kind "$i" build >/dev/null
		done
		cached other key build >/dev/null
		ls -d "$HUSK_CACHE"/kind-* | wc -l; echo $keep`
	out, err := output(t, dir, script)
	if err != nil {
		t.Fatal(err)
	}
	if n, keep, ok := strings.Cut(out, "\n"); !ok || n != keep {
		t.Errorf("%s results are kept, want %s", n, keep)
	}
	for _, name := range []string{"kind-first", "other-key"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("%s was removed: %v", name, err)
		}
	}
}
