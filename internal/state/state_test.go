package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestCheckID(t *testing.T) {
	good := []string{"a", "A-b_c.d+e", "0", "...", "-x", strings.Repeat("a", 128)}
	for _, id := range good {
		if err := CheckID(id); err != nil {
			t.Errorf("CheckID(%q) = %v, want nil", id, err)
		}
	}
	bad := []string{"", ".", "..", "a/b", "/", "a b", "a,b", "ä", "a\n", "a\x00", strings.Repeat("a", 129)}
	for _, id := range bad {
		err := CheckID(id)
		if err == nil {
			t.Errorf("CheckID(%q) = nil", id)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("CheckID(%q): message of several lines: %q", id, err)
		}
	}
}

func create(t *testing.T, id string) *Dir {
	t.Helper()
	d, err := Create(t.TempDir(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func lock(t *testing.T, d *Dir) func() {
	t.Helper()
	unlock, err := d.Lock(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return unlock
}

func TestCreateOpenListRemove(t *testing.T) {
	root := filepath.Join(t.TempDir(), "deep", "root")
	if ids, err := List(root); err != nil || len(ids) != 0 {
		t.Fatalf("List of a missing root = %v, %v", ids, err)
	}
	d, err := Create(root, "one")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(root, "one"); !errors.Is(err, ErrExists) || err.Error() != `container id "one" is in use` {
		t.Errorf("second Create: %v", err)
	}
	if _, err := Create(root, "../two"); err == nil {
		t.Error("Create takes a path for an id")
	}
	if _, err := Open(root, "one"); err != nil {
		t.Errorf("Open: %v", err)
	}
	if _, err := Open(root, "none"); !errors.Is(err, ErrNotExist) || err.Error() != `container "none" does not exist` {
		t.Errorf("Open of a missing container: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if ids, err := List(root); err != nil || !reflect.DeepEqual(ids, []string{"one"}) {
		t.Errorf("List = %v, %v", ids, err)
	}
	for range 2 {
		if err := d.Remove(); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if _, err := d.Load(); !errors.Is(err, ErrNotExist) {
		t.Errorf("Load after Remove: %v", err)
	}
	if _, err := d.Lock(context.Background()); !errors.Is(err, ErrNotExist) {
		t.Errorf("Lock after Remove: %v", err)
	}
}

func TestSaveLoad(t *testing.T) {
	d := create(t, "c")
	if _, err := d.Load(); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNotExist) {
		t.Errorf("Load before Save: %v", err)
	}
	owner, err := Self("owner")
	if err != nil {
		t.Fatal(err)
	}
	timeout := 3
	want := Container{
		Version: Version, ID: "c", Bundle: "/b", Status: Running, Owner: owner,
		Helpers: []Process{{Name: "qemu", PID: 7, Start: 1 << 60}}, Created: time.Unix(1, 2).UTC(),
		Annotations: map[string]string{"k": "v"}, ExitStatus: 137,
		Poststop: []specs.Hook{{Path: "/h", Args: []string{"h"}, Timeout: &timeout}},
	}
	unlock := lock(t, d)
	defer unlock()
	if err := d.Save(want); err != nil {
		t.Fatal(err)
	}
	got, err := d.Load()
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Load = %+v, %v\nwant %+v", got, err, want)
	}
	if info, err := os.Stat(d.Path(stateFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("state file: %v, %v", info, err)
	}
	if left, _ := filepath.Glob(d.Path(".new-*")); len(left) != 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

func TestSaveWithoutLockPanics(t *testing.T) {
	d := create(t, "c")
	lock(t, d)()
	defer func() {
		if recover() == nil {
			t.Error("Save without the lock did not panic")
		}
	}()
	_ = d.Save(Container{})
}

func TestLoadRefuses(t *testing.T) {
	cases := map[string]struct{ content, want string }{
		"empty":         {"", "unexpected end"},
		"not JSON":      {"{", "unexpected end"},
		"no version":    {"{}", "version 0, this husk knows version 2"},
		"later version": {`{"version":3,"new":[]}`, "version 3, this husk knows version 2"},
		"unknown field": {`{"version":2,"id":"c","new":1}`, "unknown field"},
		"foreign id":    {`{"version":2,"id":"d"}`, `that of "d"`},
		"huge":          {strings.Repeat(" ", maxState+1), "more than"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			d := create(t, "c")
			if err := os.WriteFile(d.Path(stateFile), []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Load(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Load: %v, want %q", err, c.want)
			}
		})
	}
}

func TestLockExcludes(t *testing.T) {
	d := create(t, "c")
	other, err := Open(filepath.Dir(d.path), "c")
	if err != nil {
		t.Fatal(err)
	}
	unlock := lock(t, d)
	for _, rival := range []*Dir{d, other} {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
		if _, err := rival.Lock(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock of a locked container: %v", err)
		}
		cancel()
	}
	unlock()
	unlock() // does nothing
	lock(t, other)()
	lock(t, d)()
}

// TestLockCounts has many goroutines and directories change one number: a lost update shows.
func TestLockCounts(t *testing.T) {
	d := create(t, "c")
	var wg sync.WaitGroup
	const workers, rounds = 8, 10
	for w := range workers {
		wg.Go(func() {
			mine := d
			if w%2 == 1 {
				mine, _ = Open(filepath.Dir(d.path), "c")
			}
			for range rounds {
				unlock, err := mine.Lock(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				c, err := mine.Load()
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
				}
				c.ExitStatus++
				if err := mine.Save(c); err != nil {
					t.Error(err)
				}
				unlock()
			}
		})
	}
	wg.Wait()
	if c, err := d.Load(); err != nil || c.ExitStatus != workers*rounds {
		t.Errorf("counted %d, %v; want %d", c.ExitStatus, err, workers*rounds)
	}
}

// TestLockOfReplaced takes a lock whose container was removed, and its id used again, by its holder.
func TestLockOfReplaced(t *testing.T) {
	d := create(t, "c")
	other, err := Open(filepath.Dir(d.path), "c")
	if err != nil {
		t.Fatal(err)
	}
	unlock := lock(t, d)
	got := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		close(started)
		_, err := other.Lock(context.Background())
		got <- err
	}()
	<-started
	time.Sleep(50 * time.Millisecond) // the other waits with the old lock file open
	if err := d.Remove(); err != nil {
		t.Fatal(err)
	}
	unlock()
	if err := <-got; !errors.Is(err, ErrNotExist) {
		t.Errorf("Lock of a removed container: %v", err)
	}
}

func TestProcess(t *testing.T) {
	self, err := Self("test")
	if err != nil {
		t.Fatal(err)
	}
	if !self.Alive() {
		t.Error("this process is not alive")
	}
	if Alive(self.PID, self.Start+1) {
		t.Error("a process with another start time is alive")
	}
	if (Process{}).Alive() || Alive(-1, 0) {
		t.Error("no process is alive")
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child, err := Of("sleep", cmd.Process.Pid)
	if err != nil || !child.Alive() {
		t.Errorf("child = %+v, %v", child, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for child.Alive() && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if child.Alive() { // not waited for: a zombie
		t.Error("a zombie is alive")
	}
	_ = cmd.Wait() // killed
	if child.Alive() {
		t.Error("a process that was waited for is alive")
	}
}

func TestParseStat(t *testing.T) {
	tail := strings.Repeat(" 0", 18) + " 4242 0 0"
	start, state, err := parseStat(1, []byte("1 (a) S 1) b (c) Z"+tail))
	if err != nil || start != 4242 || state != 'Z' {
		t.Errorf("parseStat = %d, %q, %v", start, state, err)
	}
	for _, bad := range []string{"", "1 (a)", "1 (a) S 0 0", "1 (a) S" + strings.Repeat(" x", 25)} {
		if _, _, err := parseStat(1, []byte(bad)); err == nil {
			t.Errorf("parseStat(%q) has no error", bad)
		}
	}
}

func TestEffective(t *testing.T) {
	self, err := Self("test")
	if err != nil {
		t.Fatal(err)
	}
	dead := Process{PID: self.PID, Start: self.Start + 1}
	for _, c := range []struct {
		owner       Process
		saved, want Status
	}{
		{self, Creating, Creating}, {self, Running, Running}, {self, Paused, Paused}, {self, Stopped, Stopped},
		{dead, Creating, Stopped}, {dead, Created, Stopped}, {dead, Running, Stopped}, {dead, Paused, Stopped},
		{Process{}, Running, Stopped},
	} {
		if got := (Container{Owner: c.owner, Status: c.saved}).Effective(); got != c.want {
			t.Errorf("%s with owner %+v: %s, want %s", c.saved, c.owner, got, c.want)
		}
	}
}

// TestContainerIsPlainData fails for a field that JSON would drop, or that is no data.
func TestContainerIsPlainData(t *testing.T) {
	typ := reflect.TypeFor[Container]()
	if typ.NumField() > 25 {
		t.Errorf("Container has %d fields, at most 25", typ.NumField())
	}
	seen := map[string]bool{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "" || name == "-" || seen[name] {
			t.Errorf("field %s: needs a JSON name of its own", f.Name)
		}
		seen[name] = true
		if err := plain(f.Type); err != nil {
			t.Errorf("field %s: %v", f.Name, err)
		}
	}
}

func plain(t reflect.Type) error {
	if t.Implements(reflect.TypeFor[json.Marshaler]()) {
		return nil
	}
	switch t.Kind() {
	case reflect.Chan, reflect.Func, reflect.Interface, reflect.UnsafePointer, reflect.Uintptr, reflect.Complex64, reflect.Complex128:
		return fmt.Errorf("%s is no data", t)
	case reflect.Pointer, reflect.Slice, reflect.Array:
		return plain(t.Elem())
	case reflect.Map:
		return errors.Join(plain(t.Key()), plain(t.Elem()))
	case reflect.Struct:
		for i := range t.NumField() {
			if !t.Field(i).IsExported() {
				return fmt.Errorf("%s has the unexported field %s", t, t.Field(i).Name)
			}
			if err := plain(t.Field(i).Type); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestWriteFile(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/dev/shm"} {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			continue
		}
		path := filepath.Join(dir, "husk-state-test")
		t.Cleanup(func() { os.Remove(path) })
		for _, content := range []string{"one", "", "three"} {
			if err := WriteFile(path, []byte(content), 0o640); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			info, _ := os.Stat(path)
			if err != nil || string(got) != content || info.Mode().Perm() != 0o640 {
				t.Errorf("%s holds %q, mode %v, %v", path, got, info.Mode(), err)
			}
		}
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "taken"), nil, 0o600); err == nil {
		t.Error("WriteFile over a directory has no error")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(left) != 0 {
		t.Errorf("temporary files left: %v", left)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"c","status":"running","owner":{"pid":1,"start":2}}`))
	f.Add([]byte(`{"version":1,"id":"c","poststop":[{"path":"/h"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decode("c", data)
		if err == nil && (c.Version != Version || c.ID != "c") {
			t.Errorf("took %+v", c)
		}
	})
}
