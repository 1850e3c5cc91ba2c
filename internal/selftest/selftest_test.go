package selftest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/check"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/sys"
)

// fake is a setting with a husk that is a shell script: $verb is what it is called with.
func fake(t *testing.T, script string) Setting {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", t.TempDir())
	binary := filepath.Join(dir, "husk")
	text := "#!/bin/sh\nverb=$3; case $verb in " + script + "*) echo 'husk: told: the file service has ended' >&2; exit 3;;\nesac\n"
	if err := os.WriteFile(binary, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.DataDir, c.RunDir = filepath.Join(dir, "there", "data"), filepath.Join(dir, "there", "run")
	ready := check.Report{Ready: true, Isolation: "emulated", Items: []check.Item{
		{Name: "kernel", Status: check.OK, Value: "6.18"}, {Name: "isolation", Status: check.Warning, Value: "emulated", Why: "slow"},
		{Name: "qemu", Status: check.OK, Value: "7.2, /usr/bin/qemu"}, {Name: "virtiofsd", Status: check.OK, Value: "1.13 (Rust), /usr/lib/virtiofsd"},
		{Name: "guest-kernel", Status: check.OK, Value: "6.1 (husk), /guest"},
	}}
	return Setting{
		Binary: binary, Config: c, ConfigFile: "/my.toml", Version: "1.2", User: "root", Step: func(Result) {}, Check: func() check.Report { return ready },
		gone: 2 * time.Second,
	}
}

// works is a husk that can import, and nothing else.
const works = `import|delete) ;; images) echo husk-selftest;; `

var patient = Options{Timeout: 5 * time.Minute, StepTimeout: 5 * time.Minute}

// all runs steps and checks that nothing is left.
func all(ctx context.Context, t *testing.T, o Options, at Setting, steps []step) *Report {
	t.Helper()
	r, err := run(ctx, o, at, steps)
	if err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Dir(at.Config.DataDir)) {
		t.Errorf("directories are left that were not there before: %s", filepath.Dir(at.Config.DataDir))
	}
	return r
}

// ends are the ends of all steps, a word each.
func ends(r *Report) (list []string) {
	for _, s := range r.Steps {
		list = append(list, s.Name+" "+string(s.Status))
	}
	return list
}

func result(t *testing.T, r *Report, name string) Result {
	t.Helper()
	for _, s := range r.Steps {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no step %s in %v", name, ends(r))
	return Result{}
}

// table is one with a step of each end.
var table = []step{
	steps[0], steps[1],
	{name: "good", what: "goes well", try: func(ctx context.Context, s *session) error { _, err := s.husk(ctx, "images"); return err }},
	{name: "bad", what: "fails", try: func(ctx context.Context, s *session) error { _, err := s.husk(ctx, "nonsense"); return err }},
	{name: "on-bad", what: "needs it", needs: []string{"bad"}},
	{name: "on-on-bad", what: "needs that", needs: []string{"on-bad"}},
	{name: "elsewhere", what: "not here", try: func(context.Context, *session) error { return skip{why: "no such thing here", fix: "buy one"} }},
	{name: "last", what: "goes well", try: func(context.Context, *session) error { return nil }},
}

func TestRun(t *testing.T) {
	at := fake(t, works)
	var told []string
	at.Step = func(r Result) { told = append(told, r.Name+" "+string(r.Status)) }
	r := all(t.Context(), t, patient, at, table)
	want := []string{"check ok", "image ok", "good ok", "bad failed", "on-bad skipped", "on-on-bad skipped", "elsewhere skipped", "last ok"}
	if !slices.Equal(ends(r), want) || !slices.Equal(told, want) {
		t.Errorf("ends are %q, told were %q, want %q", ends(r), told, want)
	}
	bad := result(t, r, "bad")
	if bad.Why != "husk nonsense: exit code 3, want 0: told: the file service has ended" || !strings.Contains(bad.Fix, "virtiofsd") || !strings.Contains(bad.Fix, "/my.toml") {
		t.Errorf("why %q, fix %q", bad.Why, bad.Fix)
	}
	for _, words := range []string{"$ husk nonsense\n", "husk: told", "exit status 3"} {
		if !strings.Contains(bad.Output, words) {
			t.Errorf("the output %q lacks %q", bad.Output, words)
		}
	}
	log, err := os.ReadFile(r.Log)
	if err != nil || !strings.Contains(string(log), bad.Output) || strings.Contains(string(log), "images") {
		t.Errorf("the log is %q (%v), want what the step did that failed, and of no other", log, err)
	}
	if r.Verdict != NotPassed {
		t.Errorf("the verdict is %q", r.Verdict)
	}
	want = []string{"1.2", "7.2", "1.13 (Rust)", "6.18", "6.1 (husk)", "tcg", "emulated", "root"}
	v := r.Versions
	if got := []string{v.Husk, v.QEMU, v.Virtiofsd, v.HostKernel, v.GuestKernel, r.Accel, r.Isolation, r.User}; !slices.Equal(got, want) {
		t.Errorf("versions and so on are %q, want %q", got, want)
	}
	if !strings.Contains(r.Configuration, at.Config.DataDir) {
		t.Errorf("the configuration is %q", r.Configuration)
	}
}

// TestJSON: scripts read these keys.
func TestJSON(t *testing.T) {
	r := all(t.Context(), t, patient, fake(t, works), table)
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var top map[string]json.RawMessage
	var steps []map[string]any
	if err := errors.Join(json.Unmarshal(data, &top), json.Unmarshal(top["steps"], &steps)); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"format", "verdict", "began", "seconds", "versions", "accel", "isolation", "user", "configuration", "steps", "check", "log"} {
		if _, found := top[key]; !found {
			t.Errorf("no key %q in %s", key, data)
		}
	}
	for _, key := range []string{"name", "what", "status", "seconds", "why", "fix", "output"} {
		if _, found := steps[3][key]; !found {
			t.Errorf("no key %q of the step that failed in %v", key, steps[3])
		}
	}
	if string(top["format"]) != "1" {
		t.Errorf("the format is %s", top["format"])
	}
}

func TestText(t *testing.T) {
	r := all(t.Context(), t, patient, fake(t, works), table)
	var out bytes.Buffer
	if err := r.Text(&out); err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{
		"\nfailed: bad: husk nonsense: exit code 3, want 0: told: the file service has ended.\n    have /my.toml name no virtiofsd", "\nskipped: elsewhere: no such thing here.\n    buy one\n", "QEMU                 7.2\n",
		"CHECK ", "\nFailed: bad. 4 steps ok, 1 failed, 3 skipped, in 0 s.\nLog: " + r.Log + "\n",
	} {
		if !strings.Contains(out.String(), words) {
			t.Errorf("no %q in:\n%s", words, out.String())
		}
	}
	line := Result{Name: "boot", What: "boots", Status: OK, Seconds: 3.21}.Line()
	if want := "boot             ok            3.2  boots"; line != want {
		t.Errorf("the line of a step is %q, want %q", line, want)
	}
}

// TestImageFails: what has no place is told so, and nothing else is tried.
func TestImageFails(t *testing.T) {
	at := fake(t, `import) echo "husk: write layer: no space left on device" >&2; exit 1;; `)
	r := all(t.Context(), t, patient, at, steps)
	if got := result(t, r, "image"); got.Status != Failed || !strings.Contains(got.Fix, "free some space below "+at.Config.DataDir) {
		t.Errorf("the step image: %+v", got)
	}
	for _, step := range r.Steps[2:] {
		if step.Status != Skipped {
			t.Errorf("%s is %s, want it skipped", step.Name, step.Status)
		}
	}
	at = fake(t, works)
	at.Config.DataDir = "/proc/nothing"
	r, err := run(t.Context(), patient, at, steps)
	if err != nil {
		t.Fatal(err)
	}
	if got := result(t, r, "image"); got.Status != Failed || !strings.Contains(got.Fix, "set data_dir") {
		t.Errorf("the step image: %+v", got)
	}
}

// TestCheckFails: what check says is missing is what mends the steps that need it.
func TestCheckFails(t *testing.T) {
	at := fake(t, works+`run) echo "husk: no QEMU" >&2; exit 125;; `)
	at.Check = func() check.Report {
		return check.Report{Items: []check.Item{{Name: "qemu", Status: check.Missing, Value: "/x not found", Fix: "set qemu in " + config.DefaultFile}}}
	}
	r := all(t.Context(), t, patient, at, steps)
	for _, name := range []string{"check", "boot"} {
		if got := result(t, r, name); got.Status != Failed || got.Fix != "set qemu in /my.toml" {
			t.Errorf("%+v", got)
		}
	}
	if got := result(t, r, "check"); got.Why != "missing: qemu: /x not found" {
		t.Errorf("why: %q", got.Why)
	}
}

func TestTimeIsUp(t *testing.T) {
	hang := step{name: "hang", try: func(ctx context.Context, s *session) error { _, err := s.husk(ctx, "hang"); return err }}
	after := step{name: "after", try: func(context.Context, *session) error { return nil }}
	at := fake(t, works+`hang) exec sleep 1000;; `)
	r := all(t.Context(), t, Options{Timeout: time.Hour, StepTimeout: 300 * time.Millisecond}, at, []step{hangDirs, hang, after})
	if got := result(t, r, "hang"); got.Status != Failed || !strings.Contains(got.Why, "no end within 300ms") || !strings.Contains(got.Fix, "--step-timeout") {
		t.Errorf("%+v", got)
	}
	if got := result(t, r, "after"); got.Status != OK {
		t.Errorf("%+v", got)
	}
	r = all(t.Context(), t, Options{Timeout: 300 * time.Millisecond, StepTimeout: time.Hour}, at, []step{hangDirs, hang, after})
	if got := result(t, r, "after"); got.Status != Skipped || r.Verdict != NotPassed {
		t.Errorf("%+v, verdict %s", got, r.Verdict)
	}
}

// hangDirs makes directories and needs no time for it.
var hangDirs = step{name: "image", try: func(_ context.Context, s *session) error { return s.makeDirs(context.Background()) }}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	at := fake(t, works+`hang) exec sleep 1000;; `)
	hang := step{name: "hang", try: func(ctx context.Context, s *session) error {
		time.AfterFunc(100*time.Millisecond, cancel)
		_, err := s.husk(ctx, "hang")
		return err
	}}
	r := all(ctx, t, patient, at, []step{steps[1], hang, steps[1]})
	if r.Verdict != Interrupted || !slices.Equal(ends(r), []string{"image ok"}) || r.Log != "" {
		t.Errorf("verdict %s, steps %v, log %q", r.Verdict, ends(r), r.Log)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("left among the temporary files: %v (%v)", left, err)
	}
}

// TestLeftBehind: a step that leaves something has failed, and what it left is removed.
func TestLeftBehind(t *testing.T) {
	for name, c := range map[string]struct{ script, left string }{
		"process": {`leave) sleep 1000 & ;; `, "process "},
		"files":   {`leave) mkdir -p "$(sed -n 's/^run_dir = "\(.*\)"/\1/p' "$2")/a-container";; delete) [ $4 != --force ] || rmdir "$(sed -n 's/^run_dir = "\(.*\)"/\1/p' "$2")/$5";; `, "a-container"},
	} {
		t.Run(name, func(t *testing.T) {
			leave := step{name: "leave", try: func(ctx context.Context, s *session) error { _, err := s.husk(ctx, "leave"); return err }}
			r := all(t.Context(), t, patient, fake(t, c.script+works), []step{hangDirs, leave})
			if got := result(t, r, "leave"); got.Status != Failed || !strings.Contains(got.Why, "left behind: ") || !strings.Contains(got.Why, c.left) {
				t.Errorf("%+v", got)
			}
			if pids := children(); len(pids) > 0 {
				t.Errorf("processes %v run", pids)
			}
		})
	}
}

// TestSweep: what a self-test that was killed left is removed by the next, and what one that runs needs is not.
func TestSweep(t *testing.T) {
	at := fake(t, works)
	data := at.Config.DataDir
	lives := filepath.Join(data, mark+"lives")
	var locks []string
	foreign := filepath.Join(data, mark+"foreign") // anybody can have made it
	young, old := filepath.Join(data, mark+"young"), filepath.Join(data, mark+"old")
	for _, work := range []string{lives, filepath.Join(data, mark+"killed"), foreign, young, old} {
		for _, dir := range []string{filepath.Join(work, "data", "images"), filepath.Join(at.Config.RunDir, filepath.Base(work), "run")} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		locks = append(locks, filepath.Join(work, lockFile))
		if err := os.WriteFile(locks[len(locks)-1], nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := time.Now().Add(-2 * unlocked)
	err := errors.Join(os.Chmod(foreign, 0o777), os.Remove(locks[3]), os.Remove(locks[4]), os.Chtimes(old, before, before))
	if err != nil {
		t.Fatal(err)
	}
	held, err := os.Open(locks[0])
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if taken, err := sys.TryLock(held); !taken || err != nil {
		t.Fatal(taken, err)
	}
	if _, err := run(t.Context(), patient, at, []step{steps[1]}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(data)
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimPrefix(e.Name(), mark))
	}
	if want := []string{"foreign", "lives", "young"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("left are %q (%v), want %q", names, err, want)
	}
	for name, left := range map[string]bool{"lives": true, "foreign": true, "killed": false} {
		if dir := filepath.Join(at.Config.RunDir, mark+name); exists(dir) != left {
			t.Errorf("%s is there: %v, want %v", dir, !left, left)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		o  Options
		ok bool
	}{
		{patient, true},
		{Options{Steps: []string{"boot", "kill", "kill-owner"}, Timeout: 1, StepTimeout: 1}, true},
		{Options{Steps: []string{"boo"}, Timeout: 1, StepTimeout: 1}, false},
		{Options{Timeout: 1}, false},
		{Options{StepTimeout: 1}, false},
	} {
		if err := c.o.Check(); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
	var chosen []string
	for _, s := range steps {
		if (Options{Steps: []string{"kill", "exec"}}).has(s) {
			chosen = append(chosen, s.name)
		}
	}
	if want := []string{"check", "image", "exec", "kill-qemu", "kill-virtiofsd", "kill-owner", "kill-attend"}; !slices.Equal(chosen, want) {
		t.Errorf("chosen are %q, want %q", chosen, want)
	}
	names, what := Steps()
	for i, s := range steps {
		if names[i] != s.name || what[i] == "" || s.try == nil {
			t.Errorf("step %d: %+v", i, s)
		}
		for _, need := range s.needs {
			if at := slices.Index(names, need); at < 0 || at >= i {
				t.Errorf("%s needs %s, which does not come before it", s.name, need)
			}
		}
	}
}

// TestReaper: a process that this one has been left with is reaped, and its exit code is known.
func TestReaper(t *testing.T) {
	if err := sys.BecomeSubreaper(); err != nil {
		t.Fatal(err)
	}
	r := newReaper()
	defer r.close()
	s := &session{at: fake(t, `leave) sleep 1000 & echo $!; ;; `), dirs: &dirs{work: t.TempDir()}, reaper: r}
	if err := os.Mkdir(s.dirs.path("out"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := s.husk(t.Context(), "leave")
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var code int
	err = until(t.Context(), "it is reaped", func() (known bool, _ error) { code, known = r.code(pid); return known, nil })
	if err != nil || code != 137 {
		t.Errorf("exit code %d (%v), want 137", code, err)
	}
}
