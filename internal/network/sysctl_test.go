package network

import (
	"strings"
	"testing"

	agentv1 "husk.dev/husk/api/agent/v1"
)

func TestUnusualSettings(t *testing.T) {
	path, run := namespace(t, plain...)
	text := func(list []*agentv1.Sysctl) string {
		var all []string
		for _, s := range list {
			all = append(all, s.GetPath()+"="+s.GetValue())
		}
		return strings.Join(all, "\n")
	}
	n := attach(t, path, 1)
	before := text(n.Guest.GetSysctls()) // of a machine whose kernel, or whose administrator, has other defaults
	closed(t, n)
	run("echo 77 >/proc/sys/net/core/somaxconn", "echo 2 >/proc/sys/net/ipv4/conf/eth0/rp_filter", "echo 1 >/proc/sys/net/ipv4/ip_forward")
	n = attach(t, path, 1)
	got := text(n.Guest.GetSysctls())
	for _, want := range []string{"net/core/somaxconn=77", "net/ipv4/conf/eth0/rp_filter=2", "net/ipv4/ip_forward=1", "net/ipv4/conf/eth0/forwarding=1"} {
		if strings.Contains(before, want) || !strings.Contains(got, want) {
			t.Errorf("%s is missing in\n%s\nbefore:\n%s", want, got, before)
		}
	}
	if strings.Index(got, "ip_forward=1") > strings.Index(got, "forwarding=1") && strings.Contains(got, "conf/") {
		t.Errorf("what sets others is not first:\n%s", got)
	}
	if strings.Contains(got, "conf/lo/") {
		t.Errorf("the loopback interface's are told:\n%s", got)
	}
}
