package hostcgroup

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseScope(t *testing.T) {
	for name, want := range map[string]string{
		"machine.slice:libpod:0a1b":      "/machine.slice/libpod-0a1b.scope",
		"system.slice:docker:x":          "/system.slice/docker-x.scope",
		"a-b-c.slice:cri-containerd:x.y": "/a.slice/a-b.slice/a-b-c.slice/cri-containerd-x.y.scope",
		"-.slice::x":                     "/x.scope",
		":husk:x":                        "/system.slice/husk-x.scope",
	} {
		s, err := parseScope(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := s.group(); got != want && hostUID() == 0 {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	for _, name := range []string{
		"", "/a:b:c", "a:b", "a.slice:b", "a:b:c", "a.slice:b:", "a.slice:b:c:d", "-a.slice:b:c", "a-.slice:b:c", "a--b.slice:b:c", ".slice:b:c",
		"../a.slice:b:c", "a.slice:b:../c", "a.slice:b/c:d", "a.slice:b:c d", "a.slice:b:c\n", "a.slice:b:" + strings.Repeat("x", 300),
	} {
		if s, err := parseScope(name); err == nil {
			t.Errorf("%q was taken for %+v", name, s)
		}
	}
}

func TestProperties(t *testing.T) {
	values := func(l Limits, version2 bool) map[string]any {
		t.Helper()
		all, err := l.properties(version2)
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]any{}
		for _, p := range all {
			m[p.Name] = p.Value.Value()
		}
		return m
	}
	l := Limits{Shares: 512, Quota: 33_333, Period: 50_000, CPUs: "0,2-3,9", Mems: "0", PIDs: 700}
	want := map[string]any{
		"CPUWeight": uint64(20), "CPUQuotaPeriodUSec": uint64(50_000), "CPUQuotaPerSecUSec": uint64(670_000), "TasksMax": uint64(700),
		"AllowedCPUs": []byte{0b1101, 0b10}, "AllowedMemoryNodes": []byte{1},
	}
	if got := values(l, true); !reflect.DeepEqual(got, want) {
		t.Errorf("version 2: %v\nwant %v", got, want)
	}
	want = map[string]any{
		"CPUShares": uint64(512), "CPUQuotaPeriodUSec": uint64(50_000), "CPUQuotaPerSecUSec": uint64(670_000), "TasksMax": uint64(700),
	}
	if got := values(l, false); !reflect.DeepEqual(got, want) {
		t.Errorf("version 1: %v\nwant %v", got, want)
	}
	want = map[string]any{"CPUQuotaPerSecUSec": unlimited, "TasksMax": unlimited}
	if got := values(Limits{Quota: -1, PIDs: -1}, true); !reflect.DeepEqual(got, want) {
		t.Errorf("no limits: %v\nwant %v", got, want)
	}
	if got := values(Limits{Quota: 150_000}, true)["CPUQuotaPerSecUSec"]; got != uint64(1_500_000) {
		t.Errorf("one and a half processors: %v", got)
	}
	for _, list := range []string{"x", "1-", "3-1", "1,,2", "-1", "0-4294967295"} {
		if mask, err := maskOf(list); err == nil {
			t.Errorf("%q: %v", list, mask)
		}
	}
}
