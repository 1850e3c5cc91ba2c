package spec

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
)

// changes are what every test makes, with one container "first" to join.
func changes() Changes {
	return Changes{
		Root: "/run/root", Cgroup: "/husk/x",
		Join: func(kind, id string) (string, error) {
			switch id {
			case "first":
				return "/proc/42/ns/" + kind, nil
			case "":
				return "/proc/7/ns/" + kind, nil
			}
			return "", errors.New("no container " + id)
		},
	}
}

func decode(t *testing.T, text []byte) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

func TestRewrite(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
		change         func(*Changes)
	}{
		{"least", `{"process":{"args":["a"]}}`,
			`{"process":{"args":["a"],"terminal":false},"root":{"path":"/run/root"},
			  "linux":{"cgroupsPath":"/husk/x","namespaces":[]}}`, nil},
		{"unknown members stay",
			`{"later":{"a":[1]},"process":{"args":["a"],"later":1.5},"root":{"readonly":true,"path":"/h"},"linux":{"seccomp":{"x":"y"},"later":null}}`,
			`{"later":{"a":[1]},"process":{"args":["a"],"later":1.5,"terminal":false},"root":{"readonly":true,"path":"/run/root"},
			  "linux":{"seccomp":{"x":"y"},"later":null,"cgroupsPath":"/husk/x","namespaces":[]}}`, nil},
		{"namespaces",
			`{"process":{"args":["a"]},"linux":{"namespaces":[{"type":"mount"},{"type":"network","path":"/run/netns/n"},
			  {"type":"pid","path":"husk:first"},{"type":"ipc","path":"/proc/9/ns/ipc"},{"type":"cgroup","path":"/proc/9/ns/cgroup"}]}}`,
			`{"process":{"args":["a"],"terminal":false},"root":{"path":"/run/root"},"linux":{"cgroupsPath":"/husk/x","namespaces":[
			  {"type":"mount"},{"type":"network","path":"/proc/1/ns/net"},{"type":"pid","path":"/proc/42/ns/pid"},
			  {"type":"ipc","path":"/proc/7/ns/ipc"},{"type":"cgroup"}]}}`, nil},
		{"hooks", `{"process":{"args":["a"]},"hooks":{"prestart":[{"path":"/p"}],"startContainer":[{"path":"/s"}],"poststop":[{"path":"/q"}]}}`,
			`{"process":{"args":["a"],"terminal":false},"root":{"path":"/run/root"},"hooks":{"startContainer":[{"path":"/s"}]},
			  "linux":{"cgroupsPath":"/husk/x","namespaces":[]}}`, nil},
		{"only the host's hooks", `{"process":{"args":["a"]},"hooks":{"poststop":[{"path":"/q"}]}}`,
			`{"process":{"args":["a"],"terminal":false},"root":{"path":"/run/root"},"linux":{"cgroupsPath":"/husk/x","namespaces":[]}}`, nil},
		{"terminal", `{"process":{"args":["a"],"terminal":false,"consoleSize":{"height":1,"width":2}}}`,
			`{"process":{"args":["a"],"terminal":true,"consoleSize":{"height":24,"width":80}},"root":{"path":"/run/root"},
			  "linux":{"cgroupsPath":"/husk/x","namespaces":[]}}`,
			func(c *Changes) { c.Terminal, c.Rows, c.Columns = true, 24, 80 }},
		{"disks", `{"process":{"args":["a"]},"linux":{"devices":[{"path":"/dev/v","type":"b","major":7,"minor":3,"fileMode":384},{"path":"/dev/n","type":"c","major":1,"minor":3}],
			  "resources":{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":7,"minor":3,"access":"rm"},
			  {"allow":true,"type":"b","major":254,"minor":0,"access":"rwm"},{"allow":true,"type":"b","major":254,"access":"rwm"},
			  {"allow":true,"type":"b","major":7,"minor":-1,"access":"r"},{"allow":true,"type":"b","access":"m"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}]}}}`,
			`{"process":{"args":["a"],"terminal":false},"root":{"path":"/run/root"},"linux":{"cgroupsPath":"/husk/x","namespaces":[],
			  "devices":[{"path":"/dev/v","type":"b","major":254,"minor":16,"fileMode":384},{"path":"/dev/n","type":"c","major":1,"minor":3}],
			  "resources":{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"b","major":254,"minor":16,"access":"rm"},
			  {"allow":true,"type":"b","major":254,"minor":16,"access":"r"},{"allow":true,"type":"b","access":"m"},
			  {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}]}}}`,
			func(c *Changes) { c.Disks = map[Number]Number{{7, 3}: {254, 16}} }},
		{"no devices", `{"process":{"args":["a"]},"linux":{"resources":{"devices":[{}],"pids":{"limit":1}}}}`,
			`{"process":{"args":["a"],"terminal":false},"root":{"path":"/run/root"},
			  "linux":{"cgroupsPath":"/husk/x","namespaces":[],"resources":{"pids":{"limit":1}}}}`,
			func(c *Changes) { c.NoDevices = true }},
		{"annotations", `{"process":{"args":["a"]},"annotations":{"a":"b","run.oci.handler":"krun","run.oci.seccomp_bpf_data":"AAAA"}}`,
			`{"process":{"args":["a"],"terminal":false},"root":{"path":"/run/root"},"linux":{"cgroupsPath":"/husk/x","namespaces":[]},
			  "annotations":{"a":"b"}}`, nil},
		{"filter", `{"process":{"args":["a"]},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}}`,
			`{"process":{"args":["a"],"terminal":false},"root":{"path":"/run/root"},
			  "linux":{"cgroupsPath":"/husk/x","namespaces":[],"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}},
			  "annotations":{"run.oci.seccomp_bpf_data":"YnBm"}}`,
			func(c *Changes) { c.Filter = []byte("bpf") }},
		{"nulls", `{"process":{"args":["a"]},"root":null,"linux":null,"hooks":null}`,
			`{"process":{"args":["a"],"terminal":false},"root":{"path":"/run/root"},"linux":{"cgroupsPath":"/husk/x","namespaces":[]}}`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			with := changes()
			if c.change != nil {
				c.change(&with)
			}
			got, err := Rewrite([]byte(c.in), with)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(decode(t, got), decode(t, []byte(c.want))) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestRewriteRefuses(t *testing.T) {
	for _, c := range []struct{ in, text string }{
		{``, "unexpected end"},
		{`null`, "not an object"},
		{`[]`, "cannot unmarshal"},
		{`{}`, "no process"},
		{`{"process":null}`, "no args"},
		{`{"process":{"args":"a"}}`, "args"},
		{`{"process":{"args":[]}}`, "no args"},
		{`{"process":{"args":["a"]},"root":"x"}`, "root"},
		{`{"process":{"args":["a"]},"linux":[]}`, "linux"},
		{`{"process":{"args":["a"]},"linux":{"namespaces":{}}}`, "namespaces"},
		{`{"process":{"args":["a"]},"linux":{"namespaces":[{"type":1}]}}`, "type"},
		{`{"process":{"args":["a"]},"hooks":1}`, "hooks"},
		{strings.Repeat(`{"a":`, 20000), "exceeded max depth"},
	} {
		_, err := Rewrite([]byte(c.in), changes())
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%.60s: error is %v, want %q", c.in, err, c.text)
		}
	}
	_, err := Rewrite([]byte(`{"process":{"args":["a"]},"linux":{"namespaces":[{"type":"pid","path":"husk:other"}]}}`), changes())
	if err == nil || !strings.Contains(err.Error(), "no container other") {
		t.Errorf("error is %v", err)
	}
}

func TestSeccomp(t *testing.T) {
	for text, want := range map[string]string{
		`{"linux":{"seccomp":{ "defaultAction" : "SCMP_ACT_ALLOW" }}}`:                    `{"defaultAction":"SCMP_ACT_ALLOW"}`,
		`{"linux":{"seccomp":{"defaultAction":"a","flags":[]}}}`:                          `{"defaultAction":"a","flags":[]}`,
		`{"linux":{"seccomp":{"defaultAction":"a","flags":["SECCOMP_FILTER_FLAG_LOG"]}}}`: "",
		`{"linux":{"seccomp":{"defaultAction":"a","listenerPath":"/run/notify"}}}`:        "",
		`{"linux":{"seccomp":null}}`:                                                      "", `{"linux":{}}`: "", `{}`: "", `x`: "", `{"linux":{"seccomp":[]}}`: "",
	} {
		if got := string(Seccomp([]byte(text))); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func TestPrivatePIDs(t *testing.T) {
	for text, want := range map[string]bool{
		`{"linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}`:        true,
		`{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}`: false,
		`{"linux":{"namespaces":[{"type":"mount"}]}}`:                       false,
		`{}`: false, `x`: false,
	} {
		if got := PrivatePIDs([]byte(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

// FuzzRewrite looks for configurations that panic, or come out as something else than one.
func FuzzRewrite(f *testing.F) {
	f.Add([]byte(`{"process":{"args":["a"]},"linux":{"namespaces":[{"type":"pid","path":"husk:first"}],"resources":{"devices":[]}}}`))
	f.Add([]byte(`{"process":{"args":["a"]},"hooks":{"startContainer":[]},"root":{"path":1}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		with := changes()
		with.NoDevices = true
		out, err := Rewrite(in, with)
		if err != nil {
			return
		}
		var top, root object
		var path string
		err = json.Unmarshal(out, &top)
		if err = errors.Join(err, top.get("root", &root), root.get("path", &path)); err != nil || path != "/run/root" {
			t.Errorf("%q became %q: %v", in, out, err)
		}
	})
}
