package bench

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestCheck(t *testing.T) {
	good := Options{Rounds: 1, Parallel: 1, IdleMax: 1}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Options){
		"dance":      func(o *Options) { o.Groups = []string{"start", "dance"} },
		"--rounds":   func(o *Options) { o.Rounds = 0 },
		"--warmup":   func(o *Options) { o.Warmup = -1 },
		"--parallel": func(o *Options) { o.Parallel = 0 },
		"--idle-max": func(o *Options) { o.IdleMax = 1 << 20 },
	} {
		o := good
		change(&o)
		if err := o.Check(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v, want one that names it", name, err)
		}
	}
}

func TestFindRuntimes(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	for _, name := range []string{"runsc", "crun", "odd"} {
		script := "#!/bin/sh\necho " + name + " version 7\necho more\n"
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got, err := FindRuntimes(t.Context(), []string{"crun=odd --fast", "odd"})
	if err != nil {
		t.Fatal(err)
	}
	want := []Runtime{
		{Name: "crun", Command: []string{bin + "/odd", "--fast"}, Version: "odd version 7"},
		{Name: "odd", Command: []string{bin + "/odd"}, Version: "odd version 7"},
		{Name: "runsc", Command: []string{bin + "/runsc", "--platform=ptrace", "--network=none", "--ignore-cgroups"}, Version: "runsc version 7"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("found %+v, want %+v", got, want)
	}
	for _, bad := range [][]string{{""}, {"x="}, {"=x"}, {"native"}, {"absent"}, {"odd", "odd=crun"}} {
		if _, err := FindRuntimes(t.Context(), bad); err == nil {
			t.Errorf("--runtime %q was taken", bad)
		}
	}
}

func TestFindRuntimesKeepsUsualFlags(t *testing.T) {
	rt, err := parseRuntime("runsc=sh")
	if err != nil || len(rt.Command) != 4 {
		t.Errorf("%v, %v: want the path of sh and runsc's three usual flags", rt, err)
	}
}

func quiet(t *testing.T) *session {
	return &session{
		options: Options{Rounds: 1, Parallel: 1, IdleMax: 1}, before: descendants(), ramps: map[string]ramp{},
		setting: Setting{Dir: t.TempDir(), Progress: func(string, ...any) {}},
	}
}

func TestForegroundTellsFirstOutputFromExit(t *testing.T) {
	s := quiet(t)
	o, err := s.foreground(t.Context(), []string{"sh", "-c", "echo one; sleep 0.2; echo two"})
	if err != nil {
		t.Fatal(err)
	}
	if o.text != "one\ntwo\n" || o.first <= 0 || o.exit-o.first < 150*time.Millisecond {
		t.Errorf("%+v: want both lines, the first well before the exit", o)
	}
	_, err = s.foreground(t.Context(), []string{"sh", "-c", "echo reason >&2; exit 3"})
	if err == nil || !strings.Contains(err.Error(), "exit status 3: reason") {
		t.Errorf("error %v, want the exit status and the reason", err)
	}
	if left, _ := os.ReadDir(s.setting.Dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDescendantsAndTheirMemory(t *testing.T) {
	s := quiet(t)
	cmd := exec.Command("sh", "-c", "sleep 100 & echo ready; wait")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	if _, err := io.ReadFull(stdout, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	pids := s.running()
	if len(pids) != 2 {
		t.Fatalf("%d processes below this one, want the shell and its child", len(pids))
	}
	memory, err := pss(pids)
	for end := time.Now().Add(10 * time.Second); err == nil && memory["sleep"] == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // the child has not got to sleep yet
		memory, err = pss(pids)
	}
	if err != nil {
		t.Fatal(err)
	}
	var total uint64
	for _, bytes := range memory {
		total += bytes
	}
	if memory["sleep"] == 0 || total < 50<<10 || total > 50<<20 {
		t.Errorf("they have %v, want some memory for each", memory)
	}
	for _, pid := range pids {
		p, err := os.FindProcess(pid)
		if err != nil {
			t.Fatal(err)
		}
		_ = p.Kill()
	}
	if err := s.waitGone(t.Context(), pids); err != nil {
		t.Error(err)
	}
}

func TestMeasureTakesTurnsAndLeavesOutWhatFails(t *testing.T) {
	s := quiet(t)
	s.options.Rounds, s.options.Warmup = 2, 1
	s.setting.Runtimes = []Runtime{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	r := newReport(s.options, s.setting)
	var turns []string
	g := group{name: "start", step: func(_ context.Context, _ *session, rt Runtime, note add) error {
		turns = append(turns, rt.Name)
		note("start.exit", float64(len(turns)))
		if rt.Name == "b" && len(turns) > 3 {
			return errors.New("no more")
		}
		return nil
	}}
	s.measure(t.Context(), g, r)
	if got := strings.Join(turns, " "); got != "a b c b c a c a" {
		t.Errorf("turns %s: want another first each round, and b only until it failed", got)
	}
	r.Finish()
	if got := r.find("start.exit", "c"); got == nil || !reflect.DeepEqual(got.Samples, []float64{5, 7}) {
		t.Errorf("c has %+v: want the samples after the warm-up", got)
	}
	if len(r.Failures) != 1 || r.Failures[0] != (Failure{"start", "b", "no more"}) {
		t.Errorf("failures %+v, want b's", r.Failures)
	}
}

func TestMeasureStopsWhenInterrupted(t *testing.T) {
	s := quiet(t)
	s.setting.Runtimes = []Runtime{{Name: "a"}, {Name: "b"}}
	ctx, cancel := context.WithCancel(t.Context())
	steps := 0
	s.measure(ctx, group{name: "start", step: func(context.Context, *session, Runtime, add) error {
		steps++
		cancel()
		return ctx.Err()
	}}, newReport(s.options, s.setting))
	if steps != 1 {
		t.Errorf("%d steps were taken, want none after the interrupt", steps)
	}
}

func TestPrepareRuntime(t *testing.T) {
	s := quiet(t)
	calls := filepath.Join(t.TempDir(), "calls")
	command := []string{"sh", "-c", `echo "$@" >>` + calls, "sh"}
	made := map[string]bool{}
	for _, rt := range []Runtime{
		{Name: "a", Command: command, Image: "image", Prepare: []string{"template", "build"}},
		{Name: "b", Command: command, Image: "image"},
		{Name: "c", Command: command},
	} {
		if err := s.prepareRuntime(t.Context(), rt, made); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(calls)
	if want := "template build\nimport " + s.path("rootfs") + " image\n"; err != nil || string(got) != want {
		t.Errorf("called %q, %v; want %q: the image once", got, err, want)
	}
	if err := s.prepareRuntime(t.Context(), Runtime{Command: []string{"false"}, Prepare: []string{"x"}}, made); err == nil {
		t.Error("a verb that failed was taken for done")
	}
}
