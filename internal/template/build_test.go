package template

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest"
)

func TestBuild(t *testing.T) {
	vmmtest.CheckLeaks(t)
	s := Open(filepath.Join(t.TempDir(), "templates"))
	d := &fakeDriver{}
	o := options(t, d)
	o.Spec.Disks = []vmm.Disk{{Serial: "d", Path: "/nonexistent"}} // no part of a template
	var phases []string
	o.Phase = func(p string) { phases = append(phases, p) }
	key, err := s.Build(bound(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(phases, " "); got != "boot save check" {
		t.Errorf("phases %q", got)
	}
	d.mu.Lock()
	spec := d.spec
	d.mu.Unlock()
	if !spec.Savable || spec.MemoryMiB != 256 || len(spec.Disks) != 0 {
		t.Errorf("the VM that was saved: %+v", spec)
	}
	if err := s.Verify(key); err != nil {
		t.Error(err)
	}
	if want, err := Key(d, o.Spec, vmm.NoCard); err != nil || key != want {
		t.Errorf("built %s, Key says %s, %v", key, want, err)
	}
	if again, err := s.Build(bound(t, time.Minute), o); err != nil || again != key || d.started.Load() != 1 {
		t.Errorf("second Build: %s, %v, %d VMs; want the template that is there", again, err, d.started.Load())
	}
	if n := d.running.Load(); n != 0 {
		t.Errorf("%d VMs still run", n)
	}
	if left := names(t, s); left != key {
		t.Errorf("in the store: %s", left)
	}
}

// TestBuildCard: a template with a card is another one, whose guest was told to turn it on.
func TestBuildCard(t *testing.T) {
	vmmtest.CheckLeaks(t)
	s := Open(filepath.Join(t.TempDir(), "templates"))
	var told *agentv1.SetNetworkRequest
	d := &fakeDriver{agent: fakeAgent{network: func(r *agentv1.SetNetworkRequest) error { told = r; return nil }}}
	o := options(t, d)
	plain, err := s.Build(bound(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	if told != nil {
		t.Errorf("the guest without a card was told %v", told)
	}
	tap, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	queues := 0
	o.Card = &Card{Kind: vmm.TapCard, Open: func(n int) (vmm.NIC, error) { queues = n; return vmm.NIC{Taps: []*os.File{tap}}, nil }}
	card, err := s.Build(bound(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	if i := told.GetInterfaces(); len(i) != 2 || !bytes.Equal(i[1].GetDevice(), vmm.SavedMAC) || !i[1].GetUp() {
		t.Errorf("the guest was told %v", i)
	}
	if d.spec.NICs[0].Taps[0] != tap || queues != 1 {
		t.Errorf("the VM had %v, of %d queues", d.spec.NICs, queues)
	}
	socket, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	whole := &agentv1.SetNetworkRequest{Interfaces: []*agentv1.Interface{{Index: 1, Name: "lo"}}}
	o.Card = &Card{Kind: vmm.StreamCard, Network: whole, Open: func(int) (vmm.NIC, error) { return vmm.NIC{Stream: socket}, nil }}
	stream, err := s.Build(bound(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(told.GetInterfaces()) != 1 || d.spec.NICs[0].Stream != socket || len(d.spec.NICs[0].Taps) != 0 {
		t.Errorf("the guest was told %v, the VM had %v", told, d.spec.NICs)
	}
	for key, want := range map[string]vmm.Card{plain: vmm.NoCard, card: vmm.TapCard, stream: vmm.StreamCard} {
		if from, err := s.Find(key); err != nil || from.Card != want {
			t.Errorf("Find(%s): %+v, %v, want the card %q", key, from, err, want)
		}
	}
	o.Card = &Card{Kind: vmm.TapCard, Open: func(int) (vmm.NIC, error) { return vmm.NIC{}, os.ErrPermission }}
	o.Spec.VCPUs = 2
	if _, err := s.Build(bound(t, time.Minute), o); !errors.Is(err, os.ErrPermission) {
		t.Errorf("Build without the right to make a tap: %v", err)
	}
	if n := d.running.Load(); n != 0 {
		t.Errorf("%d VMs still run", n)
	}
}

// TestBuildFails: whatever goes wrong, no VM and no file is left but the note that says why.
func TestBuildFails(t *testing.T) {
	for name, c := range map[string]struct {
		driver vmm.Driver
		limit  time.Duration
		want   string
	}{
		"no VM":             {&fakeDriver{start: func(context.Context) error { return errors.New("no room") }}, time.Minute, "no room"},
		"Hello":             {&fakeDriver{agent: fakeAgent{helloErr: errors.New("not today")}}, time.Minute, "not today"},
		"guest ends":        {&fakeDriver{agent: fakeAgent{last: "Kernel panic"}}, time.Minute, "boot guest"},
		"guest never rests": {&fakeDriver{agent: fakeAgent{silent: true}}, 200 * time.Millisecond, "deadline"},
		"save":              {&fakeDriver{save: full}, time.Minute, "no space"},
		"no state":          {&fakeDriver{save: func(context.Context, *os.File, *os.File) error { return nil }}, time.Minute, "state of 0 bytes"},
		"large state": {&fakeDriver{save: func(_ context.Context, _, state *os.File) error {
			return state.Truncate(maxState + 1)
		}}, time.Minute, "state of 16777217 bytes"},
		"cannot be saved": {keyed{&fakeDriver{}}, time.Minute, "not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			vmmtest.CheckLeaks(t)
			s := Open(filepath.Join(t.TempDir(), "templates"))
			o := options(t, c.driver)
			key, err := Key(c.driver, o.Spec, vmm.NoCard)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Build(bound(t, c.limit), o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Build: %v, want %s", err, c.want)
			}
			if left := names(t, s); left != key+failedSuffix {
				t.Errorf("left in the store: %s", left)
			}
			if note, err := os.ReadFile(s.path(key + failedSuffix)); err != nil || !strings.Contains(string(note), c.want) {
				t.Errorf("note %q, %v; want %s", note, err, c.want)
			}
			if s.Wanted(key) {
				t.Error("wanted again right after a failure")
			}
			if list, err := s.Keys(); err != nil || len(list) != 0 {
				t.Errorf("the note counts as a template: %v, %v", list, err)
			}
		})
	}
}

// TestWanted: a failure is forgotten after a while, and by a build that goes well.
func TestWanted(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "templates"))
	d := &fakeDriver{save: full}
	o := options(t, d)
	_, err := s.Build(t.Context(), o)
	if err == nil {
		t.Fatal("built")
	}
	key, _ := d.SnapshotKey(Spec(o.Spec, vmm.NoCard))
	old := time.Now().Add(-retryAfter - time.Minute)
	if err := os.Chtimes(s.path(key+failedSuffix), old, old); err != nil {
		t.Fatal(err)
	}
	if !s.Wanted(key) {
		t.Error("not wanted long after a failure")
	}
	if _, err := s.Build(t.Context(), o); err == nil || s.Wanted(key) {
		t.Errorf("second failure: %v, wanted %v", err, s.Wanted(key))
	}
	d.save = nil
	if _, err := s.Build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if left := names(t, s); left != key || !s.Wanted(key) {
		t.Errorf("left after a build that went well: %s", left)
	}
}

// TestCanceled: a build that its caller gave up did not fail.
func TestCanceled(t *testing.T) {
	vmmtest.CheckLeaks(t)
	s := Open(filepath.Join(t.TempDir(), "templates"))
	ctx, cancel := context.WithCancel(t.Context())
	d := &fakeDriver{save: func(ctx context.Context, _, _ *os.File) error {
		cancel()
		return ctx.Err()
	}}
	if _, err := s.Build(ctx, options(t, d)); !errors.Is(err, context.Canceled) {
		t.Errorf("Build: %v", err)
	}
	if left := names(t, s); left != "" || d.running.Load() != 0 {
		t.Errorf("left: %q, %d VMs", left, d.running.Load())
	}
}

func TestBuildNeedsAKeyer(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "templates"))
	if _, err := s.Build(t.Context(), options(t, bare{&fakeDriver{}})); !errors.Is(err, vmm.ErrNotSupported) {
		t.Errorf("Build without keys: %v", err)
	}
	if _, err := os.Stat(s.dir); err == nil {
		t.Error("it made the directory")
	}
}

// TestBusy: one builds, who does not wait is told, who waits finds the template.
func TestBusy(t *testing.T) {
	vmmtest.CheckLeaks(t)
	s := Open(filepath.Join(t.TempDir(), "templates"))
	entered, release := make(chan struct{}), make(chan struct{})
	d := &fakeDriver{start: func(context.Context) error {
		close(entered)
		<-release
		return nil
	}}
	o := options(t, d)
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := s.Build(bound(t, time.Minute), o); err != nil {
			t.Errorf("the builder: %v", err)
		}
	})
	<-entered
	if _, err := s.Build(t.Context(), o); !errors.Is(err, ErrBusy) {
		t.Errorf("Build beside a builder: %v, want ErrBusy", err)
	}
	o.Wait = true
	if _, err := s.Build(bound(t, 100*time.Millisecond), o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Build that waits and gives up: %v", err)
	}
	if key, _ := d.SnapshotKey(Spec(o.Spec, vmm.NoCard)); !s.Wanted(key) {
		t.Error("who waits in vain notes a failure of the build")
	}
	all.Go(func() {
		if _, err := s.Build(bound(t, time.Minute), o); err != nil {
			t.Errorf("who waits: %v", err)
		}
	})
	close(release)
	all.Wait()
	if n := d.started.Load(); n != 1 {
		t.Errorf("%d VMs were booted, want 1", n)
	}
}

// TestSweep: the next builder removes what one left that was killed, and no template.
func TestSweep(t *testing.T) {
	s, key := built(t)
	for _, dir := range []string{buildPrefix + "123", trashPrefix + "456/" + strings.Repeat("e", 32)} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(s.path(dir), memoryFile), "half")
	}
	o := options(t, &fakeDriver{})
	o.Spec.VCPUs = 2
	other, err := s.Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if left := names(t, s); left != key+" "+other {
		t.Errorf("in the store: %s, want %s %s", left, key, other)
	}
}

// TestPrune: the store keeps the templates that were used last.
func TestPrune(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "templates"))
	var keys []string
	for i := range most + 2 {
		o := options(t, &fakeDriver{key: func(vmm.Spec) (string, error) { return fmt.Sprintf("%032x", i), nil }})
		key, err := s.Build(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key)
		// Used long ago, the first at last.
		when := time.Now().Add(-time.Duration(i+1) * time.Hour)
		if err := os.Chtimes(s.path(key), when, when); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Keys()
	if err != nil {
		t.Fatal(err)
	}
	// 8 and 9 each pushed out the one that was used the longest time ago: 7, then 8.
	want := append(append([]string{}, keys[:most-1]...), keys[most+1])
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("kept %v, want %v", got, want)
	}
}
