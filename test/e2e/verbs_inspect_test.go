package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInspect(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	id := detach(t, "inspect-a", "-e", "A=b", "--memory", "64m", "--stop-signal", "QUIT", "-v", dir+":/v:ro", demo, "sh", "-c", "exit 5")
	husk(t, "wait", id).ok()
	var all []struct {
		Id, Name, Path, ImageName string
		Args                      []string
		State                     struct {
			Status   string
			ExitCode int
			Running  bool
		}
		Config     struct{ Env []string }
		HostConfig struct{ Memory int64 }
		Mounts     []struct {
			Source, Destination string
			RW                  bool
		}
	}
	parse(t, husk(t, "inspect", id).ok(), &all)
	if len(all) != 1 || all[0].Id != id || all[0].Name != id || all[0].Path != "sh" || len(all[0].Args) != 2 || all[0].ImageName != demo ||
		all[0].State.Status != "exited" || all[0].State.ExitCode != 5 || all[0].HostConfig.Memory != 64<<20 ||
		len(all[0].Mounts) != 1 || all[0].Mounts[0].Source != dir || all[0].Mounts[0].RW {
		t.Errorf("inspect: %+v", all)
	}
	expect(t, "template", husk(t, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.Config.StopSignal}} {{json .Path}} {{upper .Name}} {{join .Args \"+\"}} {{.HostConfig.Memory}}", id).ok(),
		"exited 5 QUIT \"sh\" INSPECT-A -c+exit 5 67108864\n")
	image := strings.TrimSpace(husk(t, "inspect", "--format", "{{.Image}}", id).ok())
	expect(t, "image", husk(t, "inspect", "--type", "image", "--format", "{{.Id}} {{index .RepoTags 0}} {{.Os}}", demo).ok(), image+" localhost/husk-demo:latest linux\n")
	expect(t, "both", husk(t, "inspect", "--format", "{{len .Id}}", id, demo).ok(), fmt.Sprintf("%d\n71\n", len(id)))
	r := husk(t, "inspect", "no-such-thing", id).run()
	if r.code != 1 || !strings.Contains(r.stdout, id) || !strings.Contains(r.stderr, "neither a container nor an image") {
		t.Errorf("one of two: %+v", r)
	}
	husk(t, "inspect", "--type", "container", demo).fails(1, demo, "does not exist")
	husk(t, "inspect", "--type", "volume", demo).fails(1, "--type")
	husk(t, "inspect", "--format", "{{.Nope}}", id).fails(1, "--format")
	husk(t, "inspect", "--format", "{{", id).fails(1, "--format")
	expect(t, "an empty array", strings.TrimSpace(husk(t, "inspect", "no-such-thing").run().stdout), "[]")
	husk(t, "rmi", demo).fails(1, id)
}

// TestPrune has directories of its own, whose images it may remove.
func TestPrune(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("run_dir = %q\ndata_dir = %q\ntemplate = \"off\"\n", filepath.Join(dir, "run"), filepath.Join(dir, "data"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	own := func(args ...string) *command {
		return &command{t: t, args: args, flag: []string{"--config", config}}
	}
	for _, name := range []string{"used", "unused"} {
		own("import", "--cmd", name, env.rootfs, name).ok()
	}
	own("run", "--name", "stopped", "used", "true").ok()
	own("run", "-d", "--name", "runs", "used", "sleep", "1000").ok()
	t.Cleanup(func() { own("rm", "--force", "runs", "engine").ok() })
	r := newBundle(t, "true")
	if err := own("create", "--bundle", r.write(), "engine").cmd().Run(); err != nil { // what it starts would keep a pipe open
		t.Fatal(err)
	}
	own("kill", "engine", "KILL").ok()
	until(t, "the engine's container stops", patience, func() bool { return strings.Contains(own("state", "engine").ok(), "stopped") })
	left := filepath.Join(dir, "data", "containers")
	entries, err := os.ReadDir(left)
	if err != nil {
		t.Fatal(err)
	}
	gone := strings.Replace(entries[0].Name(), strings.SplitN(entries[0].Name(), "-", 2)[0], "rebooted", 1)
	for _, name := range []string{gone, "other-00000000"} {
		if err := os.Mkdir(filepath.Join(left, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}

	no := own("prune")
	no.in = "n\n"
	expect(t, "not confirmed", no.ok(), "")
	out := own("prune", "--force").ok()
	for _, want := range []string{"container: stopped\n", "left by a container: rebooted\n", "freed: "} {
		if !strings.Contains(out, want) {
			t.Errorf("prune printed %q, want %q in it", out, want)
		}
	}
	expect(t, "containers", own("list", "--quiet").ok(), "engine\nruns\n")
	if _, err := os.Stat(filepath.Join(left, "other-00000000")); err != nil {
		t.Errorf("files of another run_dir: %v", err)
	}
	own("inspect", "unused").ok()
	yes := own("prune", "--all")
	yes.in = "y\n"
	if out := yes.ok(); !strings.Contains(out, "untagged: localhost/unused:latest\n") || strings.Contains(out, "/used:") {
		t.Errorf("prune --all printed %q", out)
	}
	own("inspect", "used").ok()
	own("inspect", "unused").fails(1, "neither")
}
