package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/vmm"
)

const (
	// saveEvery is how often QEMU is asked whether it has written the state, which takes it some 10 ms.
	saveEvery = 5 * time.Millisecond
	// page is the unit in which saved memory is dense or sparse, in bytes.
	page = 4096
	// window is how much memory is looked at in one go, in bytes.
	window = 1 << 20
)

// savable makes the RAM of a VM that is to be saved: a file that exists in memory only.
func (r *resources) savable(s vmm.Spec, f *facts) error {
	ram, err := sys.Memfd("husk-ram", int64(s.MemoryMiB)<<20)
	if err != nil {
		return err
	}
	r.ram = ram
	r.undo.Add(ram.Close)
	f.ram, err = r.lend(ram)
	return err
}

// snapshot opens what a saved VM is continued from. QEMU must never get at the memory of a snapshot for
// writing, which every later VM would start with: it maps it from a descriptor that is open for reading, or
// gets a copy of its own.
func (r *resources) snapshot(s vmm.Spec, f *facts) error {
	state, err := os.Open(s.From.State)
	if err != nil {
		return fmt.Errorf("open saved state: %w", err)
	}
	if f.state, err = r.feed(state); err != nil {
		return err
	}
	memory, err := os.Open(s.From.Memory)
	if err != nil {
		return fmt.Errorf("open saved memory: %w", err)
	}
	info, err := memory.Stat()
	if err == nil && info.Size() != int64(s.From.MemoryMiB)<<20 {
		err = fmt.Errorf("%s is %d bytes long, want %d MiB", s.From.Memory, info.Size(), s.From.MemoryMiB)
	}
	if err != nil {
		memory.Close()
		return fmt.Errorf("open saved memory: %w", err)
	}
	r.ram = memory
	r.undo.Add(memory.Close)
	if f.lent {
		return nil
	}
	return r.copyMemory(memory, f)
}

// feed gives QEMU what is in a file as a pipe, which every version loads a state from: since 11 none does from a file that
// it inherits. An end that comes too early, for whatever reason, is one that QEMU sees, unless it comes at the beginning: for
// the first byte it waits, and a pipe that was closed before has none and never will.
func (r *resources) feed(state *os.File) (fd int, err error) {
	first := make([]byte, 1)
	if _, err := io.ReadFull(state, first); err != nil {
		state.Close()
		if err == io.EOF {
			err = fmt.Errorf("%w: its state is empty", vmm.ErrSnapshot)
		}
		return 0, fmt.Errorf("read saved state: %w", err)
	}
	from, to, err := os.Pipe()
	if err != nil {
		state.Close()
		return 0, fmt.Errorf("make a pipe for the saved state: %w", err)
	}
	go func() { // until QEMU has read all, or is gone
		if _, err := to.Write(first); err == nil {
			_, _ = io.Copy(to, state)
		}
		to.Close()
		state.Close()
	}()
	return r.give(from), nil
}

// copyMemory gives the guest a copy of the saved memory.
func (r *resources) copyMemory(memory *os.File, f *facts) error {
	info, err := memory.Stat()
	if err != nil {
		return fmt.Errorf("copy saved memory: %w", err)
	}
	ram, err := sys.Memfd("husk-ram", info.Size())
	if err != nil {
		return err
	}
	f.ram = r.give(ram)
	if err := sys.CopySparse(ram, memory); err != nil {
		return fmt.Errorf("copy saved memory: %w", err)
	}
	return nil
}

// lend lets QEMU inherit a file that stays open here too.
func (r *resources) lend(f *os.File) (int, error) {
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		return 0, fmt.Errorf("duplicate %s: %w", f.Name(), err)
	}
	return r.give(os.NewFile(uintptr(fd), f.Name())), nil
}

// Save stops the guest's processors and writes it out. See vmm.Saver.
func (m *machine) Save(ctx context.Context, memory, state *os.File) error {
	if m.ram == nil {
		return fmt.Errorf("save VM %q: %w", m.id, vmm.ErrNotSupported)
	}
	if err := m.save(ctx, memory, state); err != nil {
		return fmt.Errorf("save VM %q: %w", m.id, err)
	}
	return nil
}

func (m *machine) save(ctx context.Context, memory, state *os.File) error {
	if err := m.qmp.execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	if err := m.withoutMemory(ctx); err != nil {
		return err
	}
	if err := m.writeState(ctx, state); err != nil {
		return fmt.Errorf("write the state: %w", err)
	}
	return writeSparse(ctx, memory, m.ram)
}

// writeState has QEMU write all but memory to a file. It does so through a pipe, as every version can: 7.2 has no other way
// to a file that it cannot open itself, and 11 takes no descriptor that is a file's.
func (m *machine) writeState(ctx context.Context, state *os.File) error {
	from, to, err := os.Pipe()
	if err != nil {
		return err
	}
	defer from.Close()
	const name = "state"
	err = m.qmp.executeWith(ctx, to, "getfd", map[string]string{"fdname": name}, nil)
	to.Close()
	if err != nil {
		return err
	}
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(state, from)
		from.Close() // QEMU fails instead of waiting for somebody to read
		copied <- err
	}()
	// Whoever waits for the copying waits no longer than ctx, whatever QEMU does with its end.
	defer context.AfterFunc(ctx, func() { from.Close() })()
	migrated := m.migrate(ctx, "fd:"+name)
	if migrated != nil {
		from.Close()
	}
	switch err := <-copied; {
	case errors.Is(err, os.ErrClosed) && migrated == nil:
		return ctx.Err()
	case errors.Is(err, os.ErrClosed), err == nil:
		return migrated
	default: // which made QEMU fail
		return err
	}
}

// migrate waits until QEMU has written the state.
func (m *machine) migrate(ctx context.Context, uri string) error {
	if err := m.qmp.execute(ctx, "migrate", map[string]string{"uri": uri}, nil); err != nil {
		return err
	}
	for {
		var migration struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := m.qmp.execute(ctx, "query-migrate", nil, &migration); err != nil {
			return err
		}
		switch migration.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("%.32s: %.256s", migration.Status, migration.Error)
		}
		select {
		case <-time.After(saveEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// load continues the guest from the state in an inherited file, and plugs in what QEMU loads no state beside.
func (m *machine) load(ctx context.Context, s vmm.Spec, fd int) error {
	if err := m.withoutMemory(ctx); err != nil {
		return err
	}
	if err := m.qmp.execute(ctx, "migrate-incoming", map[string]string{"uri": fmt.Sprintf("fd:%d", fd)}, nil); err != nil {
		return err
	}
	if err := m.qmp.awaitResume(ctx); err != nil {
		return err
	}
	for i, share := range s.Shares {
		if err := m.qmp.execute(ctx, "device_add", sharePlug(i, share), nil); err != nil {
			return fmt.Errorf("plug share %s: %w", share.Tag, err)
		}
	}
	return nil
}

// withoutMemory leaves the guest's RAM out of the state: it is in a file of its own.
func (m *machine) withoutMemory(ctx context.Context) error {
	type capability struct {
		Name string `json:"capability"`
		On   bool   `json:"state"`
	}
	return m.qmp.execute(ctx, "migrate-set-capabilities",
		map[string][]capability{"capabilities": {{Name: "x-ignore-shared", On: true}}}, nil)
}

// writeSparse writes the pages of ram that hold anything.
func writeSparse(ctx context.Context, to, ram *os.File) error {
	info, err := ram.Stat()
	if err != nil {
		return err
	}
	if err := to.Truncate(info.Size()); err != nil {
		return err
	}
	buffer, zero := make([]byte, window), make([]byte, page)
	for at := int64(0); at < info.Size(); at += window {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := ram.ReadAt(buffer, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for from := 0; from < n; {
			dense := !bytes.Equal(buffer[from:from+page], zero)
			end := from + page
			for end < n && !bytes.Equal(buffer[end:end+page], zero) == dense {
				end += page
			}
			if dense {
				if _, err := to.WriteAt(buffer[from:end], at+int64(from)); err != nil {
					return err
				}
			}
			from = end
		}
	}
	return nil
}
