package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestPsList(t *testing.T) {
	begin(t)
	const other = "ps-image"
	dir := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("sh", "-c", `cp -a "$1" "$2" && touch "$2/other"`, "sh", env.rootfs, dir).CombinedOutput(); err != nil {
		t.Fatalf("copy the root directory: %v: %s", err, out)
	}
	husk(t, "import", "--cmd", "sh", dir, other).ok()
	t.Cleanup(func() { husk(t, "rmi", other).ok() })
	first := detach(t, "ps-first", demo, "sh", "-c", "exit 5")
	husk(t, "wait", first).ok()
	second := detach(t, "ps-second", other, "sleep", "1000")
	list := func(args ...string) string {
		return strings.Join(strings.Fields(husk(t, append([]string{"ps", "--quiet"}, args...)...).ok()), " ")
	}
	expect(t, "running", list(), second)
	expect(t, "all", list("--all", "--no-trunc"), first+" "+second)
	expect(t, "latest", list("--latest"), second)
	expect(t, "last", list("-n", "2"), second+" "+first)
	expect(t, "exited", list("--filter", "exited=5", "--filter", "status=exited"), first)
	expect(t, "ancestor", list("--filter", "ancestor="+other), second)
	image := strings.TrimSpace(husk(t, "inspect", "--format", "{{.Image}}", first).ok())
	expect(t, "ancestor by id", list("--all", "--filter", "ancestor="+image), strings.TrimSpace(
		husk(t, "ps", "--all", "--filter", "name=ps-", "--format", `{{if eq .Image "`+image+`"}}{{.Id}}{{end}}`).ok()))
	expect(t, "template", husk(t, "ps", "-l", "--format", "{{.Id}} {{.State.Status}} {{.ImageName}}").ok(), second+" running "+other+"\n")
	husk(t, "ps", "--filter", "volume=x").fails(1, "volume", "ancestor=IMAGE")
	if out := husk(t, "__complete", "ps", "--filter", "st").ok(); !strings.Contains(out, "status=running\n") {
		t.Errorf("completion of a filter is %q", out)
	}
	if out := husk(t, "__complete", "ps", "").ok(); !strings.HasPrefix(out, first+"\n") {
		t.Errorf("completion of an id is %q", out)
	}
	if out := husk(t, "ps", "--help").ok(); !strings.Contains(out, "status=exited") || !strings.Contains(out, "ancestor=IMAGE") {
		t.Errorf("help of ps is %q", out)
	}
}
