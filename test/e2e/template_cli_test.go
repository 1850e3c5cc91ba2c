package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestTemplateCommands is the life of templates by hand.
func TestTemplateCommands(t *testing.T) {
	elsewhere(t, ready)
	for _, verb := range []string{"ls", "verify", "rm"} {
		args := []string{"template", verb}
		if verb == "rm" {
			args = append(args, "--all")
		}
		if out := husk(t, args...).ok(); strings.Count(out, "\n") > 1 {
			t.Errorf("%s of nothing printed %q", verb, out)
		}
	}
	if out := husk(t, "template", "ls", "--json").ok(); strings.TrimSpace(out) != "[]" {
		t.Errorf("ls --json of nothing printed %q, want an empty list", out)
	}
	if left := inStore(t); left != "" {
		t.Errorf("looking left %q", left)
	}

	r := husk(t, "template", "build", "--card", "no").run()
	key := strings.TrimSpace(r.stdout)
	if r.code != 0 || !regexp.MustCompile(`^[0-9a-f]{32}\n$`).MatchString(r.stdout) {
		t.Fatalf("build: exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	began := time.Now()
	if again := build(t); again != key {
		t.Errorf("second build: %s, want %s", again, key)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("a build of what is there took %v", took)
	}
	small := build(t, "--memory", "256")
	if small == key {
		t.Error("one template for two sizes")
	}
	if same := build(t, "--memory", "4096"); same != key { // 512 MiB, and the rest is plugged
		t.Errorf("template %s for much memory, want %s", same, key)
	}

	startsBy(t, "template") // the first is the last used
	list := templates(t)
	if len(list) != 2 || list[0].Key != key || list[0].MemoryMiB != 512 || list[0].VCPUs != 1 || list[1].MemoryMiB != 256 {
		t.Errorf("templates: %+v", list)
	}
	lines := strings.Split(husk(t, "template", "ls").ok(), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "KEY") || !strings.HasPrefix(lines[1], key+" ") || !strings.Contains(lines[1], "512 MiB") {
		t.Errorf("ls printed %q", lines)
	}
	if out := husk(t, "template", "verify", small).ok(); out != small+": whole\n" {
		t.Errorf("verify printed %q", out)
	}
	if out := husk(t, "template", "rm", small).ok(); out != "removed: "+small+"\n" {
		t.Errorf("rm printed %q", out)
	}
	husk(t, "template", "rm", small).fails(1, "no such template")
	if out := husk(t, "template", "rm", "--all").ok(); out != "removed: "+key+"\n" {
		t.Errorf("rm --all printed %q", out)
	}
	if left := inStore(t); left != "" {
		t.Errorf("left in the store: %q", left)
	}
}

// TestTemplateRemovedUnderContainer: a container goes on in memory that is no file's any more.
func TestTemplateRemovedUnderContainer(t *testing.T) {
	elsewhere(t, ready)
	key := build(t)
	id := detach(t, "above", append([]string{"--rootfs", env.rootfs}, sleeper...)...)
	expect(t, "the VM's start", vmStart(t, id), "template")
	husk(t, "template", "rm", key).ok()
	if out := husk(t, "exec", id, "sh", "-c", "find / -xdev | wc -l; dd if=/dev/zero of=/dev/null bs=100M count=1 2>&1 | head -1").ok(); !strings.Contains(out, "1+0 records in") {
		t.Errorf("exec printed %q", out)
	}
}

// TestTemplateBadUsage: what makes no sense is one line and changes nothing.
func TestTemplateBadUsage(t *testing.T) {
	elsewhere(t, ready)
	outside := filepath.Join(env.data, "precious")
	if err := os.Mkdir(outside, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"rm"}, "--all"},
		{[]string{"rm", "../precious"}, "no such template"},
		{[]string{"rm", outside}, "no such template"},
		{[]string{"rm", ""}, "no such template"},
		{[]string{"rm", "--all", strings.Repeat("a", 32)}, "--all"},
		{[]string{"verify", strings.Repeat("a", 32)}, "no such template"},
		{[]string{"verify", "a\nb"}, "no such template"},
		{[]string{"build", "extra"}, "extra"},
		{[]string{"build", "--memory", "-5"}, "memory"},
		{[]string{"build", "--memory", "x"}, "memory"},
		{[]string{"build", "--vcpus", "100000"}, "vcpus"},
		{[]string{"build", "--vcpus", "-1"}, "vcpus"},
		{[]string{"ls", "extra"}, "extra"},
		{[]string{"frobnicate"}, "frobnicate"},
	} {
		husk(t, append([]string{"template"}, c.args...)...).fails(1, c.want)
	}
	if left := inStore(t); left != "" {
		t.Errorf("in the store: %q", left)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
	r := husk(t, "template", "verify", strings.Repeat("a", 32), strings.Repeat("b", 32)).run()
	if lines := strings.Split(strings.TrimSpace(r.stderr), "\n"); r.code != 1 || len(lines) != 2 {
		t.Errorf("verify of two that are not there: exit code %d, %q", r.code, r.stderr)
	}
}
