package e2e

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/sys"
)

// terminal is a pty's master with what came out of it so far.
type terminal struct {
	t      *testing.T
	master *os.File
	slave  *os.File // of onTerminal's
	before string   // the slave's mode before the command
	mu     sync.Mutex
	text   []byte // guarded by mu
}

// watchTerminal reads master until its other end is gone; it is closed at the test's end.
func watchTerminal(t *testing.T, master *os.File) *terminal {
	t.Helper()
	// Reading through a copy that can be polled, so that Close ends the read.
	fd, err := syscall.Dup(int(master.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	reader := os.NewFile(uintptr(fd), "master")
	term := &terminal{t: t, master: master}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 4096)
		for {
			n, err := reader.Read(buffer)
			term.mu.Lock()
			term.text = append(term.text, buffer[:n]...)
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		reader.Close()
		<-done
		master.Close()
	})
	return term
}

func (m *terminal) shown() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return string(m.text)
}

// shows waits until what came out of the terminal matches.
func (m *terminal) shows(pattern string) {
	m.t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.Now().Add(time.Minute)
	for !re.MatchString(m.shown()) {
		if time.Now().After(deadline) {
			m.t.Fatalf("the terminal never shows %q, but %q", pattern, m.shown())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (m *terminal) types(text string) {
	m.t.Helper()
	if _, err := m.master.WriteString(text); err != nil {
		m.t.Fatal(err)
	}
}

// turns resizes the terminal's window, as a terminal emulator does.
func (m *terminal) turns(rows, columns uint16) {
	m.t.Helper()
	if err := sys.ResizePTY(m.master, sys.Winsize{Rows: rows, Columns: columns}); err != nil {
		m.t.Fatal(err)
	}
}

// consoleSocket listens as conmon does and returns the master that is sent to it.
func consoleSocket(t *testing.T) (path string, receive func() *terminal) {
	t.Helper()
	dir, err := os.MkdirTemp("", "tty") // t.TempDir() is too long for a socket's address
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return path, func() *terminal {
		t.Helper()
		if err := l.SetDeadline(time.Now().Add(soon)); err != nil {
			t.Fatal(err)
		}
		conn, err := l.AcceptUnix()
		if err != nil {
			t.Fatalf("nobody came to the console socket: %v", err)
		}
		defer conn.Close()
		data, oob := make([]byte, 4096), make([]byte, 4096)
		n, oobn, _, _, err := conn.ReadMsgUnix(data, oob)
		if err != nil || n == 0 {
			t.Fatalf("read console socket: %d bytes, %v", n, err)
		}
		messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 {
			t.Fatalf("%d control messages, %v", len(messages), err)
		}
		fds, err := syscall.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			t.Fatalf("%d descriptors, %v", len(fds), err)
		}
		syscall.CloseOnExec(fds[0])
		master := os.NewFile(uintptr(fds[0]), "master")
		if !sys.IsTerminal(master) {
			t.Fatal("what was sent is no terminal")
		}
		return watchTerminal(t, master)
	}
}

// interactive is a script that answers to lines and to window sizes. A signal ends read early, which is not
// the input's end.
const interactive = `trap 'woken=1; echo winch $(stty size)' WINCH; stty size; tty; while :; do
	read -r line || { [ -n "$woken" ] || break; woken=; continue; }
	case $line in exit*) exit 6 ;; *) echo "line:$line" ;; esac; done; echo end-of-input`

// TestConsoleSocket: an engine gets the terminal, types into it, resizes it, interrupts, ends it.
func TestConsoleSocket(t *testing.T) {
	begin(t)
	b := newBundle(t, interactive)
	b.spec.Process.Terminal = true
	b.spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 99}
	socket, receive := consoleSocket(t)
	c := b.create("--console-socket", socket)
	term := receive()
	expect(t, "status", status(t, c.id), "created")
	husk(t, "start", c.id).ok()
	term.shows(`33 99\r\n/dev/(console|pts/0)\r\n`)
	term.types("hello\n")
	term.shows(`hello\r\nline:hello\r\n`) // the echo, and the answer
	term.turns(50, 132)
	term.types("\n")
	term.shows(`winch 50 132\r\n`)
	term.turns(24, 80)
	term.types("\n")
	term.shows(`winch 24 80\r\n`)
	term.types("del\x7f\x7f\x7fnew\n") // line editing is the guest's
	term.shows(`line:new\r\n`)
	term.types("exit\n")
	expect(t, "exit code", c.exited(), 6)
}

// TestConsoleSocketOfRun is podman's and Docker's way with runtimes that have no create.
func TestConsoleSocketOfRun(t *testing.T) {
	begin(t)
	b := newBundle(t, interactive)
	b.spec.Process.Terminal = true
	socket, receive := consoleSocket(t)
	c := b.detached("run", "--detach", "--console-socket", socket)
	term := receive()
	term.types("a\n\x04") // control-D
	term.shows(`line:a\r\nend-of-input\r\n`)
	expect(t, "exit code", c.exited(), 0)
}

// TestTerminalMismatch: what cannot fit is refused before anything is made.
func TestTerminalMismatch(t *testing.T) {
	begin(t)
	b := newBundle(t, "true")
	husk(t, "create", "--bundle", b.write(), "--console-socket", "/no/such/socket", name(t)).fails(1, "console-socket", "terminal")
	b.spec.Process.Terminal = true
	husk(t, "create", "--bundle", b.write(), name(t)).fails(1, "--console-socket")
	husk(t, "run", "--detach", "--bundle", b.write(), name(t)).fails(1, "--console-socket")
	husk(t, "create", "--bundle", b.write(), "--console-socket", "/no/such/socket", name(t)).fails(1, "/no/such/socket")
	husk(t, "create", "--bundle", b.write(), "--console-socket", file(t, ""), name(t)).fails(1, "socket")
	husk(t, "run", "--bundle", b.write(), name(t)).fails(1, "not a terminal")
	husk(t, "run", "--rm", "-t", demo, "true").fails(125, "not a terminal")
}

// onTerminal starts a husk command on a terminal of its own, as a login shell would.
func onTerminal(t *testing.T, rows, columns uint16, c *command) (*terminal, *exec.Cmd) {
	t.Helper()
	master, slave, err := sys.OpenPTY()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	term := watchTerminal(t, master)
	term.turns(rows, columns)
	term.slave, term.before = slave, mode(t, slave)
	cmd := c.cmd()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() { timer.Stop() })
	return term, cmd
}

func ended(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	_ = cmd.Wait() // the process' state tells
	return cmd.ProcessState.ExitCode()
}

// TestInteractive is `husk run -it` under a person's hands: size, echo, control-C, resizing, and the
// terminal's own mode afterwards.
func TestInteractive(t *testing.T) {
	begin(t)
	script := `trap 'woken=1; echo got-int' INT; ` + interactive
	term, cmd := onTerminal(t, 40, 100, husk(t, "run", "--rm", "-it", demo, "sh", "-c", script))
	term.shows(`40 100\r\n/dev/(console|pts/0)\r\n`)
	if mode(t, term.slave) == term.before {
		t.Error("the terminal is not in raw mode while the container has it")
	}
	term.types("hello\r")
	term.shows(`hello\r\nline:hello\r\n`)
	term.types("\x03\r")
	term.shows(`got-int\r\n`)
	term.turns(20, 60)
	term.types("\r")
	term.shows(`winch 20 60\r\n`)
	term.types("exit\r")
	expect(t, "exit code", ended(t, cmd), 6)
	expect(t, "mode of the terminal afterwards", mode(t, term.slave), term.before)
}

// mode is a terminal's settings, as stty prints them.
func mode(t *testing.T, f *os.File) string {
	t.Helper()
	cmd := exec.Command("stty", "-g")
	cmd.Stdin = f
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestExecTerminal covers exec's two ways to a terminal, in one container.
func TestExecTerminal(t *testing.T) {
	begin(t)
	c := newBundle(t, "exec sleep 1000").up()
	t.Run("own", func(t *testing.T) {
		term, cmd := onTerminal(t, 30, 90, husk(t, "exec", "-it", c.id, "sh", "-c", interactive))
		term.shows(`30 90\r\n`)
		term.turns(31, 91)
		term.types("x\r")
		term.shows(`winch 31 91\r\n`)
		term.types("exit\r")
		expect(t, "exit code", ended(t, cmd), 6)
	})
	t.Run("console socket", func(t *testing.T) {
		socket, receive := consoleSocket(t)
		pidFile := filepath.Join(t.TempDir(), "pid")
		data, err := json.Marshal(specs.Process{
			Terminal: true, Args: []string{"sh", "-c", interactive}, Cwd: "/", Env: []string{"PATH=/bin:/usr/bin"},
			ConsoleSize: &specs.Box{Height: 11, Width: 22},
		})
		if err != nil {
			t.Fatal(err)
		}
		process := file(t, string(data))
		r := husk(t, "exec", "--detach", "--console-socket", socket, "--pid-file", pidFile, "--process", process, c.id).run()
		if r.code != 0 {
			t.Fatalf("exec: %+v", r)
		}
		term := receive()
		term.shows(`11 22\r\n`)
		term.turns(12, 23)
		term.types("x\n")
		term.shows(`winch 12 23\r\n`)
		term.types("exit\n")
		pid, err := strconv.Atoi(content(t, pidFile))
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "exit code", reaped(t, pid), 6)
	})
	t.Run("shell", func(t *testing.T) {
		term, cmd := onTerminal(t, 25, 70, husk(t, "shell", c.id))
		term.shows(`guest# `)
		term.types("stty size; exit 2\r")
		term.shows(`25 70\r\n`)
		expect(t, "exit code", ended(t, cmd), 2)
	})
	expect(t, "status", status(t, c.id), "running")
}
