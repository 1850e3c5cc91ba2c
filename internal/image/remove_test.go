package image

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// twoImages pulls images that share their lowest layer.
func twoImages(t *testing.T) (*Store, string, Image, Image) {
	t.Helper()
	s, addr := newStore(t), newRegistry(t)
	base := gzipLayer(t, file("base", "base"))
	push(t, addr+"/a:1", imageFrom(t, v1.Config{}, base, gzipLayer(t, file("a", "a"))))
	push(t, addr+"/b:1", imageFrom(t, v1.Config{}, base, gzipLayer(t, file("b", "b"))))
	return s, addr, pull(t, s, addr+"/a:1", PullOptions{}), pull(t, s, addr+"/b:1", PullOptions{})
}

func TestRemoveSharedLayers(t *testing.T) {
	s, addr, a, b := twoImages(t)
	if a.Layers[0] != b.Layers[0] || len(layerFiles(t, s)) != 3 {
		t.Fatalf("layers %q and %q do not share the first", a.Layers, b.Layers)
	}
	done, err := s.Remove(t.Context(), []string{addr + "/a:1"}, RemoveOptions{})
	if err != nil || !slices.Equal(done.Deleted, []string{a.ID}) || !slices.Equal(done.Untagged, a.Names) || done.Freed == 0 {
		t.Fatalf("removed %+v, %v; want image %s", done, err, a.ID)
	}
	if got := layerFiles(t, s); !slices.Equal(sorted(got), sorted(b.Layers)) {
		t.Errorf("layers %q stay, want those of the other image, %q", got, b.Layers)
	}
	if got := content(t, b, "base") + content(t, b, "b"); got != "baseb" {
		t.Errorf("the other image holds %q", got)
	}
	if _, err := s.Remove(t.Context(), []string{b.ShortID(), addr + "/a:1"}, RemoveOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("removing what is gone: %v, want ErrNotFound", err)
	}
	if got := append(layerFiles(t, s), leftovers(t, s)...); len(got) > 0 {
		t.Errorf("left after the last image: %q", got)
	}
}

func sorted(list []string) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	return list
}

func TestRemoveNames(t *testing.T) {
	s, addr, a, _ := twoImages(t)
	push(t, addr+"/a:2", imageFrom(t, v1.Config{}, gzipLayer(t, file("base", "base")), gzipLayer(t, file("a", "a"))))
	pull(t, s, addr+"/a:2", PullOptions{})
	if _, err := s.Remove(t.Context(), []string{a.ID}, RemoveOptions{}); err == nil || !strings.Contains(err.Error(), "several names") {
		t.Errorf("removing an image with two names by its id: %v, want a refusal", err)
	}
	done, err := s.Remove(t.Context(), []string{addr + "/a:1"}, RemoveOptions{})
	if err != nil || len(done.Deleted) > 0 || !slices.Equal(done.Untagged, []string{addr + "/a:1"}) {
		t.Errorf("removing one of two names: %+v, %v", done, err)
	}
	if img, err := s.Get(addr + "/a:2"); err != nil || img.ID != a.ID {
		t.Errorf("the other name: %s, %v", img.ID, err)
	}
	// A name moves to the image that was pulled by it last.
	push(t, addr+"/a:2", imageFrom(t, v1.Config{}, gzipLayer(t, file("new", "new"))))
	moved := pull(t, s, addr+"/a:2", PullOptions{})
	if old, err := s.Get(a.ID); err != nil || len(old.Names) > 0 || moved.ID == a.ID {
		t.Errorf("the image before has the names %q, %v; want none", old.Names, err)
	}
}

func TestRemoveInUse(t *testing.T) {
	s, _, a, b := twoImages(t)
	lease, err := s.Use(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Close()
	if len(lease.Layers) != len(a.Layers) {
		t.Fatalf("%d open layers, want %d", len(lease.Layers), len(a.Layers))
	}
	if _, err := s.Remove(t.Context(), []string{a.ID}, RemoveOptions{}); !errors.Is(err, ErrInUse) {
		t.Fatalf("removing an image in use: %v, want ErrInUse", err)
	}
	stopped := func(Image) []string { return []string{"container web"} }
	if _, err := s.Remove(t.Context(), []string{b.ID}, RemoveOptions{InUse: stopped}); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "container web") {
		t.Fatalf("removing an image that a container needs: %v, want ErrInUse and the container", err)
	}
	if _, err := s.Remove(t.Context(), []string{a.ID, b.ID}, RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if got := layerFiles(t, s); !slices.Equal(sorted(got), sorted(a.Layers)) {
		t.Errorf("layers %q after a forced removal, want those held open, %q", got, a.Layers)
	}
	if err := lease.Close(); err != nil {
		t.Fatal(err)
	}
	if freed, err := s.Prune(); err != nil || freed == 0 || len(layerFiles(t, s)) > 0 {
		t.Errorf("prune after that: %d bytes, %v, layers %q", freed, err, layerFiles(t, s))
	}
}

// TestRemoveDuringPull removes an image while a pull, which may count on its layers, is running.
func TestRemoveDuringPull(t *testing.T) {
	s, addr, a, b := twoImages(t)
	err := s.withWork(t.Context(), func(*work) error {
		if _, err := s.Remove(t.Context(), []string{a.ID, b.ID}, RemoveOptions{}); err != nil {
			return err
		}
		if got := layerFiles(t, s); len(got) != 3 {
			t.Errorf("layers %q while a pull runs, want all 3", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := layerFiles(t, s); len(got) > 0 {
		t.Errorf("layers %q after the pull, want none", got)
	}
	pull(t, s, addr+"/a:1", PullOptions{})
}

func TestDamagedRecords(t *testing.T) {
	s, _, a, b := twoImages(t)
	if err := os.WriteFile(s.recordPath(a.ID), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	images, err := s.List()
	if len(images) != 1 || images[0].ID != b.ID || !errors.Is(err, ErrDamaged) {
		t.Errorf("List: %d images, %v; want the sound one and ErrDamaged", len(images), err)
	}
	if _, err := s.Remove(t.Context(), []string{b.ID}, RemoveOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("Remove: %v, want ErrDamaged", err)
	}
	if got := layerFiles(t, s); len(got) != 3 {
		t.Errorf("layers %q, want all 3: the damaged record may need them", got)
	}
	if err := os.Remove(filepath.Join(s.Dir(), "layers", filepath.Base(a.Layers[1]))); err != nil {
		t.Fatal(err)
	}
	if err := s.putRecord(t.Context(), record{ID: a.ID, Names: a.Names, Layers: []string{strings.TrimSuffix(filepath.Base(a.Layers[1]), ".erofs")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(a.ID); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "pull the image again") {
		t.Errorf("Get with a layer missing: %v, want ErrDamaged and what to do", err)
	}
}
