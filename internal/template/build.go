package template

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/vmm"
)

const (
	buildPrefix  = ".build-" // directories of templates in the making
	trashPrefix  = ".trash-" // and of those on their way out
	lockFile     = ".lock"
	failedSuffix = ".failed"

	// revision changes with what is done to a VM before it is saved: no template of another one is used.
	revision = 2
	// most is how many templates are kept; the ones that were not used for the longest time go.
	most = 16
	// retryAfter is how long a build that failed is not tried again by itself.
	retryAfter = 10 * time.Minute
	// stopWait bounds the end of the VM.
	stopWait = 10 * time.Second
	// consoleTail is how much of the guest's last words an error holds, in bytes.
	consoleTail = 512
)

// ErrBusy says that another process builds a template. There is one build at a time: it takes a processor.
var ErrBusy = errors.New("another process builds a template")

// BuildOptions describe a template.
type BuildOptions struct {
	Driver vmm.Driver
	Spec   vmm.Spec // Disks, Shares and NICs are left out
	// Card is the network card of a template for VMs with a network; nil: it is for those without.
	Card          *Card
	KernelVersion string
	// Wait makes Build wait for another process that builds one, in place of ErrBusy.
	Wait bool
	// Rehearse makes what the guest rehearses, with its files in a directory that is removed before the
	// template is kept; nil: nothing.
	Rehearse func(ctx context.Context, dir string) (*Rehearsal, error)
	// Phase is told what Build is at; it may be nil.
	Phase func(string)
}

// Card is the network card that a template is saved with.
type Card struct {
	Kind vmm.Card
	// Network is what the guest is told of it; nil: to turn it on.
	Network *agentv1.SetNetworkRequest
	// Open opens the files of a vmm.NIC of the kind and of so many queues, which lead nowhere. They are the monitor's.
	Open func(queues int) (vmm.NIC, error)
}

func (c *Card) kind() vmm.Card {
	if c == nil {
		return vmm.NoCard
	}
	return c.Kind
}

// Key is the key of the template for a VM like spec, with or without a network card; memory, disks, shares and the cards
// themselves do not count.
func Key(driver vmm.Driver, spec vmm.Spec, card vmm.Card) (string, error) {
	keyer, ok := driver.(vmm.Keyer)
	if !ok {
		return "", fmt.Errorf("make a template: %w by this driver", vmm.ErrNotSupported)
	}
	return keyer.SnapshotKey(Spec(spec, card))
}

// Spec is the VM that is saved for VMs like spec to start from. The files of its card are left out.
func Spec(spec vmm.Spec, card vmm.Card) vmm.Spec {
	spec.MemoryMiB = BaseMiB(spec.MemoryMiB)
	spec.Savable, spec.From, spec.Disks, spec.Shares, spec.NICs = true, nil, nil, nil, nil
	switch card {
	case vmm.TapCard:
		spec.NICs = []vmm.NIC{{
			Name: cardName, MAC: vmm.SavedMAC, MTU: vmm.MaxMTU, Taps: make([]*os.File, vmm.Queues(spec.VCPUs)),
		}}
	case vmm.StreamCard:
		spec.NICs = []vmm.NIC{{Name: cardName, MAC: vmm.StreamMAC, MTU: vmm.StreamMTU, Stream: new(os.File)}}
	}
	return spec
}

// Build boots a VM, saves it and puts it into the store, unless it is there and whole already. It returns
// the template's key.
func (s *Store) Build(ctx context.Context, o BuildOptions) (string, error) {
	key, err := Key(o.Driver, o.Spec, o.Card.kind())
	if err != nil {
		return "", err
	}
	if o.Phase == nil {
		o.Phase = func(string) {}
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return "", fmt.Errorf("build template: %w", err)
	}
	unlock, err := s.lock(ctx, o.Wait)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := s.Find(key); err == nil {
		return key, nil
	}
	err = s.build(ctx, key, o)
	if err != nil {
		err = fmt.Errorf("build template: %w", err)
		if errors.Is(ctx.Err(), context.Canceled) {
			return "", err // somebody has changed his mind, and nothing speaks against the next try
		}
		s.note(key, err)
		return "", err
	}
	_ = os.Remove(s.path(key + failedSuffix))
	return key, s.prune(key)
}

// Reject removes a template that a VM could not be started from. Where it was new the next one is likely to fail
// as well, and is not built at once.
func (s *Store) Reject(key string, why error) error {
	t, loadErr := s.load(key)
	err := s.Remove(key)
	if errors.Is(err, ErrNone) {
		return nil // somebody else was there first
	}
	if err != nil {
		return err
	}
	if loadErr == nil && time.Since(t.Created) < retryAfter {
		s.note(key, fmt.Errorf("start from template: %w", why))
	}
	return nil
}

// note writes down why there is no template. Where it cannot be written a build is tried again too soon.
func (s *Store) note(key string, why error) {
	_ = os.WriteFile(s.path(key+failedSuffix), []byte(why.Error()+"\n"), 0o600)
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// Wanted tells whether a template is worth a build that nobody asked for: not when one has just failed.
func (s *Store) Wanted(key string) bool {
	info, err := os.Stat(s.path(key + failedSuffix))
	return err != nil || time.Since(info.ModTime()) > retryAfter
}

// lock keeps other builders out. The lock ends with the process.
func (s *Store) lock(ctx context.Context, wait bool) (unlock func(), err error) {
	f, err := os.OpenFile(s.path(lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock template: %w", err)
	}
	locked := true
	if wait {
		err = sys.Lock(ctx, f)
	} else {
		locked, err = sys.TryLock(f)
	}
	switch {
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("lock template: %w", err)
	case !locked:
		f.Close()
		return nil, ErrBusy
	}
	return func() { f.Close() }, nil
}

// build makes the template in a directory of its own, which takes the key's name when it is whole.
func (s *Store) build(ctx context.Context, key string, o BuildOptions) error {
	var undo cleanup.Stack
	defer undo.Clean()
	s.sweep()
	dir, err := os.MkdirTemp(s.dir, buildPrefix)
	if err != nil {
		return err
	}
	undo.Add(func() error { return os.RemoveAll(dir) })
	started := time.Now()
	if err := saveVM(ctx, dir, o); err != nil {
		return err
	}
	t := &Template{
		Key: key, Revision: revision, MemoryMiB: BaseMiB(o.Spec.MemoryMiB), VCPUs: o.Spec.VCPUs, Machine: o.Spec.Machine, Card: o.Card.kind(),
		KernelVersion: o.KernelVersion, Created: started, BuildMS: time.Since(started).Milliseconds(),
	}
	o.Phase("check")
	for name, file := range map[string]*File{memoryFile: &t.Memory, stateFile: &t.State} {
		if *file, err = record(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, recordFile), append(data, '\n'), 0o600); err != nil {
		return err
	}
	if err := s.Remove(key); err != nil && !errors.Is(err, ErrNone) { // a damaged one
		return err
	}
	if err := os.Rename(dir, s.path(key)); err != nil {
		return err
	}
	undo.Release()
	return nil
}

// record returns what is to be kept of a file that is written.
func record(path string) (File, error) {
	sum, err := hash(path)
	if err != nil {
		return File{}, err
	}
	f, err := look(path)
	f.Sum = sum
	return f, err
}

// saveVM boots a VM and writes it to dir.
func saveVM(ctx context.Context, dir string, o BuildOptions) (err error) {
	saver := func(vm vmm.VM) (vmm.Saver, error) {
		if s, ok := vm.(vmm.Saver); ok {
			return s, nil
		}
		return nil, fmt.Errorf("save virtual machine: %w", vmm.ErrNotSupported)
	}
	memory, err := os.OpenFile(filepath.Join(dir, memoryFile), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer memory.Close()
	state, err := os.OpenFile(filepath.Join(dir, stateFile), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer state.Close()

	rehearsal, clear, err := prepare(ctx, dir, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clear()) }()
	o.Phase("boot")
	vm, err := boot(ctx, o, rehearsal)
	if err != nil {
		return err
	}
	defer func() {
		limited, cancel := context.WithTimeout(context.Background(), stopWait)
		defer cancel()
		err = errors.Join(err, vm.Stop(limited))
	}()
	s, err := saver(vm)
	if err != nil {
		return err
	}
	o.Phase("save")
	if err := s.Save(ctx, memory, state); err != nil {
		return err
	}
	info, err := state.Stat()
	if err != nil {
		return fmt.Errorf("look at the state: %w", err)
	}
	if info.Size() == 0 || info.Size() > maxState {
		return fmt.Errorf("state of %d bytes: want 1 to %d", info.Size(), maxState)
	}
	// What a crash of the host leaves must not look whole.
	return errors.Join(memory.Sync(), state.Sync())
}

// prepare makes what the guest rehearses. clear removes its files.
func prepare(ctx context.Context, dir string, o BuildOptions) (r *Rehearsal, clear func() error, err error) {
	if o.Rehearse == nil {
		return nil, func() error { return nil }, nil
	}
	files := filepath.Join(dir, "rehearsal")
	clear = func() error { return os.RemoveAll(files) }
	if err := os.Mkdir(files, 0o700); err != nil {
		return nil, nil, err
	}
	if r, err = o.Rehearse(ctx, files); err != nil {
		return nil, nil, errors.Join(err, clear())
	}
	return r, clear, nil
}

// boot starts the VM and waits until its agent is at rest.
func boot(ctx context.Context, o BuildOptions, r *Rehearsal) (vmm.VM, error) {
	spec := Spec(o.Spec, o.Card.kind())
	if r != nil {
		spec.Disks = r.Disks
	}
	console, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	if o.Card != nil {
		nic, err := o.Card.Open(vmm.Queues(spec.VCPUs))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("network card: %w", err), console.Close(), theirs.Close())
		}
		to := &spec.NICs[0]
		to.Taps, to.Vhosts, to.Stream = nic.Taps, nic.Vhosts, nic.Stream
	}
	spec.Console = theirs
	heard := make(chan string, 1)
	go listen(console, heard)
	vm, err := o.Driver.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	fail := func(why error) (vmm.VM, error) {
		limited, cancel := context.WithTimeout(context.Background(), stopWait)
		defer cancel()
		return nil, errors.Join(why, vm.Stop(limited))
	}
	if err := rest(ctx, vm, r, o.Card); err != nil {
		return fail(bootError(vm, err, heard))
	}
	select {
	case tail := <-heard:
		if tail == "" {
			return vm, nil
		}
		return fail(fmt.Errorf("boot guest: it ended; last on its console: %q", tail))
	case <-ctx.Done():
		return fail(fmt.Errorf("boot guest: %w", ctx.Err()))
	}
}

// bootError says why a guest did not come to rest: where its VM has ended, that is why.
func bootError(vm vmm.VM, err error, heard <-chan string) error {
	select {
	case <-vm.Done():
	case <-time.After(time.Second):
		return fmt.Errorf("boot guest: %w", err)
	}
	if vm.Err() != nil {
		err = vm.Err()
	}
	return fmt.Errorf("boot guest: %w; last on its console: %q", err, <-heard)
}

// listen reads the console to its end. It says "" when the agent is at rest, or else the end of what was printed.
func listen(console *os.File, heard chan<- string) {
	defer console.Close()
	lines := bufio.NewScanner(console)
	tail := ""
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == agentv1.Rested {
			heard <- ""
			_, _ = io.Copy(io.Discard, console)
			return
		}
		tail += lines.Text() + "\n"
		tail = tail[max(0, len(tail)-consoleTail):]
	}
	if tail == "" {
		tail = "nothing"
	}
	heard <- tail
}

// sweep removes what builders left that were killed. Precondition: the lock is held.
func (s *Store) sweep() {
	for _, prefix := range []string{buildPrefix, trashPrefix} {
		left, _ := filepath.Glob(s.path(prefix + "*")) // a fixed pattern
		for _, dir := range left {
			_ = os.RemoveAll(dir) // the next sweep tries again
		}
	}
}

// prune removes the templates that were not used for the longest time, but not key's.
func (s *Store) prune(key string) error {
	templates, err := s.List()
	if err != nil {
		return err
	}
	for i, t := range templates {
		if i < most || t.Key == key {
			continue
		}
		if err := s.Remove(t.Key); err != nil && !errors.Is(err, ErrNone) {
			return err
		}
	}
	return nil
}
