package boot

import (
	"strings"
	"testing"
)

func TestCmdline(t *testing.T) {
	c := Cmdline("quiet console=hvc0 husk.channel=vsock x husk.channel=serial husk.end= husk.channels=3\n")
	for key, want := range map[string]string{"husk.channel": "serial", "husk.end": "", "console": "hvc0", "quiet": "none", "absent": "none"} {
		if got := c.Value(key, "none"); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
}

func TestUnknownChannel(t *testing.T) {
	_, err := OpenChannel(t.Context(), "husk.channel=pigeon")
	if err == nil || !strings.Contains(err.Error(), `"pigeon"`) {
		t.Errorf("error is %v", err)
	}
}

// TestMounts checks that no file system is mounted below one that comes later and would hide it.
func TestMounts(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range mounts {
		for earlier := range seen {
			if strings.HasPrefix(earlier, m.dir+"/") || earlier == m.dir {
				t.Errorf("%s would hide %s", m.dir, earlier)
			}
		}
		seen[m.dir] = true
	}
}
