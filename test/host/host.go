// Package host drives the test host: a Debian in an emulated machine whose processors have virtualisation, so that husk meets
// a real KVM, vhost, systemd, control groups of version 2 and AppArmor where the machine that tests it has none of them. QEMU's
// emulator (TCG) has AMD's SVM with nested paging. All is as on hardware there but for the times.
package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"husk.dev/husk/internal/child"
	"husk.dev/husk/test/host/wire"
)

// LostError is the end of a host that went by itself, or stood still. What ran there has to run again.
type LostError struct{ Why string }

func (e *LostError) Error() string { return "the test host is lost: " + e.Why }

// Machine says what a host is made from.
type Machine struct {
	QEMU  string // path or name of the emulator
	Image string // directory, made by MakeImage
	Saved string // directory, made by Save, from which the host continues; empty: it boots
	Tree  string // file with the disk that brings husk and its tests
	Log   string // file for the host's console
}

// Host is an emulated machine that runs.
type Host struct {
	dir     string
	log     string // file of the console
	cmd     *exec.Cmd
	monitor *monitor
	conn    *wire.Conn
	boots   bool          // in place of going on from where it was saved
	still   time.Duration // stillWork
	ended   chan struct{} // closed when the emulator has ended

	mu      sync.Mutex // guards all below
	lost    *LostError
	jobs    map[int]*job
	last    int           // number of the last job
	signs   int           // of life that have come
	alive   chan struct{} // closed at the first message of the host
	stopped bool
}

// job is a command that runs in the host.
type job struct {
	out  io.Writer
	exit chan wire.Message
}

// Start starts a host, and returns it once it takes commands.
func Start(ctx context.Context, m Machine) (h *Host, err error) {
	h, err = launch(m, false)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	if m.Saved == "" {
		err = h.booted(ctx)
	} else {
		err = h.continued(m.Saved)
	}
	if err != nil {
		return nil, h.orLost(err)
	}
	disk := map[string]any{"node-name": "tree", "driver": "raw", "read-only": true, "file": map[string]any{"driver": "file", "filename": m.Tree}}
	if err := h.monitor.do("blockdev-add", disk, nil); err != nil {
		return nil, h.orLost(err)
	}
	card := map[string]any{"driver": "virtio-blk-pci", "drive": "tree", "serial": wire.Disk, "bus": "port0", "id": "tree"}
	if err := h.monitor.do("device_add", card, nil); err != nil {
		return nil, h.orLost(err)
	}
	if err := h.conn.Send(wire.Message{Kind: wire.Clock, Time: time.Now().UnixNano()}); err != nil {
		return nil, h.orLost(err)
	}
	select {
	case <-h.alive:
		return h, nil
	case <-h.ended:
	case <-ctx.Done():
	}
	return nil, h.orLost(ctx.Err())
}

// Save boots a host from an image and saves it, with its memory and its disk, in the directory dir.
func Save(ctx context.Context, m Machine, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := run(ctx, "cp", "--sparse=always", filepath.Join(m.Image, imageRoot), filepath.Join(dir, imageRoot)); err != nil {
		return err
	}
	m.Saved = dir
	h, err := launch(m, true)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.booted(ctx); err != nil {
		return h.orLost(err)
	}
	time.Sleep(settle)
	if err := h.monitor.do("stop", nil, nil); err != nil {
		return h.orLost(err)
	}
	if err := h.monitor.migrate("migrate", "exec:cat >'"+filepath.Join(dir, savedState)+"'"); err != nil {
		return h.orLost(err)
	}
	// What it has written is in the file once it has closed it.
	if err := h.monitor.do("quit", nil, nil); err != nil {
		return h.orLost(err)
	}
	<-h.ended
	return nil
}

// settle is how long a host that is up is left alone before it is saved: what it started last has then come to rest.
const settle = 3 * time.Second

// launch starts the emulator and connects to it.
func launch(m Machine, saving bool) (*Host, error) {
	dir, err := os.MkdirTemp("", "husk-test-host-")
	if err != nil {
		return nil, err
	}
	h := &Host{dir: dir, log: m.Log, still: stillWork, boots: saving || m.Saved == "", ended: make(chan struct{}), alive: make(chan struct{}), jobs: map[int]*job{}}
	if h.log == "" {
		h.log = filepath.Join(dir, "console")
	}
	if err := os.WriteFile(h.log, nil, 0o644); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	h.cmd = exec.Command(m.QEMU, arguments(m, dir, h.log, saving)...)
	h.cmd.Stdout, h.cmd.Stderr = os.Stderr, os.Stderr
	h.cmd.Env = append(os.Environ(), "TMPDIR="+dir) // where QEMU keeps what the host writes
	if err := child.Start(h.cmd); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", m.QEMU, err), os.RemoveAll(dir))
	}
	go func() {
		_ = h.cmd.Wait()
		close(h.ended)
	}()
	qmp, err := h.dial("qmp")
	if err == nil {
		h.monitor, err = openMonitor(qmp)
	}
	var port net.Conn
	if err == nil {
		port, err = h.dial("port")
	}
	if err != nil {
		err = h.orLost(err)
		h.Close()
		return nil, err
	}
	h.conn = wire.New(port)
	go h.receive()
	go h.watch()
	return h, nil
}

// dial connects to a socket of the emulator's, which has just been started.
func (h *Host) dial(name string) (conn net.Conn, err error) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if conn, err = net.Dial("unix", filepath.Join(h.dir, name)); err == nil {
			return conn, nil
		}
		select {
		case <-h.ended:
			return nil, err
		default:
		}
	}
	return nil, err
}

// booted waits until the host says on its console that it is up.
func (h *Host) booted(ctx context.Context) error {
	for {
		if strings.Contains(h.console(), upMark) {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-h.ended:
			return errors.New("it ended while it booted")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// continued lets a saved host go on.
func (h *Host) continued(dir string) error {
	if err := h.monitor.migrate("migrate-incoming", "exec:cat '"+filepath.Join(dir, savedState)+"'"); err != nil {
		return err
	}
	return h.monitor.do("cont", nil, nil)
}

// orLost is err, or why the host is lost, where it is: that is then the reason for err.
func (h *Host) orLost(err error) error {
	h.mu.Lock()
	lost := h.lost
	h.mu.Unlock()
	if lost != nil {
		return lost
	}
	select {
	case <-h.ended:
		return h.lose("the emulator ended")
	default:
		return err
	}
}

// console is what the host has printed.
func (h *Host) console() string {
	text, err := os.ReadFile(h.log)
	if err != nil {
		return ""
	}
	return string(text)
}

// Command is one that runs in the host, as root.
type Command struct {
	Args []string
	Env  []string // beside the host's own
	Dir  string
}

// Run runs a command to its end and returns its exit code; what it prints goes to out. A LostError tells that the host is gone.
func (h *Host) Run(ctx context.Context, c Command, out io.Writer) (code int, err error) {
	h.mu.Lock()
	h.last++
	id, j := h.last, &job{out: out, exit: make(chan wire.Message, 1)}
	h.jobs[id] = j
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.jobs, id)
		h.mu.Unlock()
	}()
	if err := h.conn.Send(wire.Message{Kind: wire.Start, ID: id, Args: c.Args, Env: c.Env, Dir: c.Dir}); err != nil {
		return 0, h.orLost(err)
	}
	select {
	case m := <-j.exit:
		if m.Code == 127 && len(m.Data) > 0 {
			return m.Code, fmt.Errorf("start %s in the test host: %s", c.Args[0], m.Data)
		}
		return m.Code, nil
	case <-h.ended:
		return 0, h.orLost(errors.New("the emulator ended"))
	case <-ctx.Done():
		_ = h.conn.Send(wire.Message{Kind: wire.Kill, ID: id})
		return 0, ctx.Err()
	}
}

// receive takes what the host says until there is no more.
func (h *Host) receive() {
	for first := true; ; first = false {
		m, err := h.conn.Receive()
		if err != nil {
			return
		}
		if first {
			close(h.alive)
		}
		h.mu.Lock()
		h.signs++
		j := h.jobs[m.ID]
		h.mu.Unlock()
		if j == nil {
			continue
		}
		switch m.Kind {
		case wire.Output:
			_, _ = j.out.Write(m.Data)
		case wire.Exit:
			j.exit <- m
		}
	}
}

// Close ends the host, and frees what it had. What it has written is gone.
func (h *Host) Close() {
	h.mu.Lock()
	h.stopped = true
	h.mu.Unlock()
	_ = h.cmd.Process.Kill()
	<-h.ended
	_ = os.RemoveAll(h.dir)
}
