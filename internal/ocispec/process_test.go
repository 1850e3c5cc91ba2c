package ocispec

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func base() specs.Process {
	return specs.Process{
		Terminal: true, ConsoleSize: &specs.Box{Height: 1, Width: 2},
		Args: []string{"init"}, Cwd: "/", Env: []string{"PATH=/bin", "A=1"},
		User:         specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{7}},
		Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}, Effective: []string{"CAP_KILL"}},
	}
}

func TestExecProcess(t *testing.T) {
	for _, c := range []struct {
		name  string
		flags ExecFlags
		want  func(*specs.Process)
	}{
		{"nothing", ExecFlags{}, func(*specs.Process) {}},
		{"args", ExecFlags{Args: []string{"sh", "-c", "x"}}, func(p *specs.Process) { p.Args = []string{"sh", "-c", "x"} }},
		{"cwd", ExecFlags{Cwd: "/tmp"}, func(p *specs.Process) { p.Cwd = "/tmp" }},
		{"terminal", ExecFlags{Terminal: true, Rows: 24, Columns: 80}, func(p *specs.Process) { p.Terminal, p.ConsoleSize = true, &specs.Box{Height: 24, Width: 80} }},
		{"env", ExecFlags{Env: []string{"B=2", "A=3", "B=4", "C="}}, func(p *specs.Process) { p.Env = []string{"PATH=/bin", "A=3", "B=4", "C="} }},
		{"uid", ExecFlags{User: "10"}, func(p *specs.Process) { p.User.UID = 10 }},
		{"uid and gid", ExecFlags{User: "10:20"}, func(p *specs.Process) { p.User.UID, p.User.GID = 10, 20 }},
		{"groups", ExecFlags{AdditionalGIDs: []uint32{8}}, func(p *specs.Process) { p.User.AdditionalGids = []uint32{7, 8} }},
		{"capabilities", ExecFlags{Capabilities: []string{"CAP_KILL", "net_raw"}}, func(p *specs.Process) {
			two := []string{"CAP_KILL", "CAP_NET_RAW"}
			p.Capabilities = &specs.LinuxCapabilities{Bounding: two, Effective: two, Permitted: two}
		}},
		{"no new privileges", ExecFlags{NoNewPrivileges: true}, func(p *specs.Process) { p.NoNewPrivileges = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := base()
			want.Terminal, want.ConsoleSize = false, nil
			c.want(&want)
			of := base()
			got, err := ExecProcess(of, c.flags)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(normal(got), normal(want)) {
				t.Errorf("got %+v %+v\nwant %+v %+v", got, got.Capabilities, want, want.Capabilities)
			}
			if !reflect.DeepEqual(of, base()) {
				t.Errorf("the base was changed to %+v", of)
			}
		})
	}
}

// normal makes empty and missing lists equal.
func normal(p specs.Process) specs.Process {
	if p.Capabilities != nil {
		c := *p.Capabilities
		for _, list := range capabilityLists(&c) {
			if len(*list) == 0 {
				*list = nil
			}
		}
		p.Capabilities = &c
	}
	return p
}

func TestExecProcessRefuses(t *testing.T) {
	for want, flags := range map[string]ExecFlags{
		`user "root"`:           {User: "root"},
		`user "1:"`:             {User: "1:"},
		`user "-1"`:             {User: "-1"},
		`user "4294967296"`:     {User: "4294967296"},
		`environment "A"`:       {Env: []string{"A"}},
		`environment "=1"`:      {Env: []string{"=1"}},
		`capability "FUN"`:      {Capabilities: []string{"FUN"}},
		`cwd "tmp"`:             {Cwd: "tmp"},
		"process.args is empty": {Args: []string{""}},
	} {
		if _, err := ExecProcess(base(), flags); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", flags, err, want)
		}
	}
}

func TestLoadProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "process.json")
	for content, want := range map[string]string{
		`{"args":["a"],"cwd":"/"}`: "",
		`{"args":["a"],"cwd":"/","capabilities":{"bounding":["CAP_FUN"]},"selinuxLabel":"l"}`: "",
		`{"cwd":"/"}`: "process.args is empty", `{"args":["a"]}`: "process.cwd is missing", "{\n": "line 2, column 0",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := LoadProcess(path)
		if want == "" {
			if err != nil || p.Args[0] != "a" || p.SelinuxLabel != "" || len(unknownCapabilities(p.Capabilities)) != 0 {
				t.Errorf("%s: %+v, %v", content, p, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", content, err, want)
		}
	}
	if _, err := LoadProcess("/dev/zero"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a device: %v", err)
	}
}

func FuzzParseProcess(f *testing.F) {
	f.Add([]byte(`{"args":["a"],"cwd":"/","user":{"uid":1},"rlimits":[{"type":"RLIMIT_AS"}]}`), "1:2", "A=1", "kill")
	f.Fuzz(func(t *testing.T, data []byte, user, env, capability string) {
		p, err := ParseProcess(data)
		if err != nil {
			return
		}
		q, err := ExecProcess(p, ExecFlags{User: user, Env: []string{env}, Capabilities: []string{capability}})
		if err == nil && CheckProcess(&q) != nil {
			t.Errorf("made a process that does not pass: %+v", q)
		}
	})
}
