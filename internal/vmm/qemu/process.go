package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"husk.dev/husk/internal/child"
	"husk.dev/husk/internal/sys/kvm"
	"husk.dev/husk/internal/sys/seccomp"
	"husk.dev/husk/internal/sys/tsc"
	"husk.dev/husk/internal/vmm"
)

// tailSize is how much of QEMU's last words is kept, in bytes.
const tailSize = 4096

// environment is all that QEMU gets of ours.
var environment = []string{"LC_ALL=C"}

// newCommand returns the command of a VM, which takes over the files of r.
func newCommand(binary string, s vmm.Spec, f facts, r *resources) (*exec.Cmd, *tail) {
	cmd := exec.Command(binary, argv(s, f)...)
	cmd.Env = environment
	cmd.Dir = "/"
	cmd.ExtraFiles = r.inherit
	stderr := &tail{}
	cmd.Stderr = stderr
	if s.Console != nil {
		cmd.Stdout = s.Console
	}
	cmd.WaitDelay = time.Second
	// A session of its own: what a terminal sends to our group is not meant for QEMU.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: credential(s, f.accel)}
	return cmd, stderr
}

// credential is who QEMU runs as, nil to keep the caller's identity. Of the supplementary groups it
// keeps only the one that opens /dev/kvm.
func credential(s vmm.Spec, accel string) *syscall.Credential {
	self := uint32(os.Geteuid())
	if s.UID == 0 && s.GID == 0 || self != 0 && s.UID == self {
		return nil
	}
	c := &syscall.Credential{Uid: s.UID, Gid: s.GID}
	if s.UID == 0 {
		c.Uid = self
	}
	if s.GID == 0 {
		c.Gid = uint32(os.Getegid())
	}
	var stat syscall.Stat_t
	if accel == "kvm" && syscall.Stat(kvm.Device, &stat) == nil {
		const others, group = 0o006, 0o060
		switch {
		case stat.Mode&others == others:
		case stat.Mode&group == group && stat.Gid != 0:
			c.Groups = []uint32{stat.Gid}
		default:
			return nil // root alone may open it, and QEMU can only be given its path
		}
	}
	return c
}

// hostTSC is the frequency of the time stamp counter in kHz, 0 when the guest had better find out itself.
func hostTSC() int {
	khz, err := tsc.KHz()
	if err != nil {
		return 0
	}
	return khz
}

// Start starts a VM. See vmm.Driver.
func (d *Driver) Start(ctx context.Context, s vmm.Spec) (vmm.VM, error) {
	if s.Console != nil {
		defer s.Console.Close()
	}
	defer vmm.CloseNICs(s.NICs) // QEMU has its own by then
	vm, err := d.start(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("start VM %q: %w", s.ID, err)
	}
	return vm, nil
}

func (d *Driver) start(ctx context.Context, s vmm.Spec) (*machine, error) {
	if err := check(s); err != nil {
		return nil, err
	}
	binary, err := d.binary()
	if err != nil {
		return nil, err
	}
	accel, err := resolveAccel(s.Accel, kvm.Measure)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f := hostFacts(accel)
	f.console = s.Console != nil
	f.lent = s.From != nil && len(s.Shares) == 0 // a file service writes to memory that it must share with QEMU
	var r resources
	defer r.close()
	if err := r.open(ctx, s, &f); err != nil {
		return nil, err
	}
	cmd, stderr := newCommand(binary, s, f, &r)
	done := make(chan struct{})
	err = launch(cmd, &r, f.lent, done)
	if errors.Is(err, errNoFilter) { // another filter has a listener already, or the kernel is old
		f.lent = false
		if err := r.copyMemory(r.ram, &f); err != nil {
			return nil, err
		}
		cmd, stderr = newCommand(binary, s, f, &r)
		err = launch(cmd, &r, false, done)
	}
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", binary, err)
	}
	r.given()
	m, err := newMachine(s, cmd, stderr, &r, done)
	if err != nil {
		return nil, err
	}
	m.accel, m.asked, m.cid = accel, s.Accel != "", f.cid
	if err := m.ready(ctx, s, f); err != nil {
		err = m.abandon(ctx, err)
		if state := cmd.ProcessState; s.From != nil && state != nil && state.Exited() { // by itself, not killed
			err = fmt.Errorf("%w: %w", vmm.ErrSnapshot, err)
		}
		return nil, err
	}
	r.undo.Release() // the sockets are the machine's from now on
	return m, nil
}

// errNoFilter is matched when this process cannot answer system calls of QEMU.
var errNoFilter = errors.New("no seccomp listener")

// launch starts QEMU. It ends with this process, and done must be closed when it has ended.
func launch(cmd *exec.Cmd, r *resources, lend bool, done <-chan struct{}) error {
	if !lend {
		return child.Start(cmd)
	}
	opener := seccomp.NewOpener(lentRAM, r.ram)
	return child.StartPrepared(cmd, func() error {
		if err := opener.Install(); err != nil {
			return fmt.Errorf("%w: %w", errNoFilter, err)
		}
		go func() { _ = opener.Serve() }() // without it QEMU's opens fail, and it says so
		return nil
	}, done)
}

// ready waits until QEMU runs the guest.
func (m *machine) ready(ctx context.Context, s vmm.Spec, f facts) error {
	if err := m.qmp.handshake(ctx); err != nil {
		return err
	}
	if f.state != 0 {
		return m.load(ctx, s, f.state)
	}
	var status struct {
		Status string `json:"status"`
	}
	if err := m.qmp.execute(ctx, "query-status", nil, &status); err != nil {
		return err
	}
	if status.Status != "running" {
		return fmt.Errorf("QEMU says that the VM is %.32q, not running", status.Status)
	}
	return nil
}

// abandon ends a VM that did not get ready because of cause and returns the best account of why.
func (m *machine) abandon(ctx context.Context, cause error) error {
	if ctx.Err() == nil {
		// The monitor's end is most often QEMU's end, and then QEMU has said why.
		select {
		case <-m.done:
			return m.err
		case <-time.After(time.Second):
		}
	}
	m.kill()
	<-m.done
	return cause
}

// exitError puts the end of a QEMU that nobody stopped into one line: what it said last, or how it ended.
func exitError(waited error, reason, stderr string) error {
	said := oneLine(stderr)
	var exit *exec.ExitError
	switch {
	case said != "" && reason != "":
		return fmt.Errorf("%s: %s", reason, said)
	case said != "":
		return errors.New(said)
	case reason != "":
		return errors.New(reason)
	case errors.As(waited, &exit):
		return fmt.Errorf("QEMU ended: %w", exit)
	case waited != nil:
		return fmt.Errorf("wait for QEMU: %w", waited)
	}
	return errors.New("QEMU ended by itself")
}

// oneLine joins the lines of QEMU's messages and takes out what could move a terminal's cursor: a guest
// can make QEMU print.
func oneLine(text string) string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) || r == '\uFFFD' {
				return -1
			}
			return r
		}, line)
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// tail keeps the end of what is written to it. It is safe for concurrent use.
type tail struct {
	mu   sync.Mutex
	data []byte // guarded by mu
}

// Write keeps the last bytes of p; it never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	if len(p) > tailSize {
		p = p[len(p)-tailSize:]
	}
	if over := len(t.data) + len(p) - tailSize; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	t.data = append(t.data, p...)
	return n, nil
}

// String is what is kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.data)
}
