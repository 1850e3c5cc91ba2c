package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/vmm"
)

// diskMonitor is a QEMU that plugs disks: it answers commands as answer says, and notes their names.
type diskMonitor struct {
	*machine
	mu   sync.Mutex
	told []string // guarded by mu
}

func newDiskMonitor(t *testing.T, answer func(c command, id string) string) *diskMonitor {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn // it takes files, which a pipe does not
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "qmp")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	m := &diskMonitor{machine: &machine{qmp: newQMP(ends[0]), done: make(chan struct{})}}
	t.Cleanup(func() { m.qmp.Close(); ends[1].Close() })
	m.cards.begin(vmm.Spec{Machine: q35})
	go func() {
		for lines := bufio.NewScanner(ends[1]); lines.Scan(); {
			var c command
			var id struct{ ID string }
			if json.Unmarshal(lines.Bytes(), &c) != nil {
				return
			}
			arguments, _ := json.Marshal(c.Arguments)
			_ = json.Unmarshal(arguments, &id) // most have none
			m.mu.Lock()
			m.told = append(m.told, strings.TrimSpace(c.Execute+" "+id.ID))
			m.mu.Unlock()
			fmt.Fprintln(ends[1], answer(c, id.ID))
		}
	}()
	return m
}

// devices are the commands so far that were about devices.
func (m *diskMonitor) devices() (all []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, told := range m.told {
		if strings.HasPrefix(told, "device_") {
			all = append(all, told)
		}
	}
	return all
}

// taken is how many disks and ports are taken.
func (m *diskMonitor) taken() (disks, ports int) {
	m.cards.mu.Lock()
	defer m.cards.mu.Unlock()
	return len(m.cards.disks), len(m.cards.ports) - m.cards.empty()
}

// plug plugs disks in as PlugDisks does, in a short time.
func (m *diskMonitor) plug(t *testing.T, disks []vmm.Disk) error {
	t.Helper()
	places, err := m.cards.takeDisks(disks)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	return m.plugInto(ctx, disks, places)
}

func someDisks(t *testing.T, count int) (disks []vmm.Disk) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range count {
		disks = append(disks, vmm.Disk{Serial: fmt.Sprintf("disk-%d", i), Path: path, ReadOnly: true})
	}
	return disks
}

func failure(c command, class string) string {
	return fmt.Sprintf(`{"id": %d, "error": {"class": %q, "desc": "no"}}`, c.ID, class)
}

// goes is the answer to device_del of a guest that lets go of a device at once.
func goes(c command, id string) string {
	return ok(c) + fmt.Sprintf("\n"+`{"event": "DEVICE_DELETED", "data": {"device": %q}}`, id)
}

// TestPlugDiskUnanswered: a disk that QEMU plugs in after the wait for it is taken out all the same.
func TestPlugDiskUnanswered(t *testing.T) {
	for _, there := range []bool{true, false} {
		m := newDiskMonitor(t, func(c command, id string) string {
			switch {
			case c.Execute == "device_add":
				return "" // it goes on with it
			case c.Execute == "device_del" && there:
				return goes(c, id)
			case c.Execute == "device_del":
				return failure(c, "DeviceNotFound")
			}
			return ok(c)
		})
		err := m.plug(t, someDisks(t, 1))
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, vmm.ErrHeld) || errors.Is(err, vmm.ErrNotSupported) {
			t.Errorf("there %v: %v", there, err)
		}
		want := []string{"add-fd", "blockdev-add", "device_add plug8", "device_del plug8", "blockdev-del", "remove-fd"}
		m.mu.Lock()
		if !slices.Equal(m.told, want) {
			t.Errorf("there %v: QEMU was told %q, want %q", there, m.told, want)
		}
		m.mu.Unlock()
		if disks, ports := m.taken(); disks != 0 || ports != 0 {
			t.Errorf("there %v: %d disks and %d ports are taken", there, disks, ports)
		}
	}
}

// TestPlugDisksHalf: when the first port refuses a disk, the guest has those of the second already.
func TestPlugDisksHalf(t *testing.T) {
	m := newDiskMonitor(t, func(c command, id string) string {
		switch {
		case c.Execute == "device_add" && id == "plug15":
			return failure(c, "GenericError")
		case c.Execute == "device_del":
			return goes(c, id)
		}
		return ok(c)
	})
	err := m.PlugDisks(t.Context(), someDisks(t, portDisks+1))
	if !refused(err) || errors.Is(err, vmm.ErrNotSupported) || errors.Is(err, vmm.ErrHeld) {
		t.Error(err)
	}
	if want := []string{"device_add plug16", "device_add plug15", "device_del plug16"}; !slices.Equal(m.devices(), want) {
		t.Errorf("QEMU was told %q, want %q", m.devices(), want)
	}
	if disks, ports := m.taken(); disks != 0 || ports != 0 {
		t.Errorf("%d disks and %d ports are taken", disks, ports)
	}
}

// TestPlugDiskHeld: what cannot be undone keeps its place.
func TestPlugDiskHeld(t *testing.T) {
	for _, command := range []string{"blockdev-del", "remove-fd", "device_del"} {
		m := newDiskMonitor(t, refusing(command))
		err := m.plug(t, someDisks(t, 2))
		if !errors.Is(err, vmm.ErrHeld) || errors.Is(err, vmm.ErrNotSupported) {
			t.Errorf("without %s: %v", command, err)
		}
		if disks, ports := m.taken(); disks != 2 || ports != 1 {
			t.Errorf("without %s: %d disks and %d ports are taken", command, disks, ports)
		}
	}
}

// refusing refuses function 0, and a command that would undo it.
func refusing(refuse string) func(c command, id string) string {
	return func(c command, id string) string {
		switch {
		case c.Execute == "device_add" && id == "plug8", c.Execute == refuse:
			return failure(c, "GenericError")
		case c.Execute == "device_del" && id == "plug8":
			return failure(c, "DeviceNotFound")
		case c.Execute == "device_del":
			return goes(c, id)
		}
		return ok(c)
	}
}

// TestPlugDisksOfOneGone: whoever asked for disks may go away; they come all the same.
func TestPlugDisksOfOneGone(t *testing.T) {
	m := newDiskMonitor(t, func(c command, _ string) string { return ok(c) })
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.PlugDisks(gone, someDisks(t, 1)); err != nil {
		t.Error(err)
	}
	if disks, ports := m.taken(); disks != 1 || ports != 1 {
		t.Errorf("%d disks and %d ports are taken", disks, ports)
	}
}
