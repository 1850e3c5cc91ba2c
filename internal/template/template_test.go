package template

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestBaseMiB(t *testing.T) {
	for memory, want := range map[int]int{-1: 256, 0: 256, 96: 256, 256: 256, 511: 256, 512: 512, 513: 512, 1 << 20: 512} {
		if got := BaseMiB(memory); got != want {
			t.Errorf("BaseMiB(%d) is %d, want %d", memory, got, want)
		}
	}
}

func TestFind(t *testing.T) {
	s, key := built(t)
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(s.path(key), old, old); err != nil {
		t.Fatal(err)
	}
	from, err := s.Find(key)
	if err != nil {
		t.Fatal(err)
	}
	if from.Memory != s.path(key)+"/memory" || from.State != s.path(key)+"/state" || from.MemoryMiB != 256 {
		t.Errorf("Find gives %+v", from)
	}
	list, err := s.List()
	if err != nil || len(list) != 1 {
		t.Fatalf("List: %v, %v", list, err)
	}
	got := list[0]
	if time.Since(got.Used) > time.Minute {
		t.Errorf("used %v after Find", got.Used)
	}
	if got.Key != key || got.MemoryMiB != 256 || got.VCPUs != 1 || got.KernelVersion != "6.1-test" || got.Machine != "q35" {
		t.Errorf("List gives %+v", got)
	}
	if got.DiskBytes <= 0 || got.DiskBytes > 64<<10 || got.Memory.Size != 1<<20 {
		t.Errorf("%d bytes on disk of a sparse file of %d", got.DiskBytes, got.Memory.Size)
	}
	for _, file := range []string{"memory", "state", "template.json"} {
		if info, err := os.Stat(filepath.Join(s.path(key), file)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want it to be nobody else's", file, info.Mode(), err)
		}
	}
	if info, err := os.Stat(s.path(key)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v", info.Mode(), err)
	}
}

// TestBadKeys: what names no template is none, and nothing outside of the store is looked at.
func TestBadKeys(t *testing.T) {
	s, key := built(t)
	outside := filepath.Join(filepath.Dir(s.dir), strings.Repeat("a", 32))
	if err := os.Rename(s.path(key), outside); err != nil {
		t.Fatal(err)
	}
	bad := []string{
		"", ".", "..", "../" + strings.Repeat("a", 32), strings.Repeat("A", 32), strings.Repeat("a", 31), strings.Repeat("a", 33),
		strings.Repeat("a", 32) + "\n", "/" + strings.Repeat("a", 31), ".lock", strings.Repeat("b", 31) + "/", "a\x00", strings.Repeat("c", 32),
	}
	for _, key := range bad {
		for what, do := range map[string]func() error{
			"Find":   func() error { _, err := s.Find(key); return err },
			"Verify": func() error { return s.Verify(key) },
			"Remove": func() error { return s.Remove(key) },
		} {
			if err := do(); !errors.Is(err, ErrNone) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s(%q): %v, want ErrNone on one line", what, key, err)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(outside, "memory")); err != nil {
		t.Error(err)
	}
}

// rewrite changes a template's record.
func rewrite(change func(t *Template)) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		file := filepath.Join(dir, recordFile)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var record Template
		if err := json.Unmarshal(data, &record); err != nil {
			t.Fatal(err)
		}
		change(&record)
		if data, err = json.Marshal(record); err != nil {
			t.Fatal(err)
		}
		write(t, file, string(data))
	}
}

// damages are what Find must see, by name.
var damages = map[string]func(t *testing.T, dir string){
	"memory truncated": func(t *testing.T, dir string) {
		if err := os.Truncate(filepath.Join(dir, memoryFile), 4096); err != nil {
			t.Fatal(err)
		}
	},
	"state truncated": func(t *testing.T, dir string) {
		if err := os.Truncate(filepath.Join(dir, stateFile), 0); err != nil {
			t.Fatal(err)
		}
	},
	"memory written, same size and time": func(t *testing.T, dir string) {
		file := filepath.Join(dir, memoryFile)
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("evil"), 4096); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(file, info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
	},
	"state replaced by its copy": func(t *testing.T, dir string) {
		file := filepath.Join(dir, stateFile)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		write(t, file+".new", string(data))
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	},
	"memory missing": func(t *testing.T, dir string) {
		if err := os.Remove(filepath.Join(dir, memoryFile)); err != nil {
			t.Fatal(err)
		}
	},
	"memory a link to itself elsewhere": func(t *testing.T, dir string) {
		if err := os.Rename(filepath.Join(dir, memoryFile), filepath.Join(dir, "real")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("real", filepath.Join(dir, memoryFile)); err != nil {
			t.Fatal(err)
		}
	},
	"record garbage":       func(t *testing.T, dir string) { write(t, filepath.Join(dir, recordFile), "{\"key\": garbage") },
	"record empty":         func(t *testing.T, dir string) { write(t, filepath.Join(dir, recordFile), "") },
	"record of another":    rewrite(func(r *Template) { r.Key = strings.Repeat("d", 32) }),
	"record, another size": rewrite(func(r *Template) { r.State.Size++ }),
}

// TestDamage: Find sees every damage that does not need a file to be read, Verify says so too, Remove removes
// what is damaged, and Build makes it whole.
func TestDamage(t *testing.T) {
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			s, key := built(t)
			damage(t, s.path(key))
			if _, err := s.Find(key); !errors.Is(err, ErrDamaged) {
				t.Errorf("Find: %v, want ErrDamaged", err)
			}
			if err := s.Verify(key); !errors.Is(err, ErrDamaged) {
				t.Errorf("Verify: %v, want ErrDamaged", err)
			}
			if keys, err := s.Keys(); err != nil || len(keys) != 1 {
				t.Errorf("Keys: %v, %v; want the damaged one", keys, err)
			}
			if _, err := s.Build(t.Context(), options(t, &fakeDriver{})); err != nil {
				t.Fatalf("Build over it: %v", err)
			}
			if err := s.Verify(key); err != nil {
				t.Errorf("Verify after Build: %v", err)
			}
			damage(t, s.path(key))
			if err := s.Remove(key); err != nil {
				t.Errorf("Remove: %v", err)
			}
			if left := names(t, s); left != "" {
				t.Errorf("left in the store: %s", left)
			}
		})
	}
}

// TestVerifyReads: what the file system hides shows in the checksum.
func TestVerifyReads(t *testing.T) {
	s, key := built(t)
	if err := s.Verify(key); err != nil {
		t.Fatal(err)
	}
	rewrite(func(r *Template) { r.Memory.Sum = strings.Repeat("0", 64) })(t, s.path(key))
	if _, err := s.Find(key); err != nil {
		t.Errorf("Find: %v", err)
	}
	if err := s.Verify(key); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), memoryFile) {
		t.Errorf("Verify: %v, want that memory is damaged", err)
	}
}

func TestRemove(t *testing.T) {
	s, key := built(t)
	file, err := os.Open(filepath.Join(s.path(key), memoryFile))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := s.Remove(key); err != nil {
		t.Fatal(err)
	}
	if _, err := file.ReadAt(make([]byte, 16), 4096); err != nil {
		t.Errorf("who has it open lost it: %v", err)
	}
	if _, err := s.Find(key); !errors.Is(err, ErrNone) {
		t.Errorf("Find after Remove: %v", err)
	}
	if err := s.Remove(key); !errors.Is(err, ErrNone) {
		t.Errorf("Remove twice: %v", err)
	}
	if left := names(t, s); left != "" {
		t.Errorf("left: %s", left)
	}
}

// TestReject: a template that VMs do not start from is gone. Where it was new, none is built at once by itself.
func TestReject(t *testing.T) {
	s, key := built(t)
	if err := s.Reject(key, errors.New("it would not wake up")); err != nil {
		t.Fatal(err)
	}
	if left := names(t, s); left != key+failedSuffix || s.Wanted(key) {
		t.Errorf("left: %s; wanted %v", left, s.Wanted(key))
	}
	if note, err := os.ReadFile(s.path(key + failedSuffix)); err != nil || !strings.Contains(string(note), "would not wake up") {
		t.Errorf("note %q, %v", note, err)
	}
	if _, err := s.Build(t.Context(), options(t, &fakeDriver{})); err != nil || !s.Wanted(key) {
		t.Errorf("Build by hand: %v, wanted %v", err, s.Wanted(key))
	}
	rewrite(func(r *Template) { r.Created = time.Now().Add(-2 * retryAfter) })(t, s.path(key))
	if err := s.Reject(key, errors.New("it would no longer wake up")); err != nil {
		t.Fatal(err)
	}
	if left := names(t, s); left != "" || !s.Wanted(key) {
		t.Errorf("left of an old one: %s; wanted %v", left, s.Wanted(key))
	}
	if err := s.Reject("../x", errors.New("bad key")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.dir + "/../x" + failedSuffix); err == nil {
		t.Error("a note was left outside of the store")
	}
}

// TestEmptyStore: a store that was never built to is empty.
func TestEmptyStore(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "none"))
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("List: %v, %v", list, err)
	}
	if !s.Wanted(strings.Repeat("a", 32)) {
		t.Error("nothing is wanted")
	}
	if _, err := os.Stat(s.dir); err == nil {
		t.Error("looking made the directory")
	}
}

// TestListOrder: the last used is first, and a damaged one is no entry.
func TestListOrder(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "templates"))
	var keys []string
	for cpus := 1; cpus <= 3; cpus++ {
		o := options(t, &fakeDriver{})
		o.Spec.VCPUs = cpus
		key, err := s.Build(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(time.Duration(cpus-10) * time.Hour)
		if err := os.Chtimes(s.path(key), when, when); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
	}
	if _, err := s.Find(keys[0]); err != nil { // the oldest becomes the last used
		t.Fatal(err)
	}
	order := func() string {
		list, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		var got []int
		for _, l := range list {
			got = append(got, l.VCPUs)
		}
		return fmt.Sprint(got)
	}
	if got := order(); got != "[1 3 2]" {
		t.Errorf("order %s, want [1 3 2]", got)
	}
	write(t, filepath.Join(s.path(keys[2]), recordFile), "garbage")
	if got := order(); got != "[1 2]" {
		t.Errorf("order %s with one damaged, want [1 2]", got)
	}
}

// TestHash: the sum tells files apart by what is read from them, not by where they have holes.
func TestHash(t *testing.T) {
	const size = 10*hashBlock + 100
	write := func(holes bool, changes map[int64]byte) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), "file")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if !holes {
			_, err = f.Write(make([]byte, size))
		}
		if err == nil {
			err = f.Truncate(size)
		}
		for at, b := range changes {
			if err == nil {
				_, err = f.WriteAt([]byte{b}, at)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		sum, err := hash(path)
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	seen := map[string]string{}
	for name, changes := range map[string]map[int64]byte{
		"zeros":              nil,
		"first byte":         {0: 1},
		"second block":       {hashBlock: 1},
		"two in a block":     {3 * hashBlock: 1, 4*hashBlock - 1: 1},
		"another in a block": {3 * hashBlock: 1, 4*hashBlock - 2: 1},
		"another value":      {hashBlock: 2},
		"last byte":          {size - 1: 1},
		"all of them":        {0: 1, hashBlock: 1, 5 * hashBlock: 3, size - 1: 1},
	} {
		sparse, full := write(true, changes), write(false, changes)
		if sparse != full {
			t.Errorf("%s: %s with holes, %s without", name, sparse, full)
		}
		if other, ok := seen[sparse]; ok {
			t.Errorf("%s and %s have one sum", name, other)
		}
		seen[sparse] = name
	}
	path := filepath.Join(t.TempDir(), "longer")
	if err := os.WriteFile(path, make([]byte, size+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if sum, err := hash(path); err != nil || seen[sum] != "" {
		t.Errorf("zeros of another length: %v, the sum of %q", err, seen[sum])
	}
}
