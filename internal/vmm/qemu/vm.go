package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"time"

	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/sys/kvm"
	"husk.dev/husk/internal/sys/vsock"
	"husk.dev/husk/internal/vmm"
)

// dialPause is how long a vsock port that does not answer is left alone.
const dialPause = 20 * time.Millisecond

// exitGrace is how long QEMU may take to end once it has closed its monitor.
const exitGrace = 500 * time.Millisecond

// machine is a running QEMU. It implements vmm.VM, vmm.Pauser, vmm.Saver, vmm.NICPlugger, vmm.DiskPlugger and vmm.MemoryGrower.
type machine struct {
	id     string
	cmd    *exec.Cmd
	stderr *tail
	qmp    *qmpClient
	agent  *channel.Client // nil where the channel is a vsock
	cid    uint32          // of the vsock
	accel  string          // kvm or tcg
	asked  bool            // accel was asked for by name
	ram    *os.File        // the guest's memory, where it is to be saved or lent
	cards  cards

	stopped atomic.Bool   // we asked for the end
	hungUp  atomic.Bool   // it closed its monitor and lived on, so it was killed
	done    chan struct{} // closed when QEMU is gone
	err     error         // why QEMU is gone; written before done is closed
}

// Isolation is that of the accelerator.
func (m *machine) Isolation() (vmm.Isolation, error) {
	measured := kvm.Measure()
	if m.accel == "kvm" && measured.State == kvm.Real {
		return vmm.Hardware, nil
	}
	if m.asked {
		return vmm.Emulated, nil
	}
	return vmm.Emulated, unusable(measured)
}

// unusable says why a device that is there is not used.
func unusable(measured kvm.Result) error {
	switch measured.State {
	case kvm.Denied, kvm.Broken:
		return fmt.Errorf("%s is there and %s: %w", kvm.Device, measured.State, measured.Err)
	}
	return nil // absent, or a part of a machine that cannot do better
}

// newMachine takes over a QEMU that has just started, our ends of its sockets, and done, which it closes
// when QEMU has ended. On an error QEMU is gone again.
func newMachine(s vmm.Spec, cmd *exec.Cmd, stderr *tail, r *resources, done chan struct{}) (*machine, error) {
	m := &machine{id: s.ID, cmd: cmd, stderr: stderr, qmp: newQMP(r.qmp), ram: r.ram, done: done}
	m.cards.begin(s)
	if r.agent != nil {
		agent, err := channel.NewClient(r.agent)
		if err != nil {
			m.kill()
			_ = cmd.Wait() // it was killed, what else
			close(done)
			return nil, err
		}
		m.agent = agent
	}
	go m.wait()
	go func() {
		// A QEMU that closes its monitor is on its way out, or no longer QEMU: a guest broke out of it. The
		// first is left to end by itself, so that how it ended can be told from a death by others' hands.
		<-m.qmp.done
		select {
		case <-m.done:
		case <-time.After(exitGrace):
			m.hungUp.Store(true)
			m.kill()
		}
	}()
	return m, nil
}

// wait sees QEMU's end.
func (m *machine) wait() {
	waited := m.cmd.Wait()
	// What QEMU said last is still in the socket; its end follows at once.
	select {
	case <-m.qmp.done:
	case <-time.After(time.Second):
	}
	m.qmp.Close()
	if m.agent != nil {
		m.agent.Close()
	}
	if m.ram != nil {
		m.ram.Close()
	}
	if !m.stopped.Load() {
		if m.hungUp.Load() {
			waited = errors.New("it closed its monitor")
		}
		m.err = exitError(waited, m.qmp.endReason(), m.stderr.String())
	}
	close(m.done)
}

// kill ends QEMU at once. An error says that it has ended already.
func (m *machine) kill() { _ = m.cmd.Process.Kill() }

// Dial connects to a port of the agent. Over a serial channel it does not wait for the guest: what is
// written waits there until the guest has booted.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	select {
	case <-m.done:
		return nil, m.gone(port)
	default:
	}
	dial := m.dialVsock
	if m.agent != nil {
		dial = m.agent.Dial
	}
	conn, err := dial(ctx, port)
	if err != nil {
		select {
		case <-m.done:
			return nil, m.gone(port)
		default:
		}
	}
	return conn, err
}

func (m *machine) gone(port uint32) error {
	why := m.err
	if why == nil {
		why = errors.New("it was stopped")
	}
	return fmt.Errorf("dial guest port %d: VM %q is gone: %w", port, m.id, why)
}

// dialVsock tries until the guest has booted and listens, for before that every try fails.
func (m *machine) dialVsock(ctx context.Context, port uint32) (net.Conn, error) {
	for {
		conn, err := vsock.Dial(ctx, m.cid, port)
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial guest port %d: %w (last: %w)", port, ctx.Err(), err)
		case <-m.done:
			return nil, err
		case <-time.After(dialPause):
		}
	}
}

// Done is closed when QEMU is gone.
func (m *machine) Done() <-chan struct{} { return m.done }

// Err says why QEMU is gone, nil after Stop. Valid once Done is closed.
func (m *machine) Err() error {
	select {
	case <-m.done:
		return m.err
	default:
		return nil
	}
}

// PID is QEMU's.
func (m *machine) PID() int { return m.cmd.Process.Pid }

// Stop kills QEMU: what a guest wants to keep, its agent has flushed before.
func (m *machine) Stop(ctx context.Context) error {
	m.stopped.Store(true)
	m.kill()
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop VM %q: %w", m.id, ctx.Err())
	}
}

// Pause stops the guest's processors.
func (m *machine) Pause(ctx context.Context) error {
	if err := m.qmp.execute(ctx, "stop", nil, nil); err != nil {
		return fmt.Errorf("pause VM %q: %w", m.id, err)
	}
	return nil
}

// Resume lets the guest's processors run on.
func (m *machine) Resume(ctx context.Context) error {
	if err := m.qmp.execute(ctx, "cont", nil, nil); err != nil {
		return fmt.Errorf("resume VM %q: %w", m.id, err)
	}
	return nil
}
