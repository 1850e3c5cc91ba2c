package ocispec

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// bundle writes a bundle whose configuration is the example after change.
func bundle(t testing.TB, change func(*specs.Spec)) string {
	t.Helper()
	dir := t.TempDir()
	spec := Example(false, 0, 0)
	if change != nil {
		change(&spec)
	}
	data, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestLoad(t *testing.T) {
	dir := bundle(t, nil)
	b, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := filepath.EvalSymlinks(filepath.Join(dir, "rootfs"))
	if b.Rootfs != want || b.Dir != dir || b.Spec.Process.Args[0] != "sh" {
		t.Errorf("Load = %+v", b)
	}
}

func TestLoadRefuses(t *testing.T) {
	cases := []struct {
		name   string
		change func(dir string) error
		want   string
	}{
		{"no config.json", func(dir string) error { return os.Remove(filepath.Join(dir, "config.json")) }, "has no config.json"},
		{"a directory", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "config.json")), os.Mkdir(filepath.Join(dir, "config.json"), 0o700))
		}, "not a regular file"},
		{"huge", func(dir string) error { return os.Truncate(filepath.Join(dir, "config.json"), 100<<20) }, "longer than 10 MiB"},
		{"empty", func(dir string) error { return os.Truncate(filepath.Join(dir, "config.json"), 0) }, "line 1, column 0: unexpected end"},
		{"no root", func(dir string) error { return os.Remove(filepath.Join(dir, "rootfs")) }, "does not exist"},
		{"root is a file", func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "rootfs")), os.WriteFile(filepath.Join(dir, "rootfs"), nil, 0o600))
		}, "is not a directory"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := bundle(t, nil)
			if err := c.change(dir); err != nil {
				t.Fatal(err)
			}
			_, err := Load(dir)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("Load: %v, want one line with %q", err, c.want)
			}
		})
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of a missing bundle: %v", err)
	}
}

func TestLoadOfHugeFileAllocatesLittle(t *testing.T) {
	dir := bundle(t, nil)
	if err := os.Truncate(filepath.Join(dir, "config.json"), 100<<20); err != nil {
		t.Fatal(err)
	}
	result := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = Load(dir) // refused, as TestLoadRefuses shows
		}
	})
	if got := result.AllocedBytesPerOp(); got > 64<<10 {
		t.Errorf("refusing a file of 100 MiB allocates %d bytes", got)
	}
}

func TestParsePlacesErrors(t *testing.T) {
	for _, c := range []struct{ data, want string }{
		{"", "line 1, column 0: unexpected end of JSON input"},
		{"{\n  \"ociVersion\": 1.0.2\n}", "line 2, column 20: invalid character '.'"},
		{"{\"ociVersion\":\"1.0.2\",\n\"process\":{\"args\":7}}", "line 2, column 19: json: cannot unmarshal number"},
		{"[]", "line 1, column 1: json: cannot unmarshal array"},
		{"{} {}", "line 1, column 4: invalid character '{' after top-level value"},
		{`{"ociVersion":"1.0.2","annotations":{"a":"` + strings.Repeat("x", MaxSpec) + `"}}`, "without white space, at most"},
		{strings.Repeat(" ", MaxFile+1), "bytes long, at most"},
	} {
		_, err := Parse([]byte(c.data))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Parse(%.40q): %v, want %q", c.data, err, c.want)
		}
	}
}

func TestWhiteSpaceDoesNotCount(t *testing.T) {
	data, err := json.Marshal(Example(false, 0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(append(data, strings.Repeat("\n", MaxSpec)...)); err != nil {
		t.Errorf("Parse with %d bytes of white space: %v", MaxSpec, err)
	}
}

func TestExamplePasses(t *testing.T) {
	for _, rootless := range []bool{false, true} {
		data, err := json.Marshal(Example(rootless, 1000, 1000))
		if err != nil {
			t.Fatal(err)
		}
		b, err := FromSpec(t.TempDir(), data)
		if err != nil || len(b.Warnings) != 0 {
			t.Errorf("rootless %v: %v, warnings %q", rootless, err, b.Warnings)
		}
	}
}

func FuzzParse(f *testing.F) {
	data, err := json.Marshal(Example(true, 1, 2))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"ociVersion":"1.0.2","process":{"args":["a"],"cwd":"/"},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}}}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := FromSpec(dir, data)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("message of several lines: %q", err)
			}
			return
		}
		if b.Spec.Process == nil || len(b.Spec.Process.Args) == 0 {
			t.Error("took a configuration without a process")
		}
		p, err := MakePlan(b, PlanOptions{ShareDir: "/share", Name: "c", MemoryDir: "/guest/memory"})
		if err != nil {
			return
		}
		for _, s := range p.Shares {
			for _, kernel := range []string{"/proc", "/sys", "/dev"} {
				if s.HostPath == kernel || below(s.HostPath, kernel) && !below(s.HostPath, "/dev/shm") {
					t.Errorf("shares %s", s.HostPath)
				}
			}
		}
	})
}
