package cgroup

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// testdata/full has the files of a group as a kernel wrote them, testdata/bare those of a group without
// controllers.

func TestStats(t *testing.T) {
	want := &agentv1.StatsResponse{
		Cpu: &agentv1.CPUStats{UsageUsec: 364529, UserUsec: 108885, SystemUsec: 255644, Periods: 12, ThrottledPeriods: 3, ThrottledUsec: 4567},
		Memory: &agentv1.MemoryStats{
			Usage: 9437184, Limit: 33554432, Peak: 10485760, SwapLimit: math.MaxUint64, OomKills: 1,
			Stat: map[string]uint64{"anon": 409600, "file": 8388608, "kernel": 500000, "shmem": 8388608, "file_mapped": 0, "workingset_refault_anon": 0},
		},
		Pids: &agentv1.PidsStats{Current: 2, Limit: 50},
		Io: []*agentv1.IOStats{
			{Major: 254, ReadBytes: 1048576, WriteBytes: 4096, ReadOps: 20, WriteOps: 1},
			{Major: 259, Minor: 1, ReadBytes: 5, WriteBytes: 6, ReadOps: 7, WriteOps: 8},
		},
	}
	got, err := Group{Dir: "testdata/full"}.Stats()
	if err != nil || !proto.Equal(got, want) {
		t.Errorf("got  %v, %v\nwant %v", got, err, want)
	}
	got, err = Group{Dir: "testdata/bare"}.Stats()
	if err != nil || got.Cpu.UsageUsec != 1 || got.Memory.Limit != 0 || got.Io != nil {
		t.Errorf("without controllers: %v, %v", got, err)
	}
}

func TestPids(t *testing.T) {
	got, err := Group{Dir: "testdata/full"}.Pids()
	if want := []int{12, 345, 400}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestNone(t *testing.T) {
	for _, g := range []Group{{}, {Dir: "testdata/absent"}} {
		_, stats := g.Stats()
		_, pids := g.Pids()
		_, kills := g.OOMKills()
		for _, err := range []error{stats, pids, kills, g.Kill(), g.Freeze(t.Context(), true)} {
			if !errors.Is(err, ErrNone) {
				t.Errorf("%q: error is %v, want ErrNone", g.Dir, err)
			}
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Errorf("%q: remove: %v", g.Dir, err)
		}
	}
}

// TestFreeze waits for a kernel that takes its time, and for one that never says that it is done.
func TestFreeze(t *testing.T) {
	g := Group{Dir: t.TempDir()}
	put := func(name, text string) {
		// Renamed into place: a reader sees the old text or the new.
		if err := os.WriteFile(filepath.Join(g.Dir, "new"), []byte(text), 0o600); err != nil {
			t.Error(err)
		}
		if err := os.Rename(filepath.Join(g.Dir, "new"), filepath.Join(g.Dir, name)); err != nil {
			t.Error(err)
		}
	}
	get := func() string {
		text, err := os.ReadFile(filepath.Join(g.Dir, "cgroup.freeze"))
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	put("cgroup.freeze", "0")
	put("cgroup.events", "populated 1\nfrozen 0\n")
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(20 * time.Millisecond)
		put("cgroup.events", "populated 1\nfrozen 1\n")
	}()
	if err := g.Freeze(t.Context(), true); err != nil || get() != "1" {
		t.Errorf("freeze: %v, file has %q", err, get())
	}
	<-done
	put("cgroup.events", "populated 1\nfrozen 0\n")
	limited, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := g.Freeze(limited, true); !errors.Is(err, context.DeadlineExceeded) || get() != "0" {
		t.Errorf("freeze that does not end: %v, file has %q", err, get())
	}
}

func TestRemove(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "group")
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := (Group{Dir: dir}).Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the group is still there: %v", err)
	}
}

func TestWatchNumbers(t *testing.T) {
	event := func(wd byte, name int) []byte {
		b := make([]byte, 16+name)
		b[0], b[12] = wd, byte(name)
		return b
	}
	buf := append(append(event(1, 0), event(2, 16)...), event(3, 0)...)
	if got, want := watchNumbers(buf), []int32{1, 2, 3}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	cut := append(event(1, 0), event(2, 16)[:20]...)
	if got, want := watchNumbers(cut), []int32{1, 2}; !reflect.DeepEqual(got, want) {
		t.Errorf("of a cut buffer: got %v, want %v", got, want)
	}
}

// TestWatcher has the count of kills in a file rise, as the kernel does.
func TestWatcher(t *testing.T) {
	g := Group{Dir: t.TempDir()}
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(g.Dir, "memory.events"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("oom_kill 0\n")
	w, err := NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	go w.Run()
	told := make(chan struct{}, 16)
	check, forget, err := w.Watch(g, func() { told <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	write("oom_kill 1\n")
	select {
	case <-told:
	case <-time.After(5 * time.Second):
		t.Fatal("a kill was not told")
	}
	check()
	check()
	select {
	case <-told:
		t.Error("a kill was told twice")
	case <-time.After(20 * time.Millisecond):
	}
	forget()
	write("oom_kill 2\n")
	select {
	case <-told:
		t.Error("a kill was told after forget")
	case <-time.After(20 * time.Millisecond):
	}
	if _, _, err := w.Watch(Group{Dir: g.Dir + "/absent"}, func() {}); !errors.Is(err, ErrNone) {
		t.Errorf("watch of no group: %v", err)
	}
}
