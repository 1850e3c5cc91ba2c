package image

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"husk.dev/husk/internal/testenv"
)

func TestImport(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	s := newStore(t)
	root := t.TempDir() // 0700 at best, which an image's root must not be
	for name, data := range map[string]string{"etc/passwd": "me:x:7:8::/home/me:/bin/sh\n", "bin/tool": "tool"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tool := filepath.Join(root, "bin/tool")
	if err := os.Chown(tool, 12345, 6); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setxattr(tool, "security.capability", []byte(capNetRaw), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(tool, 0o755|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(tool, madeAt, madeAt); err != nil {
		t.Fatal(err)
	}
	opts := ImportOptions{Config: ociv1.ImageConfig{Cmd: []string{"/bin/tool"}, User: "me"}, Created: madeAt}
	img, err := s.Import(t.Context(), root, "husk-demo", opts)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(img.Names, []string{"localhost/husk-demo:latest"}) || len(img.Layers) != 1 {
		t.Errorf("names %q, %d layers", img.Names, len(img.Layers))
	}
	if got, err := s.Get("husk-demo"); err != nil || got.ID != img.ID {
		t.Errorf("Get(husk-demo): %s, %v", got.ID, err)
	}
	at := mountImage(t, img)
	for name, want := range map[string]string{
		"":         "drwxr-xr-x 0:0 0",
		"bin/tool": fmt.Sprintf("grwxr-xr-x 12345:6 %d", madeAt.Unix()),
	} {
		if got := describe(t, filepath.Join(at, name)); got != want {
			t.Errorf("/%s is %q, want %q", name, got, want)
		}
	}
	value := make([]byte, 64)
	if n, err := syscall.Getxattr(filepath.Join(at, "bin/tool"), "security.capability", value); err != nil || string(value[:n]) != capNetRaw {
		t.Errorf("security.capability: %v", err)
	}
	spec, err := ProcessSpec(img, Run{})
	if err != nil || spec.User.UID != 7 || spec.User.GID != 8 || !slices.Equal(spec.Args, []string{"/bin/tool"}) {
		t.Errorf("process %+v, %v", spec, err)
	}
	again, err := s.Import(t.Context(), root, "husk-demo", opts)
	if err != nil || again.ID != img.ID || len(layerFiles(t, s)) != 1 {
		t.Errorf("the same again: %s, %v; want %s", again.ID, err, img.ID)
	}
}

func TestImportTar(t *testing.T) {
	s := newStore(t)
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "tool"), []byte("tool"), 0o755); err != nil {
		t.Fatal(err)
	}
	tarred := filepath.Join(t.TempDir(), "root.tar.gz")
	run(t, "tar", "-C", root, "-czf", tarred, "tool")
	fromTar, err := s.Import(t.Context(), tarred, "example.com/demo:tar", ImportOptions{Created: time.Unix(1, 0)})
	if err != nil || !slices.Equal(fromTar.Names, []string{"example.com/demo:tar"}) || content(t, fromTar, "tool") != "tool" {
		t.Errorf("import of a tar: %+v, %v", fromTar, err)
	}
	if got := leftovers(t, s); len(got) > 0 {
		t.Errorf("left over: %q", got)
	}
}
