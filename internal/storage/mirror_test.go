package storage

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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

// mirrorTree is a tree with the directory own, which has a file, and the volume, which is a mount point that propagates.
func mirrorTree(t *testing.T) (tree *Tree, own, volume, ownName, volumeName string) {
	t.Helper()
	tree, err := NewTree(filepath.Join(t.TempDir(), "share"), "/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
	own, volume = t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(own, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(own, "etc/file"), "own")
	if err := os.Mkdir(filepath.Join(volume, "point"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := `mount --bind "$0" "$0" && mount --make-shared "$0"`
	if out, err := exec.Command("/bin/sh", "-c", script, volume).CombinedOutput(); err != nil {
		t.Fatalf("make volume: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := sys.Unmount(volume); err != nil {
			t.Error(err)
		}
	})
	ownName, err = lend(tree, own, false, true)
	if err != nil {
		t.Fatal(err)
	}
	return tree, own, volume, ownName, lendBack(t, tree, volume)
}

func TestMirror(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	tree, _, volume, own, part := mirrorTree(t)
	there, seen := []Mounted{{part + "/point", own + "/etc"}}, filepath.Join(volume, "point/file")
	for range 2 {
		if now, err := tree.Mirror(there); err != nil || len(now) != 1 {
			t.Fatalf("mirrored %v, %v", now, err)
		}
		holds(t, seen, "own")
	}
	table, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(table), "\n") {
		if strings.Contains(line, " "+volume+"/point ") && !strings.Contains(line, "nosuid,nodev,noexec") {
			t.Errorf("mounted as %s, want neither programs nor devices", line)
		}
	}
	// The guest mounts something else there.
	if _, err := tree.Mirror([]Mounted{{part + "/point", own}}); err != nil {
		t.Error(err)
	}
	holds(t, filepath.Join(volume, "point/etc/file"), "own")
	if now, err := tree.Mirror(nil); err != nil || len(now) != 0 {
		t.Errorf("left %v, %v", now, err)
	}
	gone(t, filepath.Join(volume, "point"))

	if _, err := tree.Mirror(there); err != nil {
		t.Error(err)
	}
	if err := tree.Give(part); err != nil {
		t.Error(err)
	}
	gone(t, filepath.Join(volume, "point"))
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
	tree, own, volume, ownName, part := mirrorTree(t)
	outside := t.TempDir()
	for link, to := range map[string]string{
		filepath.Join(volume, "way"): outside, filepath.Join(own, "root"): "/", filepath.Join(volume, "up"): "..",
	} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := os.ReadFile("/proc/self/mountinfo")
	for _, m := range []Mounted{
		{ownName + "/etc", ownName}, // lent, but not for mounts
		{part, ownName}, {part + "/", ownName}, {part + "/.", ownName}, {part + "/..", ownName}, {part + "/../" + ownName, ownName},
		{part + "/way", ownName}, {part + "/up", ownName}, {part + "/up/x", ownName}, {part + "//" + outside, ownName},
		{part + "/point", ""}, {part + "/point", ".."}, {part + "/point", "/"}, {part + "/point", ownName + "/../.."}, {part + "/point", ownName + "/root"},
		{part + "/point", ownName + "/root/etc"}, {part + "/point", "17"}, {"17/point", ownName}, {"", ownName}, {"/", "/"}, {part + "/none", ownName},
		{part + "/point\x00", ownName}, {part + "/" + strings.Repeat("x/", 3000), ownName},
	} {
		now, err := tree.Mirror([]Mounted{m})
		if m.Target == part+"/." { // the volume itself, which is in it
			tree.Mirror(nil)
			continue
		}
		if err == nil || len(now) != 0 {
			t.Errorf("mirrored %+v: %v", m, now)
		}
		if _, err := tree.Mirror([]Mounted{m}); err != nil {
			t.Errorf("told twice that %+v fails: %v", m, err)
		}
	}
	tree.Mirror(nil)
	if after, _ := os.ReadFile("/proc/self/mountinfo"); string(after) != string(before) {
		t.Errorf("mounts before:\n%s\nafter:\n%s", before, after)
	}
	var many []Mounted
	for range maxMirrored + 1 {
		many = append(many, Mounted{part + "/point", ownName})
	}
	if now, err := tree.Mirror(many); err == nil || len(now) != 1 {
		t.Errorf("of too many mounts %d were made, %v", len(now), err)
	}
}

// TestUnmirror ends the mounts of a process that could not, and nobody else's.
func TestUnmirror(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	tree, own, volume, ownName, part := mirrorTree(t)
	list := filepath.Join(t.TempDir(), "list")
	if err := Unmirror(list); err != nil {
		t.Errorf("without a list: %v", err)
	}
	now, err := tree.Mirror([]Mounted{{part + "/point", ownName + "/etc"}})
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(now)
	if err != nil {
		t.Fatal(err)
	}
	write(t, list, string(data))
	point := filepath.Join(volume, "point")
	if err := Unmirror(list); err != nil {
		t.Error(err)
	}
	gone(t, point)
	if out, err := exec.Command("mount", "--bind", own, point).CombinedOutput(); err != nil {
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
