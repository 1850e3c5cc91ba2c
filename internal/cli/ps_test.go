package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/state"
)

// psApp has four containers, made one after the other: c runs (this process is its owner), a and b have exited, d was left by
// an owner that died.
func psApp(t *testing.T) *App {
	t.Helper()
	dir := t.TempDir()
	a := &App{err: os.Stderr, log: &logger{}, config: config.Config{RunDir: dir + "/run", DataDir: dir + "/data"}}
	self, err := state.Self("owner")
	if err != nil {
		t.Fatal(err)
	}
	made := time.Now().Add(-time.Hour)
	for i, c := range []state.Container{
		{ID: "c", Name: "web-1", Status: state.Running, Owner: self, Args: []string{"sh", "-c", strings.Repeat("x", 50)}},
		{ID: "a", Name: "web-2", Status: state.Stopped, ExitStatus: 3, ExitedAt: time.Now()},
		{ID: "b", Status: state.Stopped, ExitedAt: time.Now()},
		{ID: "d", Status: state.Running, Owner: state.Process{PID: self.PID, Start: self.Start + 1}},
	} {
		c.Created = made.Add(time.Duration(i) * time.Minute)
		d, err := state.Create(a.config.RunDir, c.ID)
		if err != nil {
			t.Fatal(err)
		}
		unlock, err := d.Lock(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Save(c); err != nil {
			t.Fatal(err)
		}
		unlock()
		if err := os.WriteFile(d.Path(specFile), []byte(`{"ociVersion":"1.0.0","process":{"cwd":"/","args":["x"]},"root":{"path":"x"}}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

// ps runs the verb with args, separated by spaces.
func ps(a *App, args string) (string, error) {
	var out bytes.Buffer
	a.out = &out
	cmd := a.psCommand()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs(strings.Fields(args))
	err := cmd.Execute()
	return out.String(), err
}

func TestPsChooses(t *testing.T) {
	a := psApp(t)
	for args, want := range map[string]string{
		"-q":                                     "c",
		"-q --no-trunc":                          "c",
		"-aq":                                    "a b c d",
		"-q -l":                                  "d",
		"-q -n 3":                                "d b a",
		"-q --last 9":                            "d b a c",
		"-aq -f id=a":                            "a",
		"-aq -f id=a -f id=b":                    "a b",
		"-aq -f name=web":                        "a c",
		"-aq -f name=^web-2$":                    "a",
		"-aq -f name=b":                          "a b c", // web, and the id of one without a name
		"-q -f name=web":                         "c",
		"-q -f status=running":                   "c",
		"-q -f status=exited":                    "a b d",
		"-q -f status=stopped -f status=running": "a b c d",
		"-q -f status=exited -f name=web":        "a",
		"-q -f exited=3":                         "a",
		"-q -f exited=137":                       "d", // its VM died under it
		"-q -f exited=3 -f exited=0":             "a b",
		"-q -n 1 -f name=web":                    "a",
		"-aq -f ancestor=no-such-image":          "",
	} {
		got, err := ps(a, args)
		if err != nil || strings.Join(strings.Fields(got), " ") != want {
			t.Errorf("ps %s printed %q (%v), want %s", args, got, err, want)
		}
	}
}

func TestPsFormats(t *testing.T) {
	a := psApp(t)
	for args, want := range map[string]string{
		"--format {{.Id}}={{.State.Status}} -a": "a=exited\nb=exited\nc=running\nd=exited\n",
		"--format {{json&.State.ExitCode}} -l":  "137\n",
		"--format {{upper&.Name}}":              "WEB-1\n",
	} {
		var out bytes.Buffer
		a.out = &out
		cmd := a.psCommand()
		list := strings.Fields(args)
		for i := range list {
			list[i] = strings.ReplaceAll(list[i], "&", " ")
		}
		cmd.SetArgs(list)
		if err := cmd.Execute(); err != nil || out.String() != want {
			t.Errorf("ps %s printed %q (%v), want %q", args, out.String(), err, want)
		}
	}
	for _, args := range []string{"--format json -a", "-f json -a"} {
		out, err := ps(a, args)
		var list []listed
		if e := json.Unmarshal([]byte(out), &list); err != nil || e != nil || len(list) != 4 || list[2].Status != "running" {
			t.Errorf("ps %s printed %q (%v, %v)", args, out, err, e)
		}
	}
	short, _ := ps(a, "")
	whole, _ := ps(a, "--no-trunc")
	if strings.Contains(short, strings.Repeat("x", 50)) || !strings.Contains(whole, strings.Repeat("x", 50)) {
		t.Errorf("commands: %q, and with --no-trunc %q", short, whole)
	}
}

func TestPsRefuses(t *testing.T) {
	a := psApp(t)
	for args, word := range map[string]string{
		"-f label=x":         "unknown; there are id=",
		"-f running":         "must be one of id=",
		"-f status=":         "must be one of id=",
		"-f status=lost":     "must be creating",
		"-f exited=x":        "exit code",
		"-f name=(":          "name=(",
		"--format xml":       "must be table, json or a Go template",
		"-n 0":               "at least 1",
		"--format {{":        "--format",
		"--format {{.Nope}}": "--format",
		"-l -n 2":            "last",
		"-q --format json":   "quiet",
		"-q c":               "--quiet: is for the list",
		"-f name=x c":        "--filter: is for the list",
		"--format {{.Id}} c": "processes are printed as table or json",
	} {
		if out, err := ps(a, args); err == nil || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "\n") {
			t.Errorf("ps %s printed %q and failed with %v, want %q", args, out, err, word)
		}
	}
	cmd := a.psCommand()
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	cmd.SetArgs([]string{"--format", "table {{.Id}}"})
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), "without the word table") {
		t.Errorf("a template after the word table: %v", err)
	}
}
