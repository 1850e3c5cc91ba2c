package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestFaultDataDiskFull runs out of space where images and disks are kept.
func TestFaultDataDiskFull(t *testing.T) {
	begin(t)
	disk := smallDisk(t, "32m")
	config := disk.config(filepath.Join(t.TempDir(), "run"), filepath.Join(disk.dir, "data"))
	layout := "oci:" + ociLayout(t, plainImage(t, "full"))
	// What is made once, the store and a blank disk, is there before the disk is full.
	disk.husk(config, "import", "--cmd", "sh", env.rootfs, "first").ok()
	disk.husk(config, "run", "--rm", "first", "true").ok()
	before := disk.files("data")

	disk.fill(1 << 20)
	disk.husk(config, "import", incompressible(t, 4<<20), "second").fails(1, "no space")
	disk.husk(config, "pull", layout).fails(1, "no space")
	disk.husk(config, "run", "--rm", layout, "true").fails(125, "no space")
	disk.fill(0)
	disk.husk(config, "run", "--rm", "first", "true").fails(125, "no space")
	disk.husk(config, "run", "-d", "--name", "never", "first", "true").fails(125, "no space")
	if out := disk.husk(config, "list", "-q").ok(); out != "" {
		t.Errorf("containers that could not be made are listed: %q", out)
	}
	if out := disk.husk(config, "images", "-q").ok(); strings.Count(out, "\n") != 1 {
		t.Errorf("images: %q, want the first alone", out)
	}
	if after := disk.files("data"); strings.Join(after, "\n") != strings.Join(before, "\n") {
		t.Errorf("files before the disk was full:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
	// What needs no disk goes on.
	if out := disk.husk(config, "run", "--rm", "--storage-size", "0", "first", "echo", "works").ok(); out != "works\n" {
		t.Errorf("run without a disk printed %q", out)
	}
}

// incompressible makes a directory with a file of n random bytes.
func incompressible(t *testing.T, n int64) string {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "noise"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.Reader, n); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestFaultRunDiskFull runs out of space where containers' state is kept.
func TestFaultRunDiskFull(t *testing.T) {
	begin(t)
	disk := smallDisk(t, "1m")
	config := disk.config(filepath.Join(disk.dir, "run"), env.data)
	bundle := newBundle(t, "true").write()
	disk.fill(0)
	disk.husk(config, "run", "--rm", demo, "true").fails(125, "no space")
	disk.husk(config, "create", "--bundle", bundle, "never").fails(1, "no space")
	if left := disk.files("run"); len(left) > 0 {
		t.Errorf("left in run_dir: %q", left)
	}
}

// TestFaultContainerDiskFull fills what a container can write to: the container is told and lives on.
func TestFaultContainerDiskFull(t *testing.T) {
	begin(t)
	for _, c := range []struct {
		size     string
		from, to int // MiB that fit
	}{{"24m", 16, 24}, {"0", 64, 512}} {
		out := husk(t, "run", "--rm", "--storage-size", c.size, demo, "sh", "-c",
			`dd if=/dev/zero of=/fill bs=64k; echo "dd: $?"; rm /fill; echo again >/file && cat /file`).run()
		if out.code != 0 || !strings.Contains(out.stdout, "dd: 1\nagain\n") || !strings.Contains(out.stderr, "No space left") {
			t.Errorf("exit code %d, stdout %q, stderr %q: want a full disk and then a file", out.code, out.stdout, out.stderr)
			continue
		}
		match := regexp.MustCompile(`(\d+)\+\d+ records out`).FindStringSubmatch(out.stderr)
		if match == nil {
			t.Errorf("dd printed %q", out.stderr)
			continue
		}
		blocks, err := strconv.Atoi(match[1])
		if err != nil {
			t.Fatal(err)
		}
		if got := blocks * 64 >> 10; got < c.from || got > c.to {
			t.Errorf("--storage-size %s took %d MiB, want %d to %d", c.size, got, c.from, c.to)
		}
	}
}

// TestFaultHostDiskFullUnderContainer fills the host's disk under a container's sparse one: the container
// gets an error for what it writes, and lives on.
func TestFaultHostDiskFullUnderContainer(t *testing.T) {
	begin(t)
	disk := smallDisk(t, "48m")
	config := disk.config(filepath.Join(t.TempDir(), "run"), filepath.Join(disk.dir, "data"))
	disk.husk(config, "import", "--cmd", "sh", env.rootfs, "first").ok()
	id := "squeezed"
	t.Cleanup(func() { disk.husk(config, "delete", "--force", id).ok() })
	disk.husk(config, "run", "-d", "--name", id, "--storage-size", "256m", "first", "sleep", "1000").ok()
	disk.fill(4 << 20)
	r := disk.husk(config, "exec", id, "sh", "-c", "dd if=/dev/zero of=/fill bs=1M count=64 conv=fsync; echo dd: $?").run()
	if r.code != 0 || r.stdout != "dd: 1\n" {
		t.Errorf("exit code %d, stdout %q, stderr %q: want dd to fail", r.code, r.stdout, r.stderr)
	}
	if out := disk.husk(config, "exec", id, "echo", "alive").ok(); out != "alive\n" {
		t.Errorf("exec printed %q", out)
	}
}

// TestFaultStorageInMemory keeps what a container writes in guest memory, or on a disk of the host.
func TestFaultStorageInMemory(t *testing.T) {
	begin(t)
	for size, disks := range map[string]int{"0": 0, "64m": 1} {
		id := detach(t, "weight-"+size, "--storage-size", size, demo, "sh", "-c", "echo kept >/file; exec sleep 1000")
		if out := husk(t, "exec", id, "cat", "/file").ok(); out != "kept\n" {
			t.Errorf("the file holds %q", out)
		}
		if files, err := filepath.Glob(filepath.Join(env.data, "containers", id+"*", "*.img")); err != nil || len(files) != disks {
			t.Errorf("--storage-size %s: the container has the disks %v (%v), want %d", size, files, err, disks)
		}
	}
}

// TestFaultOutOfMemory takes more memory than the limit allows.
func TestFaultOutOfMemory(t *testing.T) {
	begin(t)
	const hog = "dd if=/dev/zero of=/dev/null bs=300M count=1"
	t.Run("the program", func(t *testing.T) {
		begin(t)
		const id = "hungry"
		remove(t, id)
		feed, food, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer feed.Close()
		defer food.Close()
		cmd := husk(t, "run", "--name", id, "-i", "--memory", "64m", demo, "sh", "-c", "echo up; read x; exec "+hog).cmd()
		cmd.Stdin = feed
		c := begun(t, cmd)
		c.prints("up\n")
		events := husk(t, "events", "--interval", "200ms", id).start()
		events.prints(`"type":"stats"`) // it listens
		if _, err := io.WriteString(food, "go\n"); err != nil {
			t.Fatal(err)
		}
		if r := c.wait(); r.code != 137 {
			t.Errorf("exit code %d, want 137; stderr %q", r.code, r.stderr)
		}
		if r := events.wait(); !strings.Contains(r.stdout, `"type":"oom"`) {
			t.Errorf("events printed no oom: %s", r.stdout)
		}
		husk(t, "delete", id).ok()
	})
	t.Run("a child of it", func(t *testing.T) {
		begin(t)
		out := husk(t, "run", "--rm", "--memory", "64m", demo, "sh", "-c", hog+"; echo dd: $?").run()
		if out.code != 0 || out.stdout != "dd: 137\n" {
			t.Errorf("exit code %d, stdout %q, stderr %q: want the child killed alone", out.code, out.stdout, out.stderr)
		}
	})
}

// TestFaultGuestOutOfMemory takes all memory of the machine in a container without a limit: the guest's
// kernel ends what took it, not the agent.
func TestFaultGuestOutOfMemory(t *testing.T) {
	begin(t)
	id := detach(t, "glutton", demo, "sleep", "1000")
	if r := husk(t, "exec", id, "sh", "-c", "tail /dev/zero; echo tail: $?").run(); r.code != 0 || r.stdout != "tail: 137\n" {
		t.Errorf("exit code %d, stdout %q, stderr %q: want the child killed alone", r.code, r.stdout, r.stderr)
	}
	if out := husk(t, "exec", id, "echo", "alive").ok(); out != "alive\n" {
		t.Errorf("exec printed %q", out)
	}
}

// TestFaultManyAtOnce starts many containers at the same time.
func TestFaultManyAtOnce(t *testing.T) {
	begin(t)
	n := 10
	if large() {
		n = 20
	}
	began := time.Now()
	all := make([]*running, n)
	for i := range all {
		all[i] = husk(t, "run", "--rm", demo, "sh", "-c", fmt.Sprintf("echo this is %d; exit %d", i, i)).start()
	}
	for i, c := range all {
		r := c.wait()
		if want := fmt.Sprintf("this is %d\n", i); r.code != i || r.stdout != want || r.stderr != "" {
			t.Errorf("container %d: exit code %d, stdout %q, stderr %q", i, r.code, r.stdout, r.stderr)
		}
	}
	t.Logf("%d containers in %v", n, time.Since(began).Round(10*time.Millisecond))
}

// TestFaultManyInARow runs containers one after the other: neither files nor processes add up.
func TestFaultManyInARow(t *testing.T) {
	begin(t)
	husk(t, "run", "--rm", demo, "true").ok()
	husk(t, "run", "--rm", "--rootfs", env.rootfs, "true").ok()
	before := tree(t)
	began := time.Now()
	const n = 5
	for range n {
		husk(t, "run", "--rm", demo, "true").ok()
		husk(t, "run", "--rm", "--rootfs", env.rootfs, "true").ok()
	}
	t.Logf("%v a container", (time.Since(began) / (2 * n)).Round(time.Millisecond))
	if after := tree(t); after != before {
		t.Errorf("files before:\n%s\nafter:\n%s", before, after)
	}
}

// tree lists all files of husk.
func tree(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, dir := range []string{env.run, env.data} {
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			fmt.Fprintln(&all, path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}

// TestFaultSameName runs two containers under one name at the same moment: one of them wins.
func TestFaultSameName(t *testing.T) {
	begin(t)
	const n = 4
	var all sync.WaitGroup
	results := make([]result, n)
	for i := range n {
		all.Go(func() {
			cmd := husk(t, "run", "--rm", "--name", "popular", demo, "sh", "-c", "echo won; sleep 3").cmd()
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			_ = cmd.Run() // the exit code tells
			results[i] = result{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
		})
	}
	all.Wait()
	won := 0
	for _, r := range results {
		switch {
		case r.code == 0 && r.stdout == "won\n":
			won++
		case r.code == 125 && strings.Contains(r.stderr, "popular") && strings.Contains(r.stderr, "in use"):
		default:
			t.Errorf("exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
		}
	}
	if won != 1 {
		t.Errorf("%d containers got the name, want 1", won)
	}
}
