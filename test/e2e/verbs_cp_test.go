package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// workplace is a directory of the host with files to copy:
//
//	tree/one (0640, of 2020)  tree/sub/ (0750)  tree/sub/two  tree/link -> one  tree/set (4755)
func workplace(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	then := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	err := errors.Join(os.MkdirAll(in("tree/sub"), 0o755), os.WriteFile(in("tree/one"), []byte("one\n"), 0o640),
		os.WriteFile(in("tree/sub/two"), []byte("two\n"), 0o644), os.Symlink("one", in("tree/link")), os.WriteFile(in("tree/set"), nil, 0o755),
		os.Chmod(in("tree/set"), 0o755|fs.ModeSetuid), os.Chown(in("tree/sub"), 1000, 1001), os.Chtimes(in("tree/one"), then, then), os.Chmod(in("tree/sub"), 0o750))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// cp is husk cp in a directory.
func cp(t *testing.T, dir string, args ...string) *command {
	c := husk(t, append([]string{"cp"}, args...)...)
	c.dir = dir
	return c
}

// guestProcesses are the processes of a guest that copy files.
func guestProcesses(t *testing.T, id string) string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(husk(t, "shell", id, "ps", "-o", "pid,args").ok()) {
		if strings.Contains(line, "copy-files") {
			lines = append(lines, line[:min(len(line), 60)])
		}
	}
	return strings.Join(lines, "\n")
}

func TestCopy(t *testing.T) {
	begin(t)
	dir := workplace(t)
	id := detach(t, "cp", demo, "sh", "-c", "mkdir /d && echo old >/d/file && ln -s /d /abs && ln -s d/file /rel && umask 0 && sleep 100000")
	until(t, "the container's files", patience, func() bool { return husk(t, "exec", id, "test", "-L", "/rel").run().code == 0 })
	look := func(script string) string { return husk(t, "exec", id, "sh", "-c", script).ok() }

	cp(t, dir, "tree", id+":/").ok()
	expect(t, "the tree in the container", look("cd tree && stat -c '%n %a %u %g' * sub/two && stat -c %Y one && cat one sub/two && readlink link"),
		"link 777 0 0\none 640 0 0\nset 755 0 0\nsub 750 0 0\nsub/two 644 0 0\n1577934245\none\ntwo\none\n")
	cp(t, dir, "-a", "tree", id+":/kept").ok()
	expect(t, "the tree with its users", look("cd kept && stat -c '%n %a %u %g' set sub"), "set 4755 0 0\nsub 750 1000 1001\n")
	cp(t, dir, "tree/.", id+":/abs").ok()
	expect(t, "its contents, through a symlink", look("cat /d/one /d/sub/two /d/file"), "one\ntwo\nold\n")
	cp(t, dir, "tree/one", id+":/rel").ok()
	expect(t, "a file for a file, through a symlink", look("cat /d/file; readlink /rel"), "one\nd/file\n")
	cp(t, dir, "-L", "tree/link", id+":etc/").ok() // relative to the root
	cp(t, dir, "tree/link", id+":/d/symlink").ok()
	expect(t, "a symlink, followed and not", look("cat /etc/link; readlink /d/symlink"), "one\none\n")

	cp(t, dir, id+":/tree", "back").ok()
	for _, name := range []string{"", "one", "sub", "sub/two", "link", "set"} {
		was, err := os.Lstat(filepath.Join(dir, "tree", name))
		is, err2 := os.Lstat(filepath.Join(dir, "back", name))
		if err != nil || err2 != nil || was.Mode()&^fs.ModeSetuid != is.Mode() || !was.ModTime().Equal(is.ModTime()) || is.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%q came back as %v, %v; was %v", name, is, err2, was)
		}
	}
	cp(t, dir, "--archive", id+":/kept", ".").ok()
	info, err := os.Stat(filepath.Join(dir, "kept/sub"))
	set, err2 := os.Stat(filepath.Join(dir, "kept/set"))
	if err != nil || err2 != nil || info.Sys().(*syscall.Stat_t).Uid != 1000 || set.Mode()&fs.ModeSetuid == 0 {
		t.Errorf("with its users: %v, %v, %v, %v", info, err, set, err2)
	}
	cp(t, dir, id+":/rel", "followed").ok()
	cp(t, dir, "-L", id+":/rel", "file").ok()
	if to, err := os.Readlink(filepath.Join(dir, "followed")); err != nil || to != "d/file" {
		t.Errorf("a symlink came out as %q, %v", to, err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "file"))
	expect(t, "what it leads to", fmt.Sprint(string(data), err), "one\n<nil>")
	expect(t, "processes that are left", guestProcesses(t, id), "")
	husk(t, "__complete", "cp", "c").ok()
	expect(t, "completion", strings.Contains(husk(t, "__complete", "cp", "").ok(), id+":\n"), true)
}

// TestCopyRefused: what cannot be copied is told in one line.
func TestCopyRefused(t *testing.T) {
	begin(t)
	dir := workplace(t)
	id := detach(t, "cp-refused", demo, "sh", "-c", "echo old >/file; mkdir /dir; mkfifo /dir/pipe; sleep 100000")
	until(t, "the container's files", patience, func() bool { return husk(t, "exec", id, "test", "-p", "/dir/pipe").run().code == 0 })
	for _, c := range []struct {
		from, to string
		words    string
	}{
		{id + ":/no", ".", "no such file or directory"}, {"no", id + ":/", "no such file or directory"}, {"tree", id + ":/no/no", `directory "/no" does not exist`},
		{"tree/one", id + ":/no/", "no such directory"}, {"tree", id + ":/file", "which a directory does not replace"}, {"tree/one", id + ":/file/", "not a directory"},
		{id + ":/file/", ".", "not a directory"}, {id + ":/dir", "tree/one", "which a directory does not replace"}, {id + ":/file", "no/", "no such directory"},
		{id + ":/file", "no/no", "does not exist"}, {id + ":/file", "/dev/null", "neither a file nor a directory"}, {"tree/one", id + ":/dev/null", "neither a file nor a directory"},
		{id + ":/proc/uptime", ".", "/proc"}, {id + ":/a", id + ":/b", "husk cp -"}, {"tree", "other", "ID:PATH"}, {id + ":", "x", "path is empty"},
		{"no-such-container:/x", ".", "does not exist"}, {"tree/one", id + ":/proc/1/root/x", "too many levels"},
	} {
		cp(t, dir, c.from, c.to).fails(1, c.words)
	}
	r := cp(t, dir, id+":/dir", "out").fails(0, "left out", "dir/pipe")
	if _, err := os.Lstat(filepath.Join(dir, "out/pipe")); !errors.Is(err, fs.ErrNotExist) || r.stdout != "" {
		t.Errorf("a pipe came out: %v, %+v", err, r)
	}
	cp(t, dir, "-a", id+":/dir", "again").ok()
	if info, err := os.Lstat(filepath.Join(dir, "again/pipe")); err != nil || info.Mode().Type() != fs.ModeNamedPipe {
		t.Errorf("with --archive: %v, %v", info, err)
	}
	husk(t, "cp", "-").fails(1, "2 arg")
}

// TestCopyStream copies tar archives.
func TestCopyStream(t *testing.T) {
	begin(t)
	dir := workplace(t)
	id := detach(t, "cp-stream", demo, "sh", "-c", "mkdir -p /d/sub; ln -s d /l; echo x >/d/sub/file; sleep 100000")
	until(t, "the container's files", patience, func() bool { return husk(t, "exec", id, "test", "-s", "/d/sub/file").run().code == 0 })
	for path, want := range map[string]string{"/d": "d/ d/sub/ d/sub/file", "/d/sub/.": "./ file", "/d/sub/file": "file", "/l/": "l/ l/sub/ l/sub/file", "/l": "l"} {
		var names []string
		in := tar.NewReader(strings.NewReader(cp(t, dir, id+":"+path, "-").ok()))
		h, err := in.Next()
		for ; err == nil; h, err = in.Next() {
			names = append(names, h.Name)
		}
		if got := strings.Join(names, " "); err != io.EOF || got != want {
			t.Errorf("%s: %q, %v, want %q", path, got, err, want)
		}
	}
	archive, err := exec.Command("tar", "-C", dir, "-c", "tree", "./tree/sub/two").Output()
	if err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	if _, err := w.Write(archive); err != nil || w.Close() != nil {
		t.Fatal("cannot compress: ", err)
	}
	for place, data := range map[string]string{"/l": string(archive), "/tmp/.": zipped.String()} {
		c := cp(t, dir, "-", id+":"+place)
		c.in = data
		c.ok()
		expect(t, "unpacked in "+place, husk(t, "exec", id, "cat", strings.TrimSuffix(place, ".")+"/tree/sub/two").ok(), "two\n")
	}
	for place, words := range map[string]string{"/no": "no such directory", "/d/sub/file": "not a directory"} {
		c := cp(t, dir, "-", id+":"+place)
		c.in = string(archive)
		c.fails(1, words)
	}
	c := cp(t, dir, "-", id+":/d")
	c.in = strings.Repeat("no archive", 1000)
	c.fails(1, "tar")
	// Whoever writes the archive may have more to say for long.
	slow := cp(t, dir, "-", id+":/no").cmd()
	in, err := slow.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if out, err := slow.CombinedOutput(); err == nil || !strings.Contains(string(out), "no such directory") {
		t.Errorf("an archive that does not end: %v, %s", err, out)
	}
	expect(t, "processes that are left", guestProcesses(t, id), "")
}

// TestCopyPlaces copies to and from what is no writable disk, and the files that husk has mounted.
func TestCopyPlaces(t *testing.T) {
	begin(t)
	dir := workplace(t)
	for _, sub := range []string{"volume", "readonly"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	id := detach(t, "cp-places", "--read-only", "-v", dir+"/volume:/volume", "-v", dir+"/readonly:/readonly:ro", demo, "sleep", "100000")
	cp(t, dir, "tree", id+":/volume").ok()
	data, err := os.ReadFile(filepath.Join(dir, "volume/tree/sub/two"))
	expect(t, "a file in the volume", fmt.Sprint(string(data), err), "two\n<nil>")
	cp(t, dir, id+":/volume/tree", "back").ok()
	cp(t, dir, "tree", id+":/dev/shm/").ok()
	expect(t, "a file in a tmpfs", husk(t, "exec", id, "cat", "/dev/shm/tree/one").ok(), "one\n")
	for _, place := range []string{"/", "/readonly", "/etc/passwd"} {
		cp(t, dir, "tree/one", id+":"+place).fails(1, "read-only file system")
	}
	husk(t, "pause", id).ok()
	cp(t, dir, "tree/one", id+":/dev/shm").ok()
	husk(t, "resume", id).ok()
	expect(t, "a file that came into a paused container", husk(t, "exec", id, "cat", "/dev/shm/one").ok(), "one\n")

	root := detach(t, "cp-rootfs", "--rootfs", env.rootfs, "sleep", "100000")
	cp(t, dir, "tree/one", root+":/tmp/one").ok()
	cp(t, dir, root+":/tmp/one", "two").ok()
	expect(t, "a file of a root that is shared", husk(t, "exec", root, "cat", "/tmp/one").ok(), "one\n")
	husk(t, "exec", root, "rm", "/tmp/one").ok()
}

// TestCopyStopped copies of containers that have stopped: their files are there for as long as the VM is.
func TestCopyStopped(t *testing.T) {
	begin(t)
	dir := workplace(t)
	id := detach(t, "cp-stopped", demo, "true")
	husk(t, "wait", id).ok()
	until(t, "the VM's end", patience, func() bool { return !record(t, id).Owner.Alive() })
	cp(t, dir, id+":/etc/passwd", ".").fails(1, "has stopped", "--volume")
	root := detach(t, "cp-stopped-root", "--rootfs", env.rootfs, "true")
	husk(t, "wait", root).ok()
	until(t, "the VM's end", patience, func() bool { return !record(t, root).Owner.Alive() })
	cp(t, dir, "tree", root+":/tmp").fails(1, "has stopped", env.rootfs)

	pod := newSandbox(t)
	member := newMember(t, pod, "member", "echo left >/dev/shm/file").up()
	until(t, "the container's end", patience, func() bool { return status(t, member.id) == "stopped" })
	cp(t, dir, member.id+":/dev/shm/file", ".").ok()
	data, err := os.ReadFile(filepath.Join(dir, "file"))
	expect(t, "a file of a container that has stopped", fmt.Sprint(string(data), err), "left\n<nil>")
}

func TestCopyLarge(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	const size = 100 << 20
	f, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(f, sum), newNoise(size)); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%x", sum.Sum(nil))
	id := detach(t, "cp-large", demo, "sleep", "100000")
	cp(t, dir, "large", id+":/large").ok()
	expect(t, "the sum in the container", strings.Fields(husk(t, "exec", id, "sha256sum", "/large").ok())[0], want)
	cp(t, dir, id+":/large", "back").ok()
	back, err := os.Open(filepath.Join(dir, "back"))
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	sum.Reset()
	n, err := io.Copy(sum, back)
	expect(t, "what came back", fmt.Sprintf("%d %x %v", n, sum.Sum(nil), err), fmt.Sprintf("%d %s <nil>", size, want))
}

// TestCopyInterrupted ends cp in the middle, both ways, as a user does and as nobody should: of what was copied nothing is left,
// and what was there before stays.
func TestCopyInterrupted(t *testing.T) {
	begin(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "out"), []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "endless"))
	if err == nil {
		err = errors.Join(f.Truncate(1<<40), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	id := detach(t, "cp-interrupted", demo, "sh", "-c", "mkdir /d; echo before >/d/in; truncate -s 1000G /endless 2>/dev/null || truncate -s 1000000000 /endless; sleep 100000")
	until(t, "the container's files", patience, func() bool { return husk(t, "exec", id, "test", "-s", "/endless").run().code == 0 })
	for _, how := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		for _, args := range [][]string{{"endless", id + ":/d/in"}, {id + ":/endless", "out"}, {id + ":/endless", "-"}} {
			c := cp(t, dir, args...).cmd()
			var stderr bytes.Buffer
			c.Stderr = &stderr
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			until(t, "a process that copies", patience, func() bool { return guestProcesses(t, id) != "" })
			time.Sleep(100 * time.Millisecond)
			if err := c.Process.Signal(how); err != nil {
				t.Fatal(err)
			}
			err := c.Wait()
			if how != syscall.SIGKILL && (c.ProcessState.ExitCode() != 1 || !strings.Contains(stderr.String(), "interrupted")) {
				t.Errorf("%v of cp %q: %v, %q", how, args, err, stderr.String())
			}
			if how != syscall.SIGKILL {
				expect(t, "processes that are left", guestProcesses(t, id), "")
			}
			until(t, "their end", patience, func() bool { return guestProcesses(t, id) == "" })
		}
	}
	expect(t, "files in the container", husk(t, "exec", id, "sh", "-c", "ls -A /d; cat /d/in").ok(), "in\nbefore\n")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	data, err := os.ReadFile(filepath.Join(dir, "out"))
	expect(t, "files on the host", fmt.Sprint(names, string(data), err), "[endless out]before<nil>")
}
