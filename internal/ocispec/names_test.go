package ocispec

import "testing"

func TestNameserver(t *testing.T) {
	for conf, want := range map[string]string{
		"": "invalid IP", "nameserver 127.0.0.11\noptions ndots:0\n": "127.0.0.11", "search x\nnameserver 127.1.2.3": "127.1.2.3",
		"nameserver 9.9.9.9\nnameserver 127.0.0.11": "invalid IP", "nameserver ::1": "invalid IP", "nameserver": "invalid IP", "nameserver x": "invalid IP",
	} {
		if got := nameserver(conf).String(); got != want {
			t.Errorf("%q: %s, want %s", conf, got, want)
		}
	}
}
