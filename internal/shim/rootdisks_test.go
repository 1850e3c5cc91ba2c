package shim

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/config"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/testenv"
)

// imageFile makes a file that holds its own name.
func imageFile(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRootDisks opens what a root is made of. Once it is open, another file in its place makes no difference.
func TestRootDisks(t *testing.T) {
	lower, upperDir, workDir := imageFile(t, "lower"), t.TempDir(), t.TempDir()
	mounts := []mount.Mount{
		{Type: "erofs", Source: lower, Options: []string{"ro", "loop"}},
		overlay("workdir="+workDir, "upperdir="+upperDir, "lowerdir={{ mount 0 }}"),
	}
	r, readOnly, err := rootDisks(mounts)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if readOnly || len(r.Lower) != 1 || r.Upper != nil || r.Scratch != filepath.Join(workDir, scratchFile) || r.Disks() != 2 {
		t.Fatalf("%+v, read-only %v", r, readOnly)
	}
	if err := os.Remove(lower); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", lower); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 5)
	if _, err := r.Lower[0].File.ReadAt(text, 0); err != nil && err != io.EOF || string(text) != "lower" {
		t.Errorf("read %q, %v", text, err)
	}
	if _, err := r.Lower[0].File.Write(text); err == nil {
		t.Error("a layer can be written to")
	}

	// What was written before is not lost.
	mounts[0].Source = imageFile(t, "lower")
	if err := os.WriteFile(filepath.Join(upperDir, "written"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, _, err := rootDisks(mounts); err == nil || !strings.Contains(err.Error(), "has files") {
		t.Errorf("over what was written: %+v, %v", r, err)
	}
}

func TestRootDisksRefuses(t *testing.T) {
	empty, fifo := filepath.Join(t.TempDir(), "empty"), filepath.Join(t.TempDir(), "fifo")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for source, says := range map[string]string{
		"/proc/nonexistent": "no such file", empty: "empty", fifo: "neither a regular file", t.TempDir(): "", "/dev/null": "neither a regular file",
	} {
		for _, options := range [][]string{{"loop", "rw"}, {"loop", "ro"}} {
			r, _, err := rootDisks([]mount.Mount{{Type: "ext4", Source: source, Options: options}})
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s %q: %+v, %v, want %q", source, options, r, err, says)
			}
		}
	}
}

// TestHostMount: what a mount names of others is replaced, and directories are made in those others alone.
func TestHostMount(t *testing.T) {
	dir := t.TempDir()
	at := func(i int) string { return filepath.Join(dir, string(rune('0'+i))) }
	for i := range 2 {
		if err := os.Mkdir(at(i), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/tmp", filepath.Join(at(0), "link")); err != nil {
		t.Fatal(err)
	}
	m := overlay("X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "upperdir={{ mount 0 }}/upper", "lowerdir={{ mount 1 }}", "index=off")
	got, err := hostMount(m, 2, at)
	if err != nil {
		t.Fatal(err)
	}
	if want := "upperdir=" + at(0) + "/upper lowerdir=" + at(1) + " index=off"; got.Type != "overlay" || strings.Join(got.Options, " ") != want {
		t.Errorf("%+v, want overlay with %s", got, want)
	}
	if info, err := os.Stat(filepath.Join(at(0), "upper")); err != nil || !info.IsDir() {
		t.Errorf("the directory: %v", err)
	}
	for _, option := range []string{
		"X-containerd.mkdir.path=/etc/x", "X-containerd.mkdir.path={{ mount 0 }}/a/b", "X-containerd.mkdir.path={{ mount 0 }}/../x",
		"X-containerd.mkdir.path={{ mount 0 }}/link", "lowerdir={{ mount 2 }}", "lowerdir={{ other 0 }}",
	} {
		if got, err := hostMount(overlay(option), 2, at); err == nil {
			t.Errorf("%s: %+v", option, got)
		}
	}
	if _, err := hostMount(mount.Mount{Type: "mkfs/ext4"}, 0, at); err == nil {
		t.Error("an unknown type of mount")
	}
}

// TestStandInForDisks has a container whose configuration names no root, because disks are its root.
func TestStandInForDisks(t *testing.T) {
	testenv.NeedRoot(t)
	c := &container{spec: &specs.Spec{Linux: &specs.Linux{}}, disks: &sandbox.RootDisks{}}
	if err := c.standIn(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	c.stand.End()
}

// TestTakeRoot: a root is mounted on this machine where the virtual machine has no place for it, and after no other error.
func TestTakeRoot(t *testing.T) {
	small := config.Default()
	small.DataDir, small.WritableMiB = t.TempDir(), 1 // no file system fits
	box := sandbox.New(sandbox.Options{Config: small})
	lower := &types.Mount{Type: "erofs", Source: imageFile(t, "lower"), Options: []string{"ro", "loop"}}
	many := make([]*types.Mount, sandbox.MaxRootDisks+1)
	names := make([]string, len(many))
	for i := range many {
		many[i], names[i] = lower, "{{ mount "+strconv.Itoa(i)+" }}"
	}
	over := func(lower []string, options ...string) *types.Mount {
		m := overlay(append(options, "lowerdir="+strings.Join(lower, ":"))...)
		return &types.Mount{Type: m.Type, Source: m.Source, Options: m.Options}
	}
	for name, test := range map[string]struct {
		box    *sandbox.Sandbox
		mounts []*types.Mount
		says   string
	}{
		"too many, in a VM": {box, append(many[:len(many):len(many)], over(names)), "make mount point of root"},
		"too many, first":   {nil, append(many[:len(many):len(many)], over(names)), "make mount point of root"},
		"no place": {
			box, []*types.Mount{{Type: "ext4", Source: imageFile(t, "whole"), Options: []string{"loop"}}}, "make mount point of root",
		},
		"cannot be made": {
			box, []*types.Mount{lower, over(names[:1], "workdir="+t.TempDir(), "upperdir="+t.TempDir())}, "attach root",
		},
	} {
		s := &service{box: test.box, log: slog.New(slog.DiscardHandler)}
		c := &container{bundle: "/proc/nonexistent"} // where nothing is mounted
		if err := s.takeRoot(t.Context(), c, test.mounts); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want %q", name, err, test.says)
		}
	}
}
