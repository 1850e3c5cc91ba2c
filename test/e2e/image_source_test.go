package e2e

import (
	"crypto/rand"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// TestImageSources runs containers straight from every place that images come from.
func TestImageSources(t *testing.T) {
	begin(t)
	for _, c := range []struct{ name, from string }{
		{"layout", "oci:" + ociLayout(t, plainImage(t, "layout"))},
		{"archive", "oci-archive:" + ociArchive(t, plainImage(t, "archive"))},
		{"docker", "docker-archive:" + dockerArchive(t, "example.test/docker:1", plainImage(t, "docker"))},
		{"registry", pushed(t, "some/image:2", plainImage(t, "registry"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin(t)
			first := husk(t, "run", "--rm", c.from).run()
			if first.code != 0 || first.stdout != c.name+"\n" {
				t.Errorf("exit code %d, stdout %q, stderr %q", first.code, first.stdout, first.stderr)
			}
			if !strings.Contains(first.stderr, "layer 2/2") {
				t.Errorf("stderr %q, want the progress of two layers", first.stderr)
			}
			second := husk(t, "run", "--rm", "--pull", "missing", c.from).run()
			if second.code != 0 || second.stdout != c.name+"\n" || strings.Contains(second.stderr, "unpacking") {
				t.Errorf("again: exit code %d, stdout %q, stderr %q: want no layer unpacked", second.code, second.stdout, second.stderr)
			}
		})
	}
}

// TestImagePull pulls by name, and names what it cannot find.
func TestImagePull(t *testing.T) {
	begin(t)
	ref := pushed(t, "team/app:1.0", plainImage(t, "pulled"))
	forget(t, ref)
	husk(t, "run", "--rm", "--pull", "never", ref).fails(125, ref)
	r := husk(t, "pull", ref).run()
	if r.code != 0 || !strings.HasPrefix(r.stdout, "sha256:") || strings.Count(r.stdout, "\n") != 1 {
		t.Errorf("pull: exit code %d, stdout %q, want an id", r.code, r.stdout)
	}
	for _, words := range []string{"layer 1/2", "layer 2/2", "downloading", "done"} {
		if !strings.Contains(r.stderr, words) {
			t.Errorf("pull printed %q on stderr, want %q in it", r.stderr, words)
		}
	}
	if list := husk(t, "images").ok(); !strings.Contains(list, ref) {
		t.Errorf("images does not list %s:\n%s", ref, list)
	}
	if out := husk(t, "run", "--rm", "--pull", "never", ref).ok(); out != "pulled\n" {
		t.Errorf("the image printed %q", out)
	}
	husk(t, "pull", strings.Replace(ref, "1.0", "2.0", 1)).fails(1, "team/app:2.0")
}

// stalling is a registry whose large blobs never end.
func stalling(t *testing.T) (ref string, stalled chan struct{}) {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	stalled = make(chan struct{}, 16)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") {
			inner.ServeHTTP(w, r)
			return
		}
		answer := httptest.NewRecorder()
		inner.ServeHTTP(answer, r)
		half := answer.Body.Len()
		if half > 64<<10 {
			half /= 2
		}
		w.Header().Set("Content-Length", strconv.Itoa(answer.Body.Len()))
		_, _ = w.Write(answer.Body.Bytes()[:half]) // the client may be gone
		if half < answer.Body.Len() {
			w.(http.Flusher).Flush()
			stalled <- struct{}{}
			<-r.Context().Done()
		}
	}))
	t.Cleanup(server.Close)
	noise := make([]byte, 1<<20)
	_, _ = rand.Read(noise) // never fails
	img := imageOf(t, v1.Config{}, layerOf(t, regular("noise", string(noise))))
	return pushTo(t, server, "slow/image:1", img), stalled
}

// TestImagePullCut ends a pull in the middle of a layer: nothing stays of it.
func TestImagePullCut(t *testing.T) {
	begin(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		ref, stalled := stalling(t)
		pull := husk(t, "pull", ref).start()
		select {
		case <-stalled:
		case <-pull.done:
			t.Fatalf("the pull ended: %s", pull.stderr.String())
		case <-time.After(patience):
			t.Fatal("the pull did not ask for the layer")
		}
		pull.signal(sig)
		r := pull.wait()
		if sig == syscall.SIGINT && (r.code != 1 || !strings.Contains(r.stderr, "husk: pull "+ref)) {
			t.Errorf("interrupted: exit code %d, stderr %q", r.code, r.stderr)
		}
		if list := husk(t, "images").ok(); strings.Contains(list, "slow/image") {
			t.Errorf("%v: half an image is listed:\n%s", sig, list)
		}
		if left, err := filepath.Glob(filepath.Join(env.data, "images", "tmp", "*")); err != nil || len(left) > 0 {
			t.Errorf("%v: left after the next command: %q (%v)", sig, left, err)
		}
	}
}

// TestImageLoad brings an archive in by stdin.
func TestImageLoad(t *testing.T) {
	begin(t)
	const tag = "example.test/loaded:1"
	forget(t, tag)
	archive, err := os.ReadFile(dockerArchive(t, tag, plainImage(t, "loaded")))
	if err != nil {
		t.Fatal(err)
	}
	c := husk(t, "load")
	c.in = string(archive)
	if out := c.ok(); out != tag+"\n" {
		t.Errorf("load printed %q, want the image's name", out)
	}
	if out := husk(t, "run", "--rm", tag).ok(); out != "loaded\n" {
		t.Errorf("the image printed %q", out)
	}
	c = husk(t, "load")
	c.in = "this is no archive"
	c.fails(1, "archive")
}

// TestImageInUse refuses to remove an image that a container runs from.
func TestImageInUse(t *testing.T) {
	begin(t)
	tag := load(t, "example.test/used:1", plainImage(t, "used"))
	id := detach(t, "user", tag, "sleep", "1000")
	husk(t, "rmi", tag).fails(1, "user")
	if out := husk(t, "exec", id, "cat", "/marker").ok(); out != "used\n" {
		t.Errorf("the container reads %q", out)
	}
	if list := husk(t, "images").ok(); !strings.Contains(list, tag) {
		t.Errorf("the image that could not be removed is gone:\n%s", list)
	}
	husk(t, "rm", "--force", id).ok()
	if out := husk(t, "rmi", tag).ok(); !strings.Contains(out, "untagged: "+tag) || !strings.Contains(out, "deleted: sha256:") {
		t.Errorf("rmi printed %q", out)
	}
	husk(t, "run", "--rm", "--pull", "never", tag).fails(125, tag)
	husk(t, "rmi", tag).fails(1, tag)
}

// TestImageIsNotWritten runs two containers of an image after each other: what the first writes, deletes
// and changes the second does not see.
func TestImageIsNotWritten(t *testing.T) {
	begin(t)
	for _, size := range []string{"0", "64m"} {
		husk(t, "run", "--rm", "--storage-size", size, demo, "sh", "-c",
			"echo mine >/new && echo changed >/etc/passwd && rm /etc/group && rm -r /home").ok()
		out := husk(t, "run", "--rm", "--storage-size", size, demo, "sh", "-c",
			"[ -e /new ] && echo new; grep -c changed /etc/passwd; [ -s /etc/group ] && [ -d /home ] && echo whole").ok()
		if out != "0\nwhole\n" {
			t.Errorf("storage size %s: the second container sees %q, want the image as it was", size, out)
		}
	}
}

// TestImageDirectory runs from a directory, which the container writes to.
func TestImageDirectory(t *testing.T) {
	begin(t)
	root := filepath.Join(t.TempDir(), "root")
	if err := os.CopyFS(root, os.DirFS(env.rootfs)); err != nil {
		t.Fatal(err)
	}
	out := husk(t, "run", "--rm", "--rootfs", root, "sh", "-c", "grep -c ^root: /etc/passwd; echo written >/file; id -u").ok()
	if out != "1\n0\n" {
		t.Errorf("printed %q", out)
	}
	if data, err := os.ReadFile(filepath.Join(root, "file")); err != nil || string(data) != "written\n" {
		t.Errorf("on the host the file holds %q (%v)", data, err)
	}
	husk(t, "run", "--rm", "--read-only", "--rootfs", root, "touch", "/other").fails1(t)
	if _, err := os.Stat(filepath.Join(root, "other")); err == nil {
		t.Error("a read-only container wrote to its root")
	}
}

// fails1 runs the command, whose program must end with 1.
func (c *command) fails1(t *testing.T) {
	t.Helper()
	if r := c.run(); r.code != 1 {
		t.Errorf("husk %q: exit code %d, want 1; stdout %q, stderr %q", c.args, r.code, r.stdout, r.stderr)
	}
}
