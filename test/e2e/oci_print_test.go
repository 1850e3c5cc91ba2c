package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// parse decodes what a command printed.
func parse(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
}

// TestPrint checks the forms in which verbs print, which are runc's, on one container.
func TestPrint(t *testing.T) {
	begin(t)
	b := newBundle(t, "sleep 1000 & echo ready; wait")
	c := b.up()
	c.printed("ready\n")
	for name, test := range map[string]func(*testing.T, *box, *bundle){
		"state": printState, "list": printList, "ps": printPs, "stats": printStats, "logs": printLogs,
		"completion": printCompletion, "shell": printShell,
	} {
		t.Run(name, func(t *testing.T) {
			inside := *c
			inside.t = t
			test(t, &inside, b)
		})
	}
}

func printState(t *testing.T, c *box, b *bundle) {
	var s map[string]any
	parse(t, husk(t, "state", c.id).ok(), &s)
	for _, key := range []string{"ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "owner"} {
		if _, found := s[key]; !found {
			t.Errorf("state has no %s: %v", key, s)
		}
	}
	expect(t, "rootfs", s["rootfs"].(string), env.rootfs)
	expect(t, "bundle", s["bundle"].(string), b.dir)
	created, err := time.Parse(time.RFC3339Nano, s["created"].(string))
	if age := time.Since(created); err != nil || age < 0 || age > patience {
		t.Errorf("created is %v: %v", s["created"], err)
	}
	husk(t, "state").fails(1, "arg")
	husk(t, "state", c.id, "more").fails(1, "arg")
}

func printList(t *testing.T, c *box, b *bundle) {
	lines := strings.Split(strings.TrimSpace(husk(t, "list").ok()), "\n")
	expect(t, "header", strings.Join(strings.Fields(lines[0]), " "), "ID PID STATUS BUNDLE CREATED OWNER")
	if fields := strings.Fields(lines[1]); len(fields) != 6 || !slices.Equal(fields[:4], []string{c.id, strconv.Itoa(c.pid), "running", b.dir}) || fields[5] != "root" {
		t.Errorf("list printed %q", lines[1])
	}
	var list []map[string]any
	parse(t, husk(t, "list", "--format", "json").ok(), &list)
	if len(list) != 1 || list[0]["id"] != c.id || list[0]["status"] != "running" || list[0]["owner"] != "root" {
		t.Errorf("list printed %v", list)
	}
	expect(t, "list -q", husk(t, "list", "-q").ok(), c.id+"\n")
	husk(t, "list", "--format", "yaml").fails(1, "yaml", "json")
	var people []map[string]any
	parse(t, husk(t, "ps", "--format", "json").ok(), &people)
	if len(people) != 1 || people[0]["id"] != c.id {
		t.Errorf("ps printed %v", people)
	}
	if out := husk(t, "ps").ok(); !strings.Contains(out, c.id) || !strings.Contains(out, "running") {
		t.Errorf("ps printed %q", out)
	}
}

func printPs(t *testing.T, c *box, _ *bundle) {
	var pids []int
	parse(t, husk(t, "ps", "-f", "json", c.id).ok(), &pids)
	if !slices.Equal(pids, []int{c.pid}) { // runc prints the host's, which engines look up
		t.Errorf("ps prints the processes %v as JSON, want the host process %d", pids, c.pid)
	}
	lines := strings.Split(strings.TrimSpace(husk(t, "ps", c.id).ok()), "\n")
	expect(t, "lines of ps", len(lines), 3)
	head := strings.Fields(lines[0])
	for _, column := range []string{"UID", "PID", "PPID", "STIME", "TTY", "TIME", "CMD"} {
		if !slices.Contains(head, column) {
			t.Errorf("ps has no column %s: %q", column, lines[0])
		}
	}
	if !strings.Contains(lines[1], "sh -c") || !strings.Contains(lines[2], "sleep 1000") {
		t.Errorf("ps printed %q", lines)
	}
	husk(t, "ps", "--format", "xml", c.id).fails(1, "xml")
}

func printStats(t *testing.T, c *box, _ *bundle) {
	var e struct {
		Type, ID string
		Data     struct {
			CPU struct {
				Usage struct{ Total, User, Kernel uint64 }
			}
			Memory struct {
				Usage struct{ Usage, Limit, Max uint64 }
				Raw   map[string]uint64
			}
			Pids struct{ Current uint64 }
		}
	}
	read := func() { parse(t, husk(t, "events", "--stats", c.id).ok(), &e) }
	read()
	before := e.Data.CPU.Usage.Total
	c.exec("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
	read()
	expect(t, "type", e.Type, "stats")
	expect(t, "id", e.ID, c.id)
	expect(t, "processes", e.Data.Pids.Current, 2)
	if used := time.Duration(e.Data.CPU.Usage.Total - before); used < time.Millisecond || used > patience {
		t.Errorf("a loop took %v of CPU time by the statistics", used)
	}
	if u := e.Data.Memory.Usage.Usage; u < 4096 || u > 512<<20 || e.Data.Memory.Usage.Max < u {
		t.Errorf("memory is %+v", e.Data.Memory.Usage)
	}
	if _, found := e.Data.Memory.Raw["anon"]; !found {
		t.Errorf("memory has no raw counters: %v", e.Data.Memory.Raw)
	}
	// Without --stats events come until they are ended, statistics at every interval.
	r := husk(t, "events", "--interval", "100ms", c.id).start()
	until(t, "two statistics", patience, func() bool { return strings.Count(r.stdout.String(), `{"type":"stats"`) > 1 })
	husk(t, "events", "--interval", "0s", c.id).fails(1, "--interval")
}

func printLogs(t *testing.T, c *box, _ *bundle) {
	husk(t, "logs", c.id).fails(1, "not started with", c.id)
	if out := husk(t, "logs", "--owner", c.id).ok(); !strings.Contains(out, "guest answered") {
		t.Errorf("the owner's log is %q", out)
	}
	husk(t, "logs", "--console", c.id).ok()
	husk(t, "logs", "--console", "--owner", c.id).fails(1, "console", "owner")
}

func printShell(t *testing.T, c *box, _ *bundle) {
	out := husk(t, "shell", c.id, "sh", "-c", "cat /proc/1/comm; exit 3").run()
	if out.code != 3 || !strings.Contains(out.stdout, "agent") && !strings.Contains(out.stdout, "init") {
		t.Errorf("shell returned %+v, want the name of the guest's first process and 3", out)
	}
	if mem := husk(t, "shell", c.id, "grep", "MemTotal", "/proc/meminfo").ok(); !regexp.MustCompile(`MemTotal: +\d{6} kB`).MatchString(mem) {
		t.Errorf("the guest's memory is %q", mem)
	}
	husk(t, "shell", c.id, "no-such-program").fails(127, "no-such-program")
}

func printCompletion(t *testing.T, c *box, _ *bundle) {
	if out := husk(t, "__complete", "state", "").ok(); !strings.HasPrefix(out, c.id+"\n") {
		t.Errorf("completion of a container's id is %q", out)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out := husk(t, "completion", shell).ok(); !strings.Contains(out, "husk") || len(out) < 500 {
			t.Errorf("the completion script for %s is %q", shell, out)
		}
	}
}

// The tests below need no container.

func TestListOfNothing(t *testing.T) {
	begin(t)
	expect(t, "list", strings.Join(strings.Fields(husk(t, "list").ok()), " "), "ID PID STATUS BUNDLE CREATED OWNER")
	expect(t, "list -f json", husk(t, "list", "-f", "json").ok(), "[]\n")
	expect(t, "list -q", husk(t, "list", "-q").ok(), "")
	c := husk(t, "list", "-q")
	c.flag = []string{"--root", "/no/such/root"}
	expect(t, "list of a root that does not exist", c.ok(), "")
}

func TestFeatures(t *testing.T) {
	begin(t)
	var f features.Features
	parse(t, husk(t, "features").ok(), &f)
	if f.OCIVersionMin != "1.0.0" || !strings.HasPrefix(f.OCIVersionMax, "1.") {
		t.Errorf("versions %q to %q", f.OCIVersionMin, f.OCIVersionMax)
	}
	expect(t, "hooks", strings.Join(f.Hooks, " "), "prestart createRuntime createContainer startContainer poststart poststop")
	for _, want := range []string{"pid", "network", "mount", "ipc", "uts", "cgroup"} {
		if !slices.Contains(f.Linux.Namespaces, want) {
			t.Errorf("no %s namespace", want)
		}
	}
	if !*f.Linux.Seccomp.Enabled || !slices.Contains(f.Linux.Capabilities, "CAP_NET_BIND_SERVICE") || !slices.Contains(f.MountOptions, "rro") {
		t.Errorf("features lack what husk does: %+v", f.Linux)
	}
}

func TestSpec(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	c := husk(t, "spec")
	c.dir = dir
	expect(t, "output", c.ok(), "")
	var s map[string]any
	parse(t, content(t, filepath.Join(dir, "config.json")), &s)
	for _, key := range []string{"ociVersion", "process", "root", "mounts", "linux", "hostname"} {
		if s[key] == nil {
			t.Errorf("no %s", key)
		}
	}
	c.fails(1, "config.json", "exists")
	husk(t, "spec", "--bundle", "/no/such/dir").fails(1, "/no/such/dir")
	rootless := t.TempDir()
	husk(t, "spec", "--rootless", "-b", rootless).ok()
	if text := content(t, filepath.Join(rootless, "config.json")); !strings.Contains(text, "uidMappings") {
		t.Error("spec --rootless has no user namespace")
	}
}

func TestVersion(t *testing.T) {
	begin(t)
	first, _, _ := strings.Cut(husk(t, "version").ok(), "\n")
	if !regexp.MustCompile(`^husk version \S+$`).MatchString(first) {
		t.Errorf("version printed %q first", first)
	}
	// Engines parse what --version prints: name, version.
	if out := husk(t, "--version").ok(); !regexp.MustCompile(`^husk (version )?\S+\n`).MatchString(out) {
		t.Errorf("--version printed %q", out)
	}
	var v map[string]any
	parse(t, husk(t, "version", "--json").ok(), &v)
	for key, pattern := range map[string]string{
		"husk": `.`, "oci_spec": `^1\.`, "go": `^go1\.`, "agent_protocol": `^1$`, "commit": `^[0-9a-f]{40}(-dirty)?$`,
		"guest_kind": `^(husk|distro)$`, "guest_kernel": `^6\.`, "guest_kernel_source": `GPL-2\.0-only`,
		"guest_agent": `^[0-9a-f]{16}$`, "guest_crun": `^[0-9]+\.[0-9]+`,
		"monitor": `^qemu$`, "monitor_version": `^[0-9]+\.`, "monitor_path": `^/`,
		"file_service": `^(C|Rust)$`, "file_service_version": `^[0-9]+\.`, "file_service_path": `^/`,
	} {
		if got := fmt.Sprint(v[key]); !regexp.MustCompile(pattern).MatchString(got) {
			t.Errorf("version --json says %q of %s, want %s", got, key, pattern)
		}
		if text := husk(t, "version").ok(); key != "agent_protocol" && !strings.Contains(text, fmt.Sprint(v[key])) {
			t.Errorf("version does not say %s, %v:\n%s", key, v[key], text)
		}
	}
}

// TestVersionOfParts checks that version names what is missing, and does not fail for it.
func TestVersionOfParts(t *testing.T) {
	begin(t)
	file := filepath.Join(t.TempDir(), "config.toml")
	text := "guest_dir = \"/no/guest\"\nqemu = \"/no/qemu\"\nvirtiofsd = \"/no/virtiofsd\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := husk(t, "version")
	c.flag = []string{"--config", file}
	out := c.ok()
	for _, want := range []string{"guest: .*none .*/no/guest", "monitor: .*none", "file service: none .*/no/virtiofsd"} {
		if !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("version does not say %q:\n%s", want, out)
		}
	}
}

// TestLog checks the log in the forms that engines read back.
func TestLog(t *testing.T) {
	begin(t)
	path := filepath.Join(t.TempDir(), "log.json")
	c := husk(t, "start", "no-such-one")
	c.flag = []string{"--log", path, "--log-format", "json"}
	c.fails(1, "no-such-one")
	c.fails(1, "no-such-one") // appended
	lines := strings.Split(strings.TrimSpace(content(t, path)), "\n")
	expect(t, "lines", len(lines), 2)
	for _, line := range lines {
		var e struct {
			Level, Msg string
			Time       time.Time
		}
		parse(t, line, &e)
		if e.Level != "error" || !strings.Contains(e.Msg, `"no-such-one" does not exist`) || time.Since(e.Time) > soon {
			t.Errorf("the log says %+v", e)
		}
	}
	text := filepath.Join(t.TempDir(), "log.txt")
	c.flag = []string{"--log", text}
	c.fails(1)
	if line := content(t, text); !regexp.MustCompile(`^time="\d{4}-\d\d-\d\dT[^"]+" level=error msg=".*no-such-one.*"\n$`).MatchString(line) {
		t.Errorf("the log in text says %q", line)
	}
	c.flag = []string{"--log-format", "yaml"}
	c.fails(1, "yaml")
	c.flag = []string{"--log", "/no/such/dir/log"}
	c.fails(1, "/no/such/dir/log")
}

// TestLogOfCreate: what goes wrong in a container's making is in the log of who asked for it.
func TestLogOfCreate(t *testing.T) {
	begin(t)
	b := newBundle(t, "")
	b.spec.Process.Args = []string{"/no/such/program"}
	path := filepath.Join(t.TempDir(), "log")
	c := husk(t, "create", "--bundle", b.write(), name(t))
	c.flag = []string{"--log", path, "--log-format", "json"}
	c.fails(1, "/no/such/program", "no such file or directory")
	if log := content(t, path); !strings.Contains(log, "/no/such/program") {
		t.Errorf("the log says %q", log)
	}
	if _, err := os.Stat(filepath.Join(env.run, name(t))); !os.IsNotExist(err) {
		t.Errorf("the state directory is left: %v", err)
	}
}
