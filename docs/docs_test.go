// Package docs checks that the documentation says what the code does: links lead somewhere, and every
// setting, verb and check is described.
package docs

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"husk.dev/husk/internal/bench"
	"husk.dev/husk/internal/check"
	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/selftest"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// pages are all pages, relative to this directory.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "../*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	if len(all) < 8 {
		t.Fatalf("only %d pages found: %q", len(all), all)
	}
	return all
}

var (
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
	link    = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.+?) *$`)
	dropped = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the names that headings can be linked by.
func anchors(page string) map[string]bool {
	found := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(page, ""), -1) {
		found[strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return found
}

func TestLinks(t *testing.T) {
	checked := 0
	for _, page := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(read(t, page), ""), -1) {
			target, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: link %s: %v", page, m[1], err)
				continue
			}
			if target.Scheme != "" {
				continue // not ours to look at
			}
			checked++
			file := page
			if target.Path != "" {
				file = filepath.Join(filepath.Dir(page), target.Path)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: link %s leads nowhere", page, m[1])
				continue
			}
			if target.Fragment != "" && !anchors(read(t, file))[target.Fragment] {
				t.Errorf("%s: link %s: no such heading in %s", page, m[1], file)
			}
		}
	}
	if checked < 10 {
		t.Errorf("only %d links found: is the pattern right?", checked)
	}
}

// row is the table row of a page that begins with a name in code, "" without one.
func row(page, name string) string {
	for line := range strings.SplitSeq(page, "\n") {
		if strings.HasPrefix(line, "| `"+name+"` |") {
			return line
		}
	}
	return ""
}

func TestEverySettingIsDescribed(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "")
	page := read(t, "config.md")
	defaults := reflect.ValueOf(config.Default())
	keys := map[string]bool{}
	for i := range defaults.NumField() {
		key := defaults.Type().Field(i).Tag.Get("toml")
		keys[key] = true
		got := row(page, key)
		if got == "" {
			t.Errorf("config.md has no row for %q", key)
			continue
		}
		want := fmt.Sprintf("| `%v` |", defaults.Field(i))
		switch {
		case key == "data_dir" || key == "run_dir": // others for ordinary users
			want = "| `/"
		case defaults.Field(i).IsZero():
			want = "| empty |"
		}
		if !strings.Contains(got, want) {
			t.Errorf("config.md: row of %q lacks its default, %q", key, want)
		}
	}
	table := page[strings.Index(page, "| key |"):]
	table, _, _ = strings.Cut(table, "\n\n")
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(table, -1) {
		if !keys[m[1]] {
			t.Errorf("config.md describes %q, which is no setting", m[1])
		}
	}
}

// TestEveryVerbIsDescribed finds the verbs in the source of package cli: their names are in Use fields.
func TestEveryVerbIsDescribed(t *testing.T) {
	files, err := filepath.Glob("../internal/cli/*.go")
	if err != nil {
		t.Fatal(err)
	}
	page := read(t, "cli.md")
	use := regexp.MustCompile(`\bUse:\s+"([a-z]+)[ "](.*)`)
	verbs := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, m := range use.FindAllStringSubmatch(read(t, file), -1) {
			if m[1] != "husk" && !strings.Contains(m[2], "Hidden: true") {
				verbs[m[1]] = true
			}
		}
	}
	if len(verbs) < 20 {
		t.Fatalf("only %d verbs found in package cli: is the pattern right?", len(verbs))
	}
	for verb := range verbs {
		if row(page, verb) == "" {
			t.Errorf("cli.md has no row for the verb %q", verb)
		}
	}
	for _, heading := range []string{"## Verbs for people", "## OCI verbs", "## This machine"} {
		_, table, found := strings.Cut(page, heading)
		if !found {
			t.Fatalf("cli.md has no heading %q", heading)
		}
		_, table, _ = strings.Cut(table, "| --- | --- |\n")
		table, _, _ = strings.Cut(table, "\n\n")
		for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(table, -1) {
			if !verbs[m[1]] {
				t.Errorf("cli.md describes %q, which is no verb", m[1])
			}
		}
	}
}

func TestEveryCheckIsDescribed(t *testing.T) {
	page := read(t, "cli.md")
	for _, item := range check.Make(check.Inputs{Config: config.Default()}).Items {
		if row(page, item.Name) == "" {
			t.Errorf("cli.md has no row for the item %q of husk check", item.Name)
		}
	}
}

func TestEveryBenchGroupIsDescribed(t *testing.T) {
	page := read(t, "cli.md")
	for _, name := range bench.Groups() {
		if row(page, name) == "" {
			t.Errorf("cli.md has no row for the group %q of husk bench", name)
		}
	}
}

func TestEverySelftestStepIsDescribed(t *testing.T) {
	page := read(t, "cli.md")
	names, _ := selftest.Steps()
	for _, name := range names {
		if row(page, name) == "" {
			t.Errorf("cli.md has no row for the step %q of husk selftest", name)
		}
	}
}

// TestNumbers compares numbers that the pages promise with the source that they are from.
func TestNumbers(t *testing.T) {
	for _, c := range []struct{ page, text, file, pattern string }{
		{"protocol.md", "| a call | 2 minutes,", "internal/guest/guest.go", `CallTimeout = 2 \* time\.Minute`},
		{"protocol.md", "its window is 1 MiB a stream", "internal/channel/channel.go", `window = 1 << 20`},
		{"protocol.md", "| an error's text | 1 KiB,", "internal/sandbox/explain.go", `maxMessage = 1024`},
		{"protocol.md", "| the guest's console | 1 MiB ", "internal/sandbox/sandbox.go", `consoleLimit = 1 << 20`},
		{"protocol.md", "| 64 MiB on disk", "internal/control/server.go", `logLimit = 64 << 20`},
		{"protocol.md", "30 seconds, at most 256 of them", "internal/agent/stdio/registry.go", `maxUnclaimed = 256`},
		{"protocol.md", "1024 containers,", "internal/agent/container.go", `maxContainers = 1024`},
		{"protocol.md", "1024 processes a container", "internal/agent/process.go", `maxProcesses = 1024`},
		{"protocol.md", "128 layers a root", "internal/agent/mnt/mnt.go", `maxLowers = 128`},
		{"protocol.md", "`Ping` every 30 seconds", "internal/sandbox/sandbox.go", `pingEvery = 30 \* time\.Second`},
		{"protocol.md", "at most 64 sets of them", "internal/control/server.go", `unclaimed = 64`},
		{"protocol.md", "`agentv1.Version` is 1.", "api/agent/v1/ports.go", `const Version = 1`},
		{"architecture.md", "at most 16: a microvm", "internal/image/pull.go", `DefaultMaxLayers = 16`},
		{"architecture.md", "room for 21 disks and shares", "internal/vmm/qemu/spec.go", `microvmSlots = 24(?s:.*)ownSlots = 3`},
		{"architecture.md", "the limit is 100 times", "internal/sys/kvm/kvm.go", `slowest = 100`},
		{"threat-model.md", "8 MiB, 4 levels of indexes, 512 layers", "internal/image/source.go", `maxDocument\s+= 8 << 20(?s:.*)maxIndexDepth\s+= 4(?s:.*)maxLayerCount\s+= 512`},
		{"threat-model.md", "64 GiB and 2,000,000 entries", "internal/image/budget.go", `DefaultMaxBytes\s+= 64 << 30(?s:.*)DefaultMaxEntries\s+= 2_000_000`},
		{"cli.md", "reading and writing 64 MiB, 2,000 random reads and writes, 2,000 small files", "internal/bench/load/files.go", `dataSize\s+= 64 << 20(?s:.*)randomCount = 2000(?s:.*)smallCount\s+= 2000`},
		{"config.md", "At least 96.", "internal/config/config.go", `MinMemoryMiB = 96`},
	} {
		if !strings.Contains(read(t, c.page), c.text) {
			t.Errorf("%s no longer says %q: change this test with it", c.page, c.text)
		}
		if !regexp.MustCompile(c.pattern).MatchString(read(t, filepath.Join("..", c.file))) {
			t.Errorf("%s says %q, but %s does not have %s", c.page, c.text, c.file, c.pattern)
		}
	}
}
