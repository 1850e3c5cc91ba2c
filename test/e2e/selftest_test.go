package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/testenv"
)

// selftestReport is what the tests read of a report.
type selftestReport struct {
	Format             int
	Verdict, Accel     string
	Isolation, User    string
	Configuration, Log string
	Versions           map[string]string
	Check              struct{ Items []struct{ Name string } }
	Steps              []selftestStep
}

type selftestStep struct{ Name, Status, Why, Fix, Output string }

// step finds one by its name.
func (r *selftestReport) step(name string) selftestStep {
	for _, s := range r.Steps {
		if s.Name == name {
			return s
		}
	}
	return selftestStep{}
}

// selftest runs the self-test with more lines of configuration, which must exit with code.
func selftest(t *testing.T, code int, config string, args ...string) *selftestReport {
	t.Helper()
	c := &command{t: t, args: append([]string{"selftest", "--json"}, args...), flag: []string{"--config", config}}
	r := c.start().waitLong()
	var report selftestReport
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		t.Fatalf("exit code %d, read the report: %v\n%s", r.code, err, r.stderr)
	}
	if report.Log != "" {
		t.Cleanup(func() { os.Remove(report.Log) })
	}
	if r.code != code {
		t.Errorf("exit code %d, want %d:\n%s%+v", r.code, code, r.stderr, report.Steps)
	}
	return &report
}

// waitLong is wait for a command that calls many others.
func (r *running) waitLong() result {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(5 * patience): // wait tells
	}
	return r.wait()
}

// selftestConfig is a configuration with directories that no other test has, and with more lines.
func selftestConfig(t *testing.T, lines ...string) (file, dir string) {
	t.Helper()
	dir = t.TempDir()
	text := strings.Join(append(lines, ""), "\n")
	for _, key := range []string{"run", "data"} {
		if !strings.Contains(text, key+"_dir") {
			text += key + "_dir = \"" + filepath.Join(dir, key) + "\"\n"
		}
	}
	file = filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file, dir
}

// TestSelftest: all of it goes well here, and nothing is left, among the user's containers and images neither.
func TestSelftest(t *testing.T) {
	begin(t)
	testenv.Leaks(t, env.run, env.data)
	r := selftest(t, 0, env.config)
	if len(r.Steps) < 14 || r.Format != 1 || r.Verdict != "ok" || r.User != "root" || r.Log != "" || len(r.Check.Items) < 10 {
		t.Errorf("the report is %+v", r)
	}
	for _, s := range r.Steps {
		_, noPasst := exec.LookPath("passt")
		if s.Status != "ok" && !(s.Name == "network" && noPasst != nil && s.Status == "skipped") {
			t.Errorf("%+v", s)
		}
	}
	for _, key := range []string{"husk", "qemu", "virtiofsd", "host_kernel", "guest_kernel"} {
		if r.Versions[key] == "" {
			t.Errorf("no version of %s", key)
		}
	}
	if accel := map[string]string{"hardware": "kvm", "emulated": "tcg"}[r.Isolation]; accel == "" || accel != r.Accel {
		t.Errorf("isolation %q, accelerator %q", r.Isolation, r.Accel)
	}
}

// TestSelftestChosen: steps by name, and in another directory.
func TestSelftestChosen(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	testenv.Leaks(t, dir, env.run, env.data)
	out := husk(t, "selftest", "exec", "--dir", dir).ok()
	for _, words := range []string{"\nexec             ok ", "\nimage            ok ", "\nPassed: 3 steps ok, 0 failed, 0 skipped", "\nCHECK "} {
		if !strings.Contains("\n"+out, words) {
			t.Errorf("no %q in\n%s", words, out)
		}
	}
	if list := husk(t, "selftest", "--list").ok(); !strings.Contains(list, "\nkill-owner ") {
		t.Errorf("the list is %s", list)
	}
	config, _ := selftestConfig(t, `template = "off"`, "nic_egress_bps = 1000000")
	for _, s := range selftest(t, 0, config, "template", "network").Steps[2:] {
		if s.Status != "skipped" || s.Why == "" {
			t.Errorf("%+v, want it skipped", s)
		}
	}
	husk(t, "selftest", "no-such").fails(1, "no step", "kill-owner")
	husk(t, "selftest", "--timeout", "-1s").fails(1, "--timeout")
}

// TestSelftestBroken: the step that a broken machine breaks fails, and says what mends it.
func TestSelftestBroken(t *testing.T) {
	begin(t)
	service := filepath.Join(t.TempDir(), "virtiofsd")
	script := "#!/bin/sh\ncase \"$*\" in *--version*) echo virtiofsd 1.13.0; exit 0;; esac\necho no such luck >&2\nexit 1\n"
	if err := os.WriteFile(service, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, line string
		steps      []string
		failed     []string
		fix        string
	}{
		{"qemu", `qemu = "/nonexistent"`, nil, []string{"check", "boot"}, "set qemu in "},
		{"qemu that fails", `qemu = "/bin/false"`, []string{"boot"}, []string{"check", "boot"}, "/bin/false --version"},
		{"virtiofsd", `virtiofsd = "` + service + `"`, []string{"boot", "volume", "kill"}, []string{"volume"}, "name no virtiofsd"},
		{"data_dir", `data_dir = "/proc/husk"`, nil, []string{"image"}, "set data_dir"},
		{"file for a data_dir", `data_dir = "/etc/passwd"`, nil, []string{"check", "image"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin(t)
			config, dir := selftestConfig(t, c.line)
			testenv.Leaks(t, dir)
			r := selftest(t, 1, config, c.steps...)
			var failed []string
			for _, s := range r.Steps {
				if s.Status == "failed" {
					failed = append(failed, s.Name)
					if s.Fix == "" || !strings.Contains(s.Fix, c.fix) || s.Output == "" {
						t.Errorf("%+v, want a fix with %q", s, c.fix)
					}
				}
			}
			if !slices.Equal(failed, c.failed) || r.Verdict != "failed" {
				t.Errorf("failed: %q, want %q; %+v", failed, c.failed, r.Steps)
			}
			if log, err := os.ReadFile(r.Log); err != nil || !strings.Contains(string(log), r.step(c.failed[0]).Why[:20]) {
				t.Errorf("the log is %q (%v)", log, err)
			}
		})
	}
}

// TestSelftestDiskFull: no place for the image is told as that.
func TestSelftestDiskFull(t *testing.T) {
	begin(t)
	disk := smallDisk(t, "8m")
	config := disk.config(filepath.Join(disk.dir, "run"), filepath.Join(disk.dir, "data"))
	r := disk.husk(config, "selftest").run()
	if r.code != 1 || !strings.Contains(r.stdout, "\nimage            failed ") || !strings.Contains(r.stdout, "\n    free some space below "+disk.dir) {
		t.Errorf("exit code %d\n%s", r.code, r.stdout)
	}
	if _, log, found := strings.Cut(r.stdout, "\nLog: "); found {
		os.Remove(strings.TrimSpace(log))
	}
	if left := disk.files("."); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// underway starts a self-test and waits until a container of the pod's or of those that are killed runs in the background.
func underway(t *testing.T, dir string, steps ...string) *running {
	t.Helper()
	r := husk(t, append([]string{"selftest", "--dir", dir}, steps...)...).start()
	until(t, "a container is there", patience, func() bool {
		states, err := filepath.Glob(filepath.Join(dir, "*/run/selftest-*/state.json"))
		if err != nil {
			t.Fatal(err)
		}
		return len(states) > 0
	})
	return r
}

func TestSelftestInterrupted(t *testing.T) {
	begin(t)
	for _, step := range []string{"exec", "pod", "template"} {
		t.Run(step, func(t *testing.T) {
			begin(t)
			dir := t.TempDir()
			testenv.Leaks(t, dir)
			c := underway(t, dir, step)
			c.signal(syscall.SIGINT)
			if r := c.wait(); r.code != 1 || !strings.Contains(r.stdout, "\nInterrupted: ") || strings.Contains(r.stdout, "Log: ") {
				t.Errorf("exit code %d\n%s", r.code, r.stdout)
			}
		})
	}
}

// TestSelftestKilled: what a self-test that was killed left, its containers too, the next one removes.
func TestSelftestKilled(t *testing.T) {
	begin(t)
	for i, step := range []string{"exec", "pod", "pod", "kill-owner", "kill-owner"} {
		delay := time.Duration(rand.IntN(1+i*1000)) * time.Millisecond
		t.Run(fmt.Sprintf("%s after %v", step, delay), func(t *testing.T) {
			begin(t)
			dir := t.TempDir()
			testenv.Leaks(t, dir)
			c := underway(t, dir, step)
			time.Sleep(delay)
			_ = c.cmd.Process.Kill() // fails where it was quicker
			c.wait()
			if out := husk(t, "selftest", "image", "--dir", dir).ok(); !strings.Contains(out, "Passed: ") {
				t.Errorf("the next one said %s", out)
			}
		})
	}
}

// TestSelftestWithoutRoot: an ordinary user's self-test.
func TestSelftestWithoutRoot(t *testing.T) {
	begin(t)
	n := newOrdinary(t)
	out := n.start("husk", "husk selftest; echo $?; ls -A $XDG_RUNTIME_DIR .local/share 2>&1 | grep husk").waitLong().stdout
	if !strings.HasSuffix(out, "\n0\n") || !strings.Contains(out, " 0 failed, ") || !strings.Contains(out, "uid 61234") {
		t.Errorf("it printed\n%s", out)
	}
	for _, step := range []string{"boot", "template", "volume", "network", "pod", "kill-owner", "parallel"} {
		if !strings.Contains(out, "\n"+step+strings.Repeat(" ", 17-len(step))+"ok ") {
			t.Errorf("%s has not gone well", step)
		}
	}
}
