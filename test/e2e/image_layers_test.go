package e2e

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"husk.dev/husk/internal/testenv"
)

// layered is an image whose layers add, change and take away, with every kind of metadata.
func layered(t *testing.T) v1.Image {
	t.Helper()
	owned := func(uid, gid int) func(*tar.Header) {
		return func(h *tar.Header) { h.Uid, h.Gid = uid, gid }
	}
	attributed := func(h *tar.Header) {
		h.PAXRecords = map[string]string{"SCHILY.xattr.user.colour": "blue", "SCHILY.xattr.user.empty": "\x00\x01"}
	}
	link := func(name, target string) entry {
		return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
	}
	symlink := entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "d/symlink", Linkname: "../d/first"}}
	fifo := entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "d/fifo", Mode: 0o600}}
	return imageOf(t, v1.Config{}, busyboxLayer(t),
		layerOf(t,
			directory("d", 0o755), regular("d/first", "one\n"), regular("d/deleted", "x"), regular("d/changed", "old\n"),
			directory("gone", 0o755), regular("gone/inside", "x"),
			directory("opaque", 0o755), regular("opaque/below", "x"), directory("opaque/sub", 0o755), regular("opaque/sub/below", "x"),
			link("d/hard", "d/first"), symlink, fifo,
			regular("d/owned", "x").with(owned(1234, 4321)), regular("d/setuid", "x").with(func(h *tar.Header) { h.Mode = 0o4711 }),
			regular("d/attributed", "x").with(attributed), directory("d/sticky", 0o1777)),
		layerOf(t,
			regular("d/.wh.deleted", ""), regular("d/changed", "new\n"), regular(".wh.gone", ""),
			directory("opaque", 0o700), regular("opaque/.wh..wh..opq", ""), regular("opaque/above", "x")),
		layerOf(t, directory("gone", 0o700), regular("gone/back", "x"), regular("d/.wh.never-there", "")))
}

// TestImageLayers looks at an image of several layers from inside a container.
func TestImageLayers(t *testing.T) {
	begin(t)
	tag := load(t, "example.test/layered:1", layered(t))
	checkLayers(t, tag)
}

// checkLayers runs a container of layered and compares what it sees, with further global flags for husk.
func checkLayers(t *testing.T, tag string, flags ...string) {
	t.Helper()
	c := husk(t, "run", "--rm", "-v", probe(t)+":/probe:ro", tag, "sh", "-c", `
cd /d; ls; cat first hard symlink changed
stat -c '%n %a %u:%g %h %F' first hard owned setuid sticky fifo symlink
stat -c '%Y' owned
[ "$(stat -c %i first)" = "$(stat -c %i hard)" ] && echo same inode
ls /opaque /gone; stat -c '%n %a' /opaque /gone
/probe xattr attributed`)
	c.flag = flags
	want := `attributed
changed
fifo
first
hard
owned
setuid
sticky
symlink
one
one
one
new
first 644 0:0 2 regular file
hard 644 0:0 2 regular file
owned 644 1234:4321 1 regular file
setuid 4711 0:0 1 regular file
sticky 1777 0:0 2 directory
fifo 600 0:0 1 fifo
symlink 777 0:0 1 symbolic link
1700000000
same inode
/gone:
back

/opaque:
above
/opaque 700
/gone 700
user.colour="blue"
user.empty="\x00\x01"
`
	if got := c.ok(); got != want {
		t.Errorf("the container sees\n%s\nwant\n%s", got, want)
	}
}

// probe builds the program that looks at what busybox cannot see; flags are go build's.
func probe(t *testing.T, flags ...string) string {
	t.Helper()
	binary, err := testenv.Program(t.TempDir(), "husk.dev/husk/test/e2e/probe", flags...)
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// TestImageManyLayers runs an image with more layers than a small machine has places for disks.
func TestImageManyLayers(t *testing.T) {
	begin(t)
	const n = 20
	layers := []v1.Layer{busyboxLayer(t)}
	var want strings.Builder
	for i := range n {
		layers = append(layers, layerOf(t, regular(fmt.Sprintf("l/%02d", i), fmt.Sprintf("layer %d\n", i)),
			regular("l/last", fmt.Sprintf("last is %d\n", i))))
		fmt.Fprintf(&want, "layer %d\n", i)
	}
	fmt.Fprintf(&want, "last is %d\n", n-1)
	tag := load(t, "example.test/many:1", imageOf(t, v1.Config{}, layers...))
	if got := husk(t, "run", "--rm", tag, "sh", "-c", "cat /l/*").ok(); got != want.String() {
		t.Errorf("the container sees\n%s\nwant\n%s", got, want.String())
	}
}

// TestImageOnQ35 runs on the machine whose layers are memory: virtio-pmem with DAX.
func TestImageOnQ35(t *testing.T) {
	begin(t)
	config := filepath.Join(t.TempDir(), "config.toml")
	text := fmt.Sprintf("run_dir = %q\ndata_dir = %q\nmachine = \"q35\"\ntemplate = \"off\"\n", env.run, env.data)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	tag := load(t, "example.test/layered:1", layered(t))
	checkLayers(t, tag, "--config", config)

	c := husk(t, "run", "-d", "--name", "q35", tag, "sleep", "1000")
	c.flag = []string{"--config", config}
	remove(t, "q35")
	c.ok()
	mounts := husk(t, "shell", "q35", "cat", "/proc/mounts").ok()
	if !strings.Contains(mounts, "/dev/pmem0 ") || !strings.Contains(mounts, "dax=always") {
		t.Errorf("the guest's mounts have no layer on virtio-pmem with DAX:\n%s", mounts)
	}
	if out := husk(t, "exec", "q35", "cat", "/d/changed").ok(); out != "new\n" {
		t.Errorf("exec printed %q", out)
	}
}
