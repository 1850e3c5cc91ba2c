package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// kubeletVolume is a volume as the kubelet makes it of a ConfigMap, a Secret and the like.
type kubeletVolume struct {
	t       *testing.T
	dir     string
	version int
}

func newKubeletVolume(t *testing.T, kind string) *kubeletVolume {
	t.Helper()
	v := &kubeletVolume{t: t, dir: filepath.Join(t.TempDir(), "pods/1234/volumes/kubernetes.io~"+kind+"/conf")}
	if err := os.MkdirAll(v.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return v
}

// put replaces all files at once.
func (v *kubeletVolume) put(files map[string]string) {
	v.t.Helper()
	old := fmt.Sprintf("..%d", v.version)
	v.version++
	name := fmt.Sprintf("..%d", v.version)
	must := func(err error) {
		v.t.Helper()
		if err != nil {
			v.t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(v.dir, name), 0o755))
	for key, content := range files {
		must(os.WriteFile(filepath.Join(v.dir, name, key), []byte(content), 0o644))
	}
	must(os.Symlink(name, filepath.Join(v.dir, "..data_tmp")))
	must(os.Rename(filepath.Join(v.dir, "..data_tmp"), filepath.Join(v.dir, "..data")))
	for key := range files {
		if _, err := os.Lstat(filepath.Join(v.dir, key)); err != nil {
			must(os.Symlink(filepath.Join("..data", key), filepath.Join(v.dir, key)))
		}
	}
	must(os.RemoveAll(filepath.Join(v.dir, old)))
}

// TestFilesCopied has containers hear from their kernel of changes of what the kubelet gives them.
func TestFilesCopied(t *testing.T) {
	begin(t)
	v := newKubeletVolume(t, "configmap")
	v.put(map[string]string{"key": "one", "script": "#!/bin/sh\necho from the volume\n"})
	if err := os.Chmod(filepath.Join(v.dir, "..1/script"), 0o755); err != nil {
		t.Fatal(err)
	}
	b := newBundle(t, "exec /probe watch /conf key").ownRoot().bind(v.dir, "/conf", "ro")
	if err := os.Rename(probe(t), b.root("probe")); err != nil {
		t.Fatal(err)
	}
	c := b.up()
	expect(t, "files", c.exec("ls -A /conf; cat /conf/key; stat -c ' %a %u %g' /conf/..data/key"), "..1\n..data\nkey\nscript\none 644 0 0\n")
	expect(t, "script", c.exec("/conf/script"), "from the volume\n")
	if r := husk(t, "exec", c.id, "touch", "/conf/new").run(); r.code == 0 {
		t.Error("the container can write to what it was given read-only")
	}
	c.printed("watching\n")
	for _, content := range []string{"two", "three", "four"} {
		v.put(map[string]string{"key": content})
		c.printed("\n" + content + " <nil>\n")
	}
	// The host's old files may still have been there when the new ones were read.
	until(t, "only the last files are there", patience, func() bool {
		return c.exec("ls -A /conf; cat /conf/key") == "..4\n..data\nkey\nscript\nfour"
	})
	if n := strings.Count(content(t, c.out), "no such file"); n != 0 {
		t.Errorf("a change was seen in parts: %s", content(t, c.out))
	}

	// More than the guest gets a copy of is shared.
	v.put(map[string]string{"key": strings.Repeat("x", 4<<20)})
	husk(t, "delete", "--force", c.id).ok()
	b.spec.Process.Args = []string{"sleep", "1000"}
	expect(t, "size", b.up().exec("wc -c </conf/key"), fmt.Sprintln(4<<20))
}

// TestFilesCopiedInPod gives two containers of a pod the same files, of which each sees every change, also the second when the
// first is gone.
func TestFilesCopiedInPod(t *testing.T) {
	begin(t)
	v := newKubeletVolume(t, "secret")
	v.put(map[string]string{"key": "one"})
	sandbox := newSandbox(t)
	first, second := newMember(t, sandbox, "first", "sleep 1000"), newMember(t, sandbox, "second", "sleep 1000")
	for _, b := range []*bundle{first, second} {
		b.bind(v.dir, "/conf", "ro")
	}
	a := first.up()
	v.put(map[string]string{"key": "two"})
	until(t, "the first container sees a change", patience, func() bool { return a.exec("cat /conf/key") == "two" })
	c := second.up()
	expect(t, "key of the second", c.exec("cat /conf/key"), "two")
	husk(t, "delete", "--force", a.id).ok()
	v.put(map[string]string{"key": "three"})
	until(t, "the second container sees a change", patience, func() bool { return c.exec("cat /conf/key") == "three" })
	husk(t, "delete", "--force", c.id).ok()
	v.put(map[string]string{"key": "four"})
	third := newMember(t, sandbox, "third", "sleep 1000").bind(v.dir, "/conf", "ro").up()
	expect(t, "key of the third", third.exec("cat /conf/key"), "four")
}
