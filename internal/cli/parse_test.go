package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/state"
)

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]int64{
		"1": 1, "512b": 512, "100k": 100 << 10, "512m": 512 << 20, "512M": 512 << 20, "512MiB": 512 << 20,
		"1.5g": 3 << 29, "2tb": 2 << 40, "-1": -1,
	} {
		if got, err := parseBytes(in); err != nil || got != want {
			t.Errorf("parseBytes(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "0", "-2", "1x", "1mm", "1e30g", "ten", "1 m"} {
		if got, err := parseBytes(in); err == nil {
			t.Errorf("parseBytes(%q) = %d, want an error", in, got)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for in, want := range map[string]uint32{
		"0": 0, "9": 9, "KILL": 9, "SIGKILL": 9, "sigterm": 15, "term": 15, "RTMIN": 34, "SIGRTMIN+3": 37, "64": 64,
	} {
		if got, err := parseSignal(in); err != nil || got != want {
			t.Errorf("parseSignal(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "65", "-1", "NOSUCH", "RTMIN+99", "SIG"} {
		if got, err := parseSignal(in); err == nil {
			t.Errorf("parseSignal(%q) = %d, want an error", in, got)
		}
	}
}

func TestParseVolume(t *testing.T) {
	dir := t.TempDir()
	m, err := parseVolume(dir + ":/data:ro")
	if err != nil {
		t.Fatal(err)
	}
	if m.Source != dir || m.Destination != "/data" || m.Options[len(m.Options)-1] != "ro" {
		t.Errorf("mount = %+v, want %s at /data, read-only", m, dir)
	}
	for in, want := range map[string]string{
		dir: "HOST:CONTAINER", ":/data": "HOST:CONTAINER", dir + ":data": "must be absolute",
		dir + "/none:/data": "does not exist", dir + ":/data:rx": `unknown option "rx"`, dir + ":/a:ro:b": "HOST:CONTAINER",
	} {
		if _, err := parseVolume(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parseVolume(%q) = %v, want %q in the error", in, err, want)
		}
	}
}

func TestSplitCommand(t *testing.T) {
	for in, want := range map[string]string{`["/bin/sh","-c","a b"]`: "/bin/sh|-c|a b", "sleep 5": "sleep|5", "": ""} {
		if got := strings.Join(splitCommand(in), "|"); got != want {
			t.Errorf("splitCommand(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestLogIsWhatEnginesRead checks the form that go-runc and conmon parse: an object a line with level,
// msg and an RFC 3339 time.
func TestLogIsWhatEnginesRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	var stderr bytes.Buffer
	app := &App{err: &stderr}
	var err error
	if app.log, err = openLogger(path, "json", false); err != nil {
		t.Fatal(err)
	}
	app.log.write("debug", "not asked for")
	app.fail(os.ErrNotExist)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var entry struct {
		Level string    `json:"level"`
		Msg   string    `json:"msg"`
		Time  time.Time `json:"time"`
	}
	if err := json.Unmarshal(data, &entry); err != nil {
		t.Fatalf("log %q: %v", data, err)
	}
	if entry.Level != "error" || entry.Msg != os.ErrNotExist.Error() || time.Since(entry.Time) > time.Hour {
		t.Errorf("entry = %+v", entry)
	}
	if got := stderr.String(); got != "husk: file does not exist\n" {
		t.Errorf("stderr = %q, want one line", got)
	}
}

func TestPidFileHasDigitsOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	if err := writePidFile(path, 4711); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != "4711" {
		t.Errorf("pid file = %q, %v, want 4711 alone", data, err)
	}
}

// TestEveryVerbExplainsItself keeps help and manual complete.
func TestEveryVerbExplainsItself(t *testing.T) {
	for _, c := range Command("").Commands() {
		if c.Short == "" || c.RunE == nil && c.Run == nil && !c.HasSubCommands() {
			t.Errorf("%s: no description or no action", c.Name())
		}
		if !c.Hidden && c.Name() != "help" && c.Name() != "completion" && c.GroupID == "" {
			t.Errorf("%s is in no group of the help text", c.Name())
		}
	}
}

// TestStateOfDeadOwner has a record whose owner never lived: the OCI state must say stopped, with no pid.
func TestStateOfDeadOwner(t *testing.T) {
	s := ociState(state.Container{
		ID: "c", Status: state.Running, Host: state.Process{PID: 1, Start: 1}, Isolation: "emulated",
		Annotations: map[string]string{"a": "b"},
	})
	if s.Status != "stopped" || s.Pid != 0 {
		t.Errorf("state = %s with pid %d, want stopped with 0", s.Status, s.Pid)
	}
	if s.Annotations[isolationKey] != "emulated" || s.Annotations["a"] != "b" {
		t.Errorf("annotations = %v", s.Annotations)
	}
}
