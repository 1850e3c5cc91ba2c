package cli

import (
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindRange(t *testing.T) {
	const text = "other:1:2\n# comment\nme:x:65536\nme:100000:0\nme:100000:65536\n1000:5:6\n"
	for _, c := range []struct {
		name, id string
		want     idRange
		found    bool
	}{
		{"me", "1", idRange{100000, 65536}, true},
		{"nobody", "1000", idRange{5, 6}, true},
		{"nobody", "1", idRange{}, false},
	} {
		if got, found, err := findRange(strings.NewReader(text), c.name, c.id); got != c.want || found != c.found || err != nil {
			t.Errorf("%s: %v, %v, %v; want %v, %v", c.name, got, found, err, c.want, c.found)
		}
	}
	_, err := subordinate(filepath.Join(t.TempDir(), "none"), &user.User{Username: "me", Uid: "1000"})
	if err == nil || !strings.Contains(err.Error(), "usermod --add-subuids") {
		t.Errorf("without a range: %v", err)
	}
}
