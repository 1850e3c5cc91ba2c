package disk

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/testenv"
)

// needMkfs skips where there is no mkfs.ext4.
func needMkfs(t testing.TB) {
	t.Helper()
	if _, _, err := findMkfs(); err != nil {
		t.Skip(err)
	}
}

// used is how much room a file takes, in bytes.
func used(t testing.TB, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestCreate(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	for _, size := range []int{MinMiB, 512, 10 << 10} {
		path := filepath.Join(dir, "disk")
		if err := Create(context.Background(), filepath.Join(dir, "blank"), path, size); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Size() != int64(size)<<20 || info.Mode().Perm() != 0o600 {
			t.Errorf("disk of %d MiB: %v, %v", size, info, err)
		}
		if got := used(t, path); got > 2<<20 {
			t.Errorf("an empty disk of %d MiB takes %d bytes", size, got)
		}
		if fsck, err := exec.LookPath("/usr/sbin/e2fsck"); err == nil {
			if out, err := exec.Command(fsck, "-fn", path).CombinedOutput(); err != nil {
				t.Errorf("e2fsck: %v\n%s", err, out)
			}
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	for _, size := range []int{-1, 0, MinMiB - 1, MaxMiB + 1} {
		if err := Create(context.Background(), dir, path, size); err == nil {
			t.Errorf("made a disk of %d MiB", size)
		}
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(context.Background(), dir, path, MinMiB); !errors.Is(err, os.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "mine" {
		t.Errorf("the existing file now holds %d bytes", len(got))
	}
}

func TestBlankIsMadeOnce(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	cache := filepath.Join(dir, "blank")
	if err := os.MkdirAll(cache, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tmpPrefix + "1", "ext4-64-0-0.img"} { // of a killed maker, of an older mkfs
		if err := os.WriteFile(filepath.Join(cache, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := Create(context.Background(), cache, filepath.Join(dir, string(rune('a'+i))), 64); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(cache)
	if err != nil || len(entries) != 2 { // the blank and the lock
		t.Errorf("the cache holds %v, %v", entries, err)
	}
}

func TestCancelled(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Create(ctx, filepath.Join(dir, "blank"), filepath.Join(dir, "disk"), MinMiB); !errors.Is(err, context.Canceled) {
		t.Errorf("Create: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "blank", tmpPrefix+"*"))
	if _, err := os.Stat(filepath.Join(dir, "disk")); !errors.Is(err, os.ErrNotExist) || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestCopyKeepsDataAndHoles(t *testing.T) {
	dir := t.TempDir()
	source, err := os.Create(filepath.Join(dir, "source"))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	const size = 64 << 20
	for _, at := range []int64{0, 1 << 20, size - 5} {
		if _, err := source.WriteAt([]byte("hello"), at); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "target")
	target, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := sys.CopySparse(target, source); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("cmp", source.Name(), path).Run(); err != nil {
		t.Errorf("the copy differs: %v", err)
	}
	if got := used(t, path); got > 1<<20 {
		t.Errorf("the copy takes %d bytes", got)
	}
}

// TestNoSpaceLeft fills a small file system, once before there is a blank and once after.
func TestNoSpaceLeft(t *testing.T) {
	needMkfs(t)
	if !testenv.PrivateMounts(t) {
		return
	}
	small, roomy := t.TempDir(), t.TempDir()
	if err := syscall.Mount("small", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sys.Unmount(small); err != nil {
			t.Error(err)
		}
	}()
	for _, cache := range []string{filepath.Join(small, "blank"), filepath.Join(roomy, "blank")} {
		path := filepath.Join(small, "disk")
		err := Create(context.Background(), cache, path, 10<<10)
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "no space left for it") {
			t.Errorf("Create: %v", err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left something at %s: %v", path, err)
		}
		if left, _ := filepath.Glob(filepath.Join(cache, tmpPrefix+"*")); len(left) != 0 {
			t.Errorf("left %v", left)
		}
	}
}

func BenchmarkCreate10GiB(b *testing.B) {
	needMkfs(b)
	dir := b.TempDir()
	path := filepath.Join(dir, "disk")
	for b.Loop() {
		if err := Create(context.Background(), filepath.Join(dir, "blank"), path, 10<<10); err != nil {
			b.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			b.Fatal(err)
		}
	}
}

// TestCreateLasting: a disk that is mounted again has a journal, and takes no more room for it.
func TestCreateLasting(t *testing.T) {
	needMkfs(t)
	dir := t.TempDir()
	cache := filepath.Join(dir, "blank")
	for _, size := range []int{512, 10 << 10} {
		plain, lasting := filepath.Join(dir, "plain"), filepath.Join(dir, "lasting")
		if err := errors.Join(Create(t.Context(), cache, plain, size), CreateLasting(t.Context(), cache, lasting, size)); err != nil {
			t.Fatal(err)
		}
		if got := used(t, lasting); got > 3<<20 {
			t.Errorf("an empty disk of %d MiB takes %d bytes", size, got)
		}
		for path, want := range map[string]bool{plain: false, lasting: true} {
			out, err := exec.Command("/usr/sbin/dumpe2fs", "-h", path).CombinedOutput()
			if err != nil {
				t.Skipf("%v: %s", err, out)
			}
			if got := strings.Contains(string(out), "has_journal"); got != want {
				t.Errorf("%s of %d MiB: journal %v, want %v", filepath.Base(path), size, got, want)
			}
		}
		if err := errors.Join(os.Remove(plain), os.Remove(lasting)); err != nil {
			t.Fatal(err)
		}
	}
	if blanks, err := filepath.Glob(filepath.Join(cache, "*.img")); err != nil || len(blanks) != 4 {
		t.Errorf("blanks %q, want one of each size and kind (%v)", blanks, err)
	}
}
