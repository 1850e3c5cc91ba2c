package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/assets"
)

// templateFile is a file of a template of the test's data_dir.
func templateFile(key, name string) string { return filepath.Join(env.data, "templates", key, name) }

func spoil(t *testing.T, path string, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(data, at)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestTemplateDamaged: a template whose files somebody has touched is not used. The container runs all the same,
// and building makes the template whole.
func TestTemplateDamaged(t *testing.T) {
	elsewhere(t, ready)
	for _, c := range []struct {
		name   string
		damage func(key string) error
	}{
		{"memory truncated", func(key string) error { return os.Truncate(templateFile(key, "memory"), 1<<20) }},
		{"memory written", func(key string) error {
			spoil(t, templateFile(key, "memory"), 32<<20, []byte("evil"))
			return nil
		}},
		{"state replaced", func(key string) error {
			file := templateFile(key, "state")
			return errors.Join(exec.Command("cp", "-p", file, file+".new").Run(), os.Rename(file+".new", file))
		}},
		{"record garbage", func(key string) error {
			return os.WriteFile(templateFile(key, "template.json"), []byte("{garbage"), 0o600)
		}},
		{"all missing", func(key string) error {
			return errors.Join(os.Remove(templateFile(key, "memory")), os.Remove(templateFile(key, "state")))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin(t)
			key := build(t)
			if err := c.damage(key); err != nil {
				t.Fatal(err)
			}
			husk(t, "template", "verify").fails(1, key, "damaged")
			startsBy(t, "boot")
			if again := build(t); again != key {
				t.Errorf("built %s, want %s in its place", again, key)
			}
			if out := husk(t, "template", "verify").ok(); out != key+": whole\n" {
				t.Errorf("verify printed %q", out)
			}
		})
	}
	startsBy(t, "template")
}

// certify makes a template's record say that its files are as they should be: damage that only a start shows.
func certify(t *testing.T, key string) {
	t.Helper()
	file := templateFile(key, "template.json")
	var record map[string]any
	if err := json.Unmarshal([]byte(content(t, file)), &record); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"memory", "state"} {
		info, err := os.Stat(templateFile(key, name))
		if err != nil {
			t.Fatal(err)
		}
		stat := info.Sys().(*syscall.Stat_t)
		record[name] = map[string]any{
			"size": info.Size(), "inode": stat.Ino, "mtime_ns": stat.Mtim.Nano(), "ctime_ns": stat.Ctim.Nano(), "sha256": "unknown",
		}
	}
	data, err := json.Marshal(record)
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestTemplateDoesNotStart: what looks whole and cannot be continued is removed once a start has shown it, and
// the container runs. A new one that failed is not built again at once by itself.
func TestTemplateDoesNotStart(t *testing.T) {
	elsewhere(t)
	for _, c := range []struct {
		name, file string
		at, size   int64
	}{
		{"state garbage", "state", 0, 4096},
		{"state garbage at its end", "state", 60 << 10, 64 << 10},
		{"memory zeros", "memory", 0, 256 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			begin(t)
			key := build(t)
			data := bytes.Repeat([]byte{0x5a}, int(c.size))
			if c.file == "memory" {
				clear(data)
			}
			spoil(t, templateFile(key, c.file), c.at, data)
			certify(t, key)
			began := time.Now()
			startsBy(t, "boot")
			t.Logf("it took %v", time.Since(began))
			if left := inStore(t); left != key+".failed" {
				t.Errorf("in the store: %q, want the note alone", left)
			}
			if note := content(t, filepath.Join(env.data, "templates", key+".failed")); !strings.HasPrefix(note, "start from template: ") {
				t.Errorf("note %q", note)
			}
		})
	}
	build(t)
	startsBy(t, "template")
}

// TestTemplateOfAnotherKernel: a template is of one kernel file, and no other's VMs start from it.
func TestTemplateOfAnotherKernel(t *testing.T) {
	guest := filepath.Join(t.TempDir(), "guest")
	elsewhere(t, ready, fmt.Sprintf("guest_dir = %q", guest))
	if out, err := exec.Command("cp", "-a", "../../build/lib/husk/guest", guest).CombinedOutput(); err != nil {
		t.Fatalf("copy guest: %v: %s", err, out)
	}
	first := build(t)
	startsBy(t, "template")
	found, err := assets.Find(guest)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := os.Chtimes(found.Kernel, now, now); err != nil {
		t.Fatal(err)
	}
	startsBy(t, "boot")
	second := build(t)
	if second == first {
		t.Error("two kernels, one key")
	}
	startsBy(t, "template")
	if list := templates(t); len(list) != 2 || list[0].Key != second {
		t.Errorf("templates: %+v, want %s and then %s", list, second, first)
	}
}

// TestTemplateBuiltUnasked: the first start boots and has a template built, the next one continues from it. The
// builder leaves nothing.
func TestTemplateBuiltUnasked(t *testing.T) {
	elsewhere(t)
	startsBy(t, "boot")
	until(t, "the template is there", patience, func() bool { return len(templates(t)) == 1 })
	startsBy(t, "template")
	husk(t, "template", "verify").ok()
	if left := inStore(t); left != templates(t)[0].Key {
		t.Errorf("in the store: %q", left)
	}
}

// TestTemplateOff: no template is used or built where the configuration, or a container's annotation, says so.
func TestTemplateOff(t *testing.T) {
	t.Run("configuration", func(t *testing.T) {
		elsewhere(t, `template = "off"`)
		startsBy(t, "boot")
		if left := inStore(t); left != "" {
			t.Errorf("in the store: %q", left)
		}
		build(t)
		startsBy(t, "boot")
	})
	t.Run("machine", func(t *testing.T) {
		elsewhere(t, `machine = "microvm"`)
		startsBy(t, "boot")
		if left := inStore(t); left != "" {
			t.Errorf("in the store: %q", left)
		}
	})
	t.Run("annotation", func(t *testing.T) {
		begin(t)
		for value, want := range map[string]string{"off": "boot", "ready": "template"} {
			b := newBundle(t, "exec sleep 1000")
			b.spec.Annotations = map[string]string{"dev.husk.template": value, "com.example.other": "x"}
			c := b.up()
			expect(t, "the VM's start with the annotation "+value, vmStart(t, c.id), want)
			husk(t, "delete", "--force", c.id).ok()
		}
	})
}

// TestAnnotationsRefused: an annotation of husk's that may not be set, or not so, is an error and no container.
func TestAnnotationsRefused(t *testing.T) {
	begin(t)
	for _, c := range []struct{ key, value, want string }{
		{"machine", "q35", "not allowed"},
		{"qemu", "/tmp/evil", "not allowed"},
		{"template", "perhaps", "must be one of"},
		{"template", "\"off\"\nqemu = \"/tmp/evil\"", "more than a value"},
		{"vm-start", "template", "not allowed"},
	} {
		b := newBundle(t, "true")
		b.spec.Annotations = map[string]string{"dev.husk." + c.key: c.value}
		id := name(t)
		husk(t, "create", "--bundle", b.write(), id).fails(1, c.want, c.key)
		if s := status(t, id); s != "none" {
			t.Errorf("the container is %s", s)
			husk(t, "delete", "--force", id).ok()
		}
	}
}
