package cli

import (
	"errors"
	"os"
	"strings"
	"testing"

	"husk.dev/husk/internal/state"
)

func TestSplitCopy(t *testing.T) {
	for arg, want := range map[string][2]string{
		"web:/a": {"web", "/a"}, "web:a:b": {"web", "a:b"}, "web:": {"web", ""}, ":/a": {"", "/a"}, "./web:/a": {}, "../a:b": {}, "/web:/a": {}, "a": {}, "-": {}, ".:a": {},
	} {
		id, path, found := splitCopy(arg)
		if found != (want != [2]string{}) || found && (id != want[0] || path != want[1]) || !found && path != arg {
			t.Errorf("%q: %q, %q, %v", arg, id, path, found)
		}
	}
}

func TestParseCopy(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	a := &App{in: null}
	a.config.RunDir = t.TempDir()
	if _, err := state.Create(a.config.RunDir, "web"); err != nil {
		t.Fatal(err)
	}
	c, err := a.parseCopy("web:x/", "y/.", copyOptions{})
	if err != nil || c.into || c.inside.Path != "x/" || c.outside != here+"/y/." {
		t.Errorf("%+v, %v", c, err)
	}
	c, err = a.parseCopy("-", "web:/x", copyOptions{})
	if err != nil || !c.into || c.inside.Path != "/x" || c.outside != stream {
		t.Errorf("%+v, %v", c, err)
	}
	for _, args := range [][3]string{
		{"web:/a", "web:/b", "husk cp web:/a - | husk cp - web:DIRECTORY"}, {"a", "b", "ID:PATH"}, {"web:", "a", "empty"}, {"", "web:/", "empty"}, {":/a", "b", "empty"},
	} {
		if _, err := a.parseCopy(args[0], args[1], copyOptions{}); err == nil || !strings.Contains(err.Error(), args[2]) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if _, err := a.parseCopy("none:/a", "b", copyOptions{}); !errors.Is(err, state.ErrNotExist) {
		t.Errorf("a container that does not exist: %v", err)
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2J\r\"ä\""); got != "a\uFFFD[2J\uFFFD\"ä\"" {
		t.Errorf("%q", got)
	}
	if got := printable(strings.Repeat("x", 1<<20)); len(got) > 1<<14 {
		t.Errorf("%d bytes", len(got))
	}
}
