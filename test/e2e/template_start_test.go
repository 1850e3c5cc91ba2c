package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"husk.dev/husk/internal/testenv"
)

// elsewhere gives the test a run_dir and a data_dir of its own, and more lines of configuration.
func elsewhere(t *testing.T, settings ...string) {
	t.Helper()
	begin(t)
	before := env
	t.Cleanup(func() { env = before })
	dir := t.TempDir()
	env.run, env.data, env.config = filepath.Join(dir, "run"), filepath.Join(dir, "data"), filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("run_dir = %q\ndata_dir = %q\n%s\n", env.run, env.data, strings.Join(settings, "\n"))
	if err := os.WriteFile(env.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{env.run, filepath.Join(env.data, "containers")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	testenv.Leaks(t, env.run, filepath.Join(env.data, "containers"))
}

// ready is the setting that keeps husk from building templates by itself.
const ready = `template = "ready"`

// listedTemplate is what `husk template ls --json` says of one.
type listedTemplate struct {
	Key       string    `json:"key"`
	MemoryMiB int       `json:"memory_mib"`
	VCPUs     int       `json:"vcpus"`
	Card      string    `json:"card"`
	Created   time.Time `json:"created"`
}

func templates(t *testing.T) (list []listedTemplate) {
	t.Helper()
	if err := json.Unmarshal([]byte(husk(t, "template", "ls", "--json").ok()), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// build has a template built, for VMs without a network card unless flags say otherwise, and returns its key.
func build(t *testing.T, flags ...string) string {
	t.Helper()
	return strings.TrimSpace(husk(t, append([]string{"template", "build", "--card", "no"}, flags...)...).ok())
}

// inStore lists the directory of templates, its lock left out.
func inStore(t *testing.T) string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(env.data, "templates"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != ".lock" {
			names = append(names, e.Name())
		}
	}
	return strings.Join(names, " ")
}

// vmStart is what `husk state` says of how the container's VM came to run.
func vmStart(t *testing.T, id string) string {
	t.Helper()
	var s struct{ Annotations map[string]string }
	if err := json.Unmarshal([]byte(husk(t, "state", id).ok()), &s); err != nil {
		t.Fatal(err)
	}
	return s.Annotations["dev.husk.vm-start"]
}

// startsBy starts a container, checks how its VM came to run and removes it.
func startsBy(t *testing.T, want string, args ...string) {
	t.Helper()
	if len(args) == 0 {
		args = []string{"--network", "none", "--rootfs", env.rootfs} // build makes the template of VMs without a network
	}
	id := detach(t, "started", append(args, sleeper...)...)
	if got := vmStart(t, id); got != want {
		t.Errorf("%v: the VM came to run by %q, want %q", args, got, want)
	}
	if out := husk(t, "exec", id, "echo", "works").ok(); out != "works\n" {
		t.Errorf("exec printed %q", out)
	}
	husk(t, "delete", "--force", id).ok()
}

// TestTemplateStarts starts every kind of container from a template and uses what it was given.
func TestTemplateStarts(t *testing.T) {
	elsewhere(t, ready)
	husk(t, "import", "--cmd", "sh", env.rootfs, demo).ok()
	build(t)
	build(t, "--memory", "300") // of a container with a small limit
	build(t, "--vcpus", "2")
	if list := templates(t); len(list) != 3 {
		t.Errorf("templates: %+v, want 3", list)
	}
	volume := t.TempDir()
	mib := func(least, most int) func(string) bool {
		return func(out string) bool {
			kib, err := strconv.Atoi(strings.TrimSpace(out))
			return err == nil && kib>>10 >= least && kib>>10 <= most
		}
	}
	is := func(want string) func(string) bool { return func(out string) bool { return out == want } }
	const total = "awk '/MemTotal/ {print $2}' /proc/meminfo"
	for _, c := range []struct {
		name   string
		args   []string
		script string
		want   func(string) bool
	}{
		{"image", []string{demo}, "echo hello >/new && cat /new /etc/os-release | head -1", is("hello\n")},
		{"image without a disk", []string{"--storage-size", "0", demo}, "echo hello >/new && cat /new", is("hello\n")},
		{"directory", []string{"--rootfs", env.rootfs}, "hostname; cat /etc/os-release | head -1", is("started\nNAME=husk-demo\n")},
		{"volume", []string{"-v", volume + ":/v", demo}, "echo seen >/v/file && cat /v/file", is("seen\n")},
		{"more memory", []string{"--memory", "1g", demo}, total, mib(1000, 1200)},
		{"more memory is used", []string{"--memory", "1g", demo}, "dd if=/dev/zero of=/dev/null bs=700M count=1 2>&1 | head -1", is("1+0 records in\n")},
		{"more memory and a volume", []string{"--memory", "1g", "-v", volume + ":/v", demo}, total, mib(1000, 1200)},
		{"less memory", []string{"--memory", "100m", demo}, total, mib(120, 256)},
		{"processors", []string{"--cpus", "2", demo}, "nproc; grep -c ^processor /proc/cpuinfo", is("2\n2\n")},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin(t)
			id := detach(t, "started", append(c.args, sleeper...)...)
			if got := vmStart(t, id); got != "template" {
				t.Errorf("the VM came to run by %q, want template", got)
			}
			if out := husk(t, "exec", id, "sh", "-c", c.script).ok(); !c.want(out) {
				t.Errorf("%s printed %q", c.script, out)
			}
		})
	}
	if seen := content(t, filepath.Join(volume, "file")); seen != "seen\n" {
		t.Errorf("the host sees %q on the volume", seen)
	}
	husk(t, "template", "verify").ok() // nothing that ran has changed one
}

// TestTemplateMissingSize: there is no template for another number of processors, and the VM boots.
func TestTemplateMissingSize(t *testing.T) {
	elsewhere(t, ready)
	build(t)
	startsBy(t, "template")
	startsBy(t, "boot", "--cpus", "2", "--rootfs", env.rootfs)
	if list := templates(t); len(list) != 1 {
		t.Errorf("templates: %+v, want the first alone", list)
	}
}

// TestTemplateCard: a container with a network starts from a template with a network card, and from one without where
// there is no other. One without a network does not start from one with a card.
func TestTemplateCard(t *testing.T) {
	elsewhere(t, ready)
	husk(t, "template", "build", "--card", "some").fails(1, "must be no, tap, user or all")
	bridge := newSpace(t, "ip link add br0 type bridge", "ip link set br0 up")
	with := newSpace(t, fmt.Sprintf("ip link add eth0 address 02:00:00:00:00:07 type veth peer name p0 netns %d", bridge.pid),
		"ip link set eth0 up", "ip addr add 10.7.0.2/24 dev eth0")
	bridge.run("ip link set p0 master br0 up")
	spaces := map[string]*space{"network": with, "none": nil, "empty": newSpace(t)}
	for card, want := range map[string]map[string]string{
		"no":  {"network": "template", "none": "template", "empty": "template"},
		"tap": {"network": "template", "none": "boot", "empty": "boot"},
	} {
		key := build(t, "--card", card)
		if list := templates(t); len(list) != 1 || list[0].Key != key || (list[0].Card == "tap") != (card == "tap") {
			t.Errorf("templates with --card %s: %+v", card, list)
		}
		for network, start := range want {
			t.Run(card+"/"+network, func(t *testing.T) {
				begin(t)
				b := newBundle(t, "sleep 600")
				if spaces[network] != nil {
					b.in(spaces[network])
				}
				c := b.up()
				expect(t, "the VM's start", vmStart(t, c.id), start)
				if network == "network" {
					expect(t, "the card", c.exec("cd /sys/class/net/eth0 && cat address operstate"), "02:00:00:00:00:07\nup\n")
					// What IPv6 says shows who is on the network; the address that the card was saved with never is.
					fdb := func() string { return bridge.run("bridge fdb show br br0") }
					until(t, "the bridge knows the container", patience, func() bool { return strings.Contains(fdb(), "02:00:00:00:00:07") })
					if seen := fdb(); strings.Contains(seen, "06:68:75:73:6b:ff") {
						t.Errorf("on the network is %s", seen)
					}
				} else {
					expect(t, "the interfaces", c.exec("ls /sys/class/net"), "lo\n")
				}
			})
		}
		husk(t, "template", "rm", key).ok()
	}
	if keys := strings.Fields(husk(t, "template", "build").ok()); len(keys) != 3 || keys[0] == keys[1] || keys[1] == keys[2] || keys[0] == keys[2] {
		t.Errorf("build of all printed %q", keys)
	}
}

// distinct are the values that must differ between any two guests.
var distinct = []string{"urandom", "boot_id", "uuid", "at_random", "getrandom", "stack", "vdso"}

// TestTemplateClonesDiffer starts guests from one template, some at once and some with a copy of its memory:
// no two of them may draw the same random numbers, or have the same addresses.
func TestTemplateClonesDiffer(t *testing.T) {
	elsewhere(t, ready)
	root := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("cp", "-a", env.rootfs, root).CombinedOutput(); err != nil {
		t.Fatalf("copy root: %v: %s", err, out)
	}
	if out, err := exec.Command("install", "-m", "755", probe(t), filepath.Join(root, "bin/probe")).CombinedOutput(); err != nil {
		t.Fatalf("install probe: %v: %s", err, out)
	}
	husk(t, "import", "--cmd", "sh", root, demo).ok()
	build(t)
	const script = `echo urandom $(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
for id in boot_id uuid; do echo $id $(cat /proc/sys/kernel/random/$id); done
exec probe random`
	var mu sync.Mutex
	seen := map[string]map[string]int{} // guarded by mu
	var all sync.WaitGroup
	places := make(chan struct{}, 3)
	for i := range 10 {
		args := []string{"run", "--rm", "--name", fmt.Sprintf("clone-%d", i)}
		if i >= 8 {
			args = append(args, "-v", root+":/v")
		}
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			r := husk(t, append(args, demo, "sh", "-c", script)...).run()
			if r.code != 0 {
				t.Errorf("clone %d exits with %d: %s", i, r.code, r.stderr)
			}
			mu.Lock()
			defer mu.Unlock()
			for line := range strings.Lines(r.stdout) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
				if seen[name] == nil {
					seen[name] = map[string]int{}
				}
				seen[name][value]++
			}
		})
	}
	all.Wait()
	for _, name := range distinct {
		if len(seen[name]) != 10 {
			t.Errorf("%s has %d values in 10 guests: %v", name, len(seen[name]), seen[name])
		}
		for value := range seen[name] {
			if len(value) < 16 || strings.Trim(value, "0-") == "" {
				t.Errorf("%s is %q", name, value)
			}
		}
	}
}

// TestTemplateClock: a guest that was saved a while ago tells the host's time at once.
func TestTemplateClock(t *testing.T) {
	begin(t)
	list := templates(t)
	if len(list) == 0 {
		t.Fatal("there is no template")
	}
	if age := time.Since(list[0].Created); age < 10*time.Second {
		time.Sleep(10*time.Second - age)
	}
	for range 3 {
		before := time.Now().Unix()
		out := husk(t, "run", "--rm", demo, "date", "+%s").ok()
		after := time.Now().Unix()
		if got, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64); err != nil || got < before-1 || got > after+1 {
			t.Errorf("the guest says that it is %s, the host from %d to %d", out, before, after)
		}
	}
	id := detach(t, "timed", append([]string{demo}, sleeper...)...)
	expect(t, "the VM's start", vmStart(t, id), "template")
}
