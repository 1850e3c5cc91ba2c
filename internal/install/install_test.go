package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestApply installs twice and takes it back twice, into files that are there and that are not.
func TestApply(t *testing.T) {
	const user = "# mine\nversion = 3\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = \"native\"\n"
	cases := []struct {
		name, engine, old string // "" for no file
		want              string // in the file after
	}{
		{"containerd, no file", "containerd", "", `[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.husk]`},
		{"containerd 1.6", "containerd", "version = 2\n", `[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.husk]`},
		{"containerd 2", "containerd", user, `[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.husk]`},
		{"containerd 1.6, default runtime", "containerd", "version = 2\n", ".runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n"},
		{"crio", "crio", "", `runtime_path = "/opt/husk"`},
		{"podman", "podman", "", `husk = ["/opt/husk"]`},
		{"docker, no file", "docker", "", `"path": "/opt/husk"`},
		{"docker", "docker", "{\n  \"debug\": true,\n  \"runtimes\": {\n    \"other\": {\n      \"path\": \"/o\"\n    }\n  }\n}\n", `"path": "/opt/husk"`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			etc := t.TempDir()
			engine, err := Find(c.engine)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(etc, engine.file)
			if c.old != "" {
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(c.old), 0o640); err != nil {
					t.Fatal(err)
				}
			}
			for i, want := range []bool{true, false} {
				if _, changed, err := engine.Apply(etc, "/opt/husk", false); err != nil || changed != want {
					t.Errorf("install %d: changed %v and %v, want %v", i, changed, err, want)
				}
			}
			text, err := os.ReadFile(file)
			if err != nil || !strings.Contains(string(text), c.want) {
				t.Errorf("the file says %q and %v, want %q in it", text, err, c.want)
			}
			for i, want := range []bool{true, false} {
				if _, changed, err := engine.Apply(etc, "/opt/husk", true); err != nil || changed != want {
					t.Errorf("uninstall %d: changed %v and %v, want %v", i, changed, err, want)
				}
			}
			text, err = os.ReadFile(file)
			if c.old == "" && !os.IsNotExist(err) || c.old != "" && string(text) != c.old {
				t.Errorf("afterwards the file says %q and %v, want %q", text, err, c.old)
			}
			if info, err := os.Stat(file); err == nil && info.Mode().Perm() != 0o640 {
				t.Errorf("the file's mode is %v now", info.Mode())
			}
		})
	}
}

// TestSandboxAPI has containerd make pods by its Sandbox API, and changes its mind.
func TestSandboxAPI(t *testing.T) {
	const line = "  sandboxer = \"shim\"\n"
	plain, err := Find("containerd")
	if err != nil {
		t.Fatal(err)
	}
	engine, err := plain.WithSandboxAPI()
	if err != nil {
		t.Fatal(err)
	}
	etc := t.TempDir()
	for _, c := range []struct {
		engine Engine
		undo   bool
		want   bool // the line
	}{{engine, false, true}, {plain, false, false}, {engine, false, true}, {plain, true, false}} {
		file, _, err := c.engine.Apply(etc, "/opt/husk", c.undo)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(file)
		if c.undo != os.IsNotExist(err) || strings.Contains(string(text), line) != c.want {
			t.Errorf("%+v: the file is %q, %v", c, text, err)
		}
	}
	if _, err := engine.add([]byte("version = 2\n"), ""); err == nil || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("a file of containerd 1.6: %v", err)
	}
	docker, err := Find("docker")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := docker.WithSandboxAPI(); err == nil {
		t.Error("Docker was given containerd's Sandbox API")
	}
}

// TestRefuses names files that husk install must not touch.
func TestRefuses(t *testing.T) {
	for _, c := range []struct{ name, engine, old, want string }{
		{"old form", "containerd", "[plugins.cri]\n", "migrate"},
		{"another's runtime", "containerd", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.husk]\n", "not of husk install"},
		{"cut block", "containerd", "version = 2\n" + blockBegin, "is missing"},
		{"no line end", "containerd", "version = 2", "line end"},
		{"no JSON", "docker", "debug", "read JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			engine, err := Find(c.engine)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := engine.add([]byte(c.old), "/opt/husk"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	if _, err := Find("rkt"); err == nil {
		t.Error("an engine that is not known was found")
	}
}
