package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"husk.dev/husk/internal/testenv"
)

// TestBenchPods looks at the shape of a report of pods, and that the containerd which made them leaves nothing.
func TestBenchPods(t *testing.T) {
	begin(t)
	if _, err := exec.LookPath("containerd"); err != nil {
		t.Skipf("%v (make setup installs it)", err)
	}
	dir := t.TempDir()
	testenv.Leaks(t, dir)
	before := benchGroups(t)
	out := husk(t, "bench", "pods", "--rounds", "1", "--warmup", "0", "--parallel", "2", "--dir", dir, "--json").ok()
	var r benchReport
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("read the report: %v", err)
	}
	want := map[string]int{
		"pods.ready": 1, "pods.gone": 1, "pods.parallel.ready": 2, "pods.parallel.gone": 2, "pods.memory.shim": 1,
		"pods.memory.all": 1, "pods.idle.shim": 1, "pods.idle.all": 1,
	}
	failed := map[string]bool{}
	for _, f := range r.Failures { // crun cannot have pods on every machine, and runsc needs a shim of its own
		t.Logf("failure: %+v", f)
		failed[f.Runtime] = true
	}
	for _, rt := range r.Runtimes {
		if failed[rt.Name] && !strings.HasPrefix(rt.Name, "husk") && rt.Name != "runc" {
			continue
		}
		for measure, n := range want {
			found := false
			for _, res := range r.Results {
				if res.Runtime != rt.Name || res.Measure != measure {
					continue
				}
				found = true
				idle := measure == "pods.idle.shim" || measure == "pods.idle.all" // may be less than can be counted
				if res.N != n || res.P50 < 0 || res.P50 == 0 && !idle {
					t.Errorf("%+v: want %d samples, all more than nothing", res, n)
				}
			}
			if !found {
				t.Errorf("%s of %s was not measured", measure, rt.Name)
			}
		}
	}
	expect(t, "control groups", fmt.Sprint(benchGroups(t)), fmt.Sprint(before))
}

// benchGroups are the control groups that benchmarks have made.
func benchGroups(t *testing.T) (found []string) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/husk-bench-*", "/sys/fs/cgroup/*/husk-bench-*"} {
		groups, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, groups...)
	}
	return found
}
