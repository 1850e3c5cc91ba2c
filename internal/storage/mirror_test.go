package storage

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/testenv"
)

// lendBack lends a directory, with what is mounted below it, whose mounts come back.
func lendBack(t *testing.T, tree *Tree, path string) string {
	t.Helper()
	c, err := CopyOf(path, How{Recursive: true, Follow: true, Return: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	name, err := tree.Lend(c)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// reflection is a tree with the directory own, which has a file, and the volume, which is a mount point that propagates.
type reflection struct {
	*Tree
	t                *testing.T
	own, volume      string
	ownPart, volPart string

	mu     sync.Mutex // guards the fields below
	there  []Mirrored // as last recorded
	warned []error
}

func (r *reflection) recorded() []Mirrored {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.there
}

func (r *reflection) record(all []Mirrored) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.there = all
	return nil
}

func (r *reflection) warn(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warned = append(r.warned, err)
}

// warnings returns what has been warned of since the last time.
func (r *reflection) warnings() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.warned
	r.warned = nil
	return all
}

func newReflection(t *testing.T) *reflection {
	t.Helper()
	r := &reflection{t: t, own: t.TempDir(), volume: t.TempDir()}
	var err error
	r.Tree, err = NewTree(filepath.Join(t.TempDir(), "share"), Host{Mounts: "/proc/self/ns/mnt", Record: r.record, Warn: r.warn})
	if err != nil {
		t.Fatal(err)
	}
	for dir, file := range map[string]string{r.own + "/etc": "file", r.own + "/etc/below": "deep", r.volume + "/point": ""} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if file != "" {
			write(t, filepath.Join(dir, file), "own")
		}
	}
	script := `mount --bind "$0" "$0" && mount --make-shared "$0"`
	if out, err := exec.Command("/bin/sh", "-c", script, r.volume).CombinedOutput(); err != nil {
		t.Fatalf("make volume: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if all := r.recorded(); len(all) != 0 {
			t.Errorf("on record in the end: %v", all)
		}
		if err := sys.Unmount(r.volume); err != nil {
			t.Error(err)
		}
	})
	if r.ownPart, err = lend(r.Tree, r.own, false, true); err != nil {
		t.Fatal(err)
	}
	r.volPart = lendBack(t, r.Tree, r.volume)
	return r
}

// guest tells of mounts by the paths below the volume and below own.
func (r *reflection) guest(pairs ...string) {
	r.t.Helper()
	var all []Mounted
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, Mounted{Target: r.volPart + "/" + pairs[i], Source: filepath.Join(r.ownPart, pairs[i+1])})
	}
	r.Mirror(all)
}

func (r *reflection) warnedOf(count int) {
	r.t.Helper()
	if all := r.warnings(); len(all) != count {
		r.t.Errorf("warned of %v, want %d errors", all, count)
	}
}

func TestMirror(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	r := newReflection(t)
	point := filepath.Join(r.volume, "point")
	for range 2 {
		r.guest("point", "etc")
		holds(t, filepath.Join(point, "file"), "own")
	}
	id := r.recorded()[0].ID
	gone(t, filepath.Join(r.Path(), r.volPart, "point")) // the guest has its own mount there, and is to keep it
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(table), "\n") {
		if strings.Contains(line, " "+point+" ") && !strings.Contains(line, "nosuid,nodev,noexec") {
			t.Errorf("mounted as %s, want neither programs nor devices", line)
		}
	}
	r.guest("point", "etc", "point", ".") // two on one another: the last shows
	holds(t, filepath.Join(point, "etc/file"), "own")
	r.guest("point", "etc", "point", ".")
	if all := r.recorded(); len(all) != 1 || all[0].ID == id {
		t.Errorf("on record is %v, want one mount that is not %d", all, id)
	}
	id = r.recorded()[0].ID
	r.guest("point", "etc", "point", ".")
	if r.recorded()[0].ID != id {
		t.Error("the same mount was made again")
	}
	r.guest("point", ".", "point/etc", "etc/below") // one on the other
	holds(t, filepath.Join(point, "etc/deep"), "own")
	r.guest("point", "etc", "point/below", "etc")
	holds(t, filepath.Join(point, "below/file"), "own")
	r.guest()
	gone(t, point)

	r.guest("point", "etc")
	if err := r.Give(r.volPart); err != nil {
		t.Error(err)
	}
	gone(t, point)
	r.warnedOf(0)
}

// gone checks that nothing is mounted on a mount point, or left in it.
func gone(t *testing.T, point string) {
	t.Helper()
	if all, err := os.ReadDir(point); err != nil || len(all) != 0 {
		t.Errorf("%s has %v, %v; want nothing", point, all, err)
	}
}

// TestMirrorHostile mounts nothing that was not lent, and nowhere else.
func TestMirrorHostile(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	r := newReflection(t)
	own, part, outside := r.ownPart, r.volPart, t.TempDir()
	for link, to := range map[string]string{
		filepath.Join(r.volume, "way"): outside, filepath.Join(r.own, "root"): "/", filepath.Join(r.volume, "up"): "..",
	} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := os.ReadFile("/proc/self/mountinfo")
	for _, m := range []Mounted{
		{own + "/etc", own}, // lent, but not for mounts
		{part, own}, {part + "/", own}, {part + "/.", own}, {part + "/..", own}, {part + "/../" + own, own}, {part + "/point/.", own},
		{part + "/way", own}, {part + "/up", own}, {part + "/up/x", own}, {part + "//" + outside, own},
		{part + "/point", ""}, {part + "/point", "."}, {part + "/point", ".."}, {part + "/point", "/"}, {part + "/point", own + "/../.."},
		{part + "/point", own + "/root"}, {part + "/point", own + "/root/etc"}, {part + "/point", "17"},
		{"17/point", own}, {"", own}, {"/", "/"}, {part + "/none", own}, {part + "/point\x00", own}, {part + "/" + strings.Repeat("x/", 3000), own},
	} {
		r.Tree.mirror.changes = mirrorBurst
		r.Mirror([]Mounted{m})
		if len(r.warnings()) == 0 {
			t.Errorf("mirrored %+v", m)
		}
		r.Mirror([]Mounted{m})
		r.warnedOf(0) // of the same once
	}
	r.Tree.mirror.changes = mirrorBurst
	r.guest()
	if after, _ := os.ReadFile("/proc/self/mountinfo"); string(after) != string(before) {
		t.Errorf("mounts before:\n%s\nafter:\n%s", before, after)
	}
}

// TestMirrorMany bounds how much and how often a guest mounts.
func TestMirrorMany(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	r := newReflection(t)
	var pairs []string
	for i := range maxMirrored + 5 {
		name := fmt.Sprint(i)
		if err := os.Mkdir(filepath.Join(r.volume, name), 0o755); err != nil {
			t.Fatal(err)
		}
		pairs = append(pairs, name, "etc")
	}
	r.guest(pairs...)
	if n := len(r.recorded()); n != maxMirrored {
		t.Errorf("made %d mounts, want %d", n, maxMirrored)
	}
	r.warnedOf(1)
	r.guest()

	for i := range 3 * mirrorBurst {
		r.guest("point", []string{".", "etc"}[i%2])
	}
	r.guest("0", "etc")
	if all := r.recorded(); len(all) == 1 && all[0].Name == "0" {
		t.Error("a guest that changes its mounts all the time has the host do the same")
	}
	for end := time.Now().Add(20 * time.Second); !exists(filepath.Join(r.volume, "0/file")); {
		if time.Now().After(end) {
			t.Fatal("the last change does not come about")
		}
		time.Sleep(20 * time.Millisecond)
	}
	gone(t, filepath.Join(r.volume, "point"))
	r.endMirror("") // and waits for a change that is on its way
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// TestUnmirror ends the mounts of a process that could not, and nobody else's.
func TestUnmirror(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	r := newReflection(t)
	list, point := filepath.Join(t.TempDir(), "list"), filepath.Join(r.volume, "point")
	if err := Unmirror(list); err != nil {
		t.Errorf("without a list: %v", err)
	}
	r.guest("point", "etc")
	data, err := json.Marshal(r.recorded())
	if err != nil {
		t.Fatal(err)
	}
	write(t, list, string(data))
	if err := Unmirror(list); err != nil {
		t.Error(err)
	}
	gone(t, point)
	if out, err := exec.Command("mount", "--bind", r.own, point).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	if err := Unmirror(list); err != nil {
		t.Error(err)
	}
	// Before Linux 6.8 it may have the number of the mount that is gone.
	holds(t, filepath.Join(point, "etc/file"), "own")
	write(t, list, "no list")
	if err := Unmirror(list); err == nil {
		t.Error("no error of a list that is none")
	}
}

// TestMirrorMoved ends a mount whose guest has renamed a directory above it.
func TestMirrorMoved(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	r := newReflection(t)
	if err := os.MkdirAll(filepath.Join(r.volume, "a/point"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.guest("a/point", "etc")
	holds(t, filepath.Join(r.volume, "a/point/file"), "own")
	if err := os.Rename(filepath.Join(r.volume, "a"), filepath.Join(r.volume, "b")); err != nil {
		t.Fatal(err)
	}
	r.guest()
	gone(t, filepath.Join(r.volume, "b/point"))
	r.warnedOf(0)
}
