// Package vmmtest tests drivers and what uses them: a fake VM without a monitor, and the suite that
// every driver passes.
package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/vmm"
)

// Fake is a driver whose guests are goroutines of this process, behind the channel that a VM with a
// serial port has. It opens every file of a Spec, as a real driver does, and reads none.
type Fake struct {
	// Serve is the guest: it serves until ctx ends or the channel closes. Returning earlier is a
	// guest that powers itself off.
	Serve func(ctx context.Context, s *channel.Server) error
	// Unusable is why its VMs are emulated on a host that has a device for more; nil: it has none.
	Unusable error
}

// Info claims what the fake can do.
func (f *Fake) Info() vmm.Info {
	return vmm.Info{Name: "fake", Version: "1", Isolation: vmm.Emulated, Pmem: true, Shares: true}
}

// Start starts a guest. See vmm.Driver.
func (f *Fake) Start(ctx context.Context, s vmm.Spec) (vmm.VM, error) {
	if s.Console != nil {
		defer s.Console.Close()
	}
	defer vmm.CloseNICs(s.NICs)
	vm, err := f.start(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("start VM %q: %w", s.ID, err)
	}
	return vm, nil
}

func (f *Fake) start(ctx context.Context, s vmm.Spec) (*FakeVM, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.Check(); err != nil {
		return nil, err
	}
	if s.Machine != "microvm" && s.Machine != "q35" {
		return nil, &vmm.UnsupportedError{Driver: "fake", What: fmt.Sprintf("machine %q", s.Machine), Needs: "machine microvm or q35"}
	}
	var undo cleanup.Stack
	defer undo.Clean()
	if err := openAll(ctx, s, &undo); err != nil {
		return nil, err
	}
	host, guest, err := socketPair()
	if err != nil {
		return nil, err
	}
	undo.Add(host.Close)
	undo.Add(guest.Close)
	client, err := channel.NewClient(host)
	if err != nil {
		return nil, err
	}
	undo.Add(client.Close)
	server, err := channel.NewServer(guest)
	if err != nil {
		return nil, err
	}
	if s.Console != nil {
		if _, err := fmt.Fprintf(s.Console, "fake guest %s is up\n", s.ID); err != nil {
			return nil, fmt.Errorf("write to the console: %w", err)
		}
	}
	// The guest lives until it is stopped, not as long as the call that started it.
	life, end := context.WithCancel(context.Background())
	vm := &FakeVM{id: s.ID, unusable: f.Unusable, client: client, server: server, end: end, done: make(chan struct{}), held: undo.Release()}
	go vm.run(life, f.Serve)
	return vm, nil
}

// openAll holds what the Spec names until the VM ends.
func openAll(ctx context.Context, s vmm.Spec, undo *cleanup.Stack) error {
	open := func(path string, flag int) error {
		file, err := os.OpenFile(path, flag, 0)
		if err == nil {
			undo.Add(file.Close)
		}
		return err
	}
	if err := open(s.Kernel, os.O_RDONLY); err != nil {
		return err
	}
	if s.Initrd != "" {
		if err := open(s.Initrd, os.O_RDONLY); err != nil {
			return err
		}
	}
	for _, d := range s.Disks {
		if d.File != nil {
			continue // its owner has it open
		}
		flag := os.O_RDWR
		if d.ReadOnly {
			flag = os.O_RDONLY
		}
		if err := open(d.Path, flag); err != nil {
			return fmt.Errorf("disk %s: %w", d.Serial, err)
		}
	}
	for _, share := range s.Shares {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", share.Socket)
		if err != nil {
			return fmt.Errorf("share %s: %w", share.Tag, err)
		}
		undo.Add(conn.Close)
	}
	return nil
}

func socketPair() (host, guest net.Conn, err error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make channel: %w", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "channel")
		conn, fileErr := net.FileConn(f)
		f.Close()
		conns[i], err = conn, errors.Join(err, fileErr)
	}
	if err != nil {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, fmt.Errorf("make channel: %w", err)
	}
	return conns[0], conns[1], nil
}

// FakeVM is a running guest of Fake.
type FakeVM struct {
	id     string
	client *channel.Client
	server *channel.Server
	end    context.CancelFunc
	held   *cleanup.Stack
	done   chan struct{}

	unusable error

	mu    sync.Mutex
	ended bool  // guarded by mu: the cause is settled
	err   error // guarded by mu: the cause
}

// Isolation is what a process of the host's gives.
func (v *FakeVM) Isolation() (vmm.Isolation, error) { return vmm.Emulated, v.unusable }

// run serves until the guest ends and then frees what the VM holds.
func (v *FakeVM) run(ctx context.Context, serve func(context.Context, *channel.Server) error) {
	err := serve(ctx, v.server)
	if err == nil {
		err = errors.New("the guest powered off")
	} else {
		err = fmt.Errorf("the guest ended: %w", err)
	}
	v.finish(err)
	_ = v.held.Clean() // closes files that nobody uses any more
	close(v.done)
}

// finish ends the guest; the first cause is the one that Err gives.
func (v *FakeVM) finish(cause error) {
	v.mu.Lock()
	if !v.ended {
		v.ended, v.err = true, cause
	}
	v.mu.Unlock()
	v.end()
	v.server.Close()
	v.client.Close()
}

// Crash ends the VM as a monitor that crashes does.
func (v *FakeVM) Crash() { v.finish(errors.New("the fake monitor crashed")) }

// Dial connects to a port of the guest.
func (v *FakeVM) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := v.client.Dial(ctx, port)
	if err == nil {
		return conn, nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.ended {
		return nil, fmt.Errorf("dial guest port %d: VM %q is gone", port, v.id)
	}
	return nil, err
}

// Done is closed when the guest is gone.
func (v *FakeVM) Done() <-chan struct{} { return v.done }

// Err says why the guest is gone, nil after Stop. Valid once Done is closed.
func (v *FakeVM) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

// PID is this process, where the guest runs.
func (v *FakeVM) PID() int { return os.Getpid() }

// Stop ends the guest and waits for Serve to return.
func (v *FakeVM) Stop(ctx context.Context) error {
	v.finish(nil)
	select {
	case <-v.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop VM %q: %w", v.id, ctx.Err())
	}
}
