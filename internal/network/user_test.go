package network

import (
	"strings"
	"testing"
)

func TestParsePort(t *testing.T) {
	for text, want := range map[string]string{
		"80:8080": "-t 80:8080", "80:8080/tcp": "-t 80:8080", "53:53/udp": "-u 53:53", "127.0.0.1:1:65535": "-t 127.0.0.1/1:65535", "[::1]:80:80/udp": "-u ::1/80:80",
	} {
		p, err := ParsePort(text)
		if got := strings.Join(p.flag(), " "); err != nil || got != want {
			t.Errorf("ParsePort(%q) = %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "80", ":80", "80:", "0:80", "80:65536", "80:80/sctp", "x:80:80", "-1:80", "1.2.3.4:80", "80:80,81:81", "~80:80", "fe80::1%eth0:80:80"} {
		if p, err := ParsePort(text); err == nil {
			t.Errorf("ParsePort(%q) = %v, want an error", text, p)
		}
	}
}
