package virtiofs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/storage"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/testenv"
)

// parentEnv makes the test binary act as an owner that is to be killed: its value is the directory.
const parentEnv = "HUSK_VIRTIOFS_TEST_PARENT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(parentEnv); dir != "" {
		s, err := Start(context.Background(), Options{Binary: testenv.Virtiofsd(), Dir: dir, Socket: filepath.Join(dir, "socket")})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(s.PID())
		select {}
	}
	os.Exit(m.Run())
}

// need skips where no file service can run.
func need(t *testing.T) {
	t.Helper()
	testenv.NeedRoot(t)
	if _, err := Find(testenv.Virtiofsd()); err != nil {
		t.Skip(err)
	}
}

func startServer(t *testing.T, dir string) *Server {
	t.Helper()
	s, err := Start(context.Background(), Options{Binary: testenv.Virtiofsd(), Dir: dir, Socket: filepath.Join(t.TempDir(), "fs.sock")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

// connect is what a monitor does first; the server cages itself and then serves.
func connect(t *testing.T, socket string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// worker waits until the server with the given pid has forked the process that serves, and returns that.
func worker(t *testing.T, pid int) int {
	t.Helper()
	var found int
	eventually(t, "the server has forked its worker", func() bool {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		if err != nil {
			t.Fatal(err)
		}
		fields := strings.Fields(string(data))
		if len(fields) == 0 {
			return false
		}
		found, err = strconv.Atoi(fields[0])
		return err == nil && status(found)["Seccomp"] == "2"
	})
	return found
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// status is /proc/pid/status, nil for a process that is gone.
func status(pid int) map[string]string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil
	}
	fields := map[string]string{}
	for line := range strings.SplitSeq(string(data), "\n") {
		key, value, _ := strings.Cut(line, ":")
		fields[key] = strings.TrimSpace(value)
	}
	return fields
}

func gone(pid int) bool {
	s := status(pid)
	return s == nil || strings.HasPrefix(s["State"], "Z") || strings.HasPrefix(s["State"], "X")
}

func TestStartStop(t *testing.T) {
	need(t)
	s := startServer(t, t.TempDir())
	info, err := os.Stat(s.Socket())
	if err != nil || info.Mode()&os.ModeSocket == 0 || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info, err)
	}
	connect(t, s.Socket())
	child := worker(t, s.PID())
	for range 2 {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	}
	select {
	case <-s.Done():
	default:
		t.Error("Done is open after Stop")
	}
	if err := s.Err(); err != nil {
		t.Errorf("Err after Stop: %v", err)
	}
	if _, err := os.Stat(s.Socket()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	eventually(t, "both processes are gone", func() bool { return gone(s.PID()) && gone(child) })
}

func TestEndsWithItsMonitor(t *testing.T) {
	need(t)
	s := startServer(t, t.TempDir())
	conn := connect(t, s.Socket())
	worker(t, s.PID())
	conn.Close()
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("still there 10 s after the monitor hung up")
	}
	t.Log(s.Err())
}

func TestKilledServerSaysSo(t *testing.T) {
	need(t)
	s := startServer(t, t.TempDir())
	connect(t, s.Socket())
	if err := syscall.Kill(worker(t, s.PID()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("still there 10 s after its worker was killed")
	}
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "file service ended") {
		t.Errorf("Err = %v", err)
	}
}

// TestDiesWithOwner kills the process that started a server, before and after a monitor connected.
func TestDiesWithOwner(t *testing.T) {
	need(t)
	for _, connected := range []bool{false, true} {
		t.Run(fmt.Sprintf("connected=%v", connected), func(t *testing.T) {
			dir := t.TempDir()
			owner := exec.Command(os.Args[0])
			owner.Env = append(os.Environ(), parentEnv+"="+dir)
			owner.Stderr = os.Stderr
			out, err := owner.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := owner.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			if err != nil {
				t.Fatal(err)
			}
			pids := []int{pid}
			if connected {
				connect(t, filepath.Join(dir, "socket"))
				pids = append(pids, worker(t, pid))
			}
			if err := owner.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = owner.Wait() // killed
			for _, pid := range pids {
				eventually(t, fmt.Sprintf("process %d is gone", pid), func() bool { return gone(pid) })
			}
		})
	}
}

// TestPosture looks at the cage of the running process that serves; worker waited for its seccomp filter.
func TestPosture(t *testing.T) {
	need(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "only"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServer(t, dir)
	connect(t, s.Socket())
	pid := worker(t, s.PID())
	// By number, of capabilities(7): chown, dac_override, fowner, fsetid, setgid, setuid, mknod, setfcap;
	// the Rust one keeps dac_read_search too, for file handles.
	const allowed = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<6 | 1<<7 | 1<<27 | 1<<31
	// Dropping them is the last thing it does before it serves.
	eventually(t, "the server has no other capabilities", func() bool {
		caps, err := strconv.ParseUint(status(pid)["CapEff"], 16, 64)
		return err == nil && caps&^uint64(allowed) == 0
	})
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		own, err1 := os.Readlink("/proc/self/ns/" + ns)
		its, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err1 != nil || err2 != nil || own == its {
			t.Errorf("namespace %s: %s, ours %s, %v", ns, its, own, errors.Join(err1, err2))
		}
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid))
	if err != nil || len(entries) != 1 || entries[0].Name() != "only" {
		t.Errorf("its root holds %v, %v", entries, err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		t.Logf("fd %s: %s", fd.Name(), target)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	var files string
	for line := range strings.SplitSeq(string(limits), "\n") {
		if rest, ok := strings.CutPrefix(line, "Max open files"); ok {
			files = strings.Fields(rest)[0]
		}
	}
	if err != nil || files != fmt.Sprint(fileLimit()) {
		t.Errorf("may open %q files, want %d, %v", files, fileLimit(), err)
	}
}

// TestSeesLaterShares adds to a share tree while the server runs.
func TestSeesLaterShares(t *testing.T) {
	need(t)
	if !testenv.PrivateMounts(t) {
		return
	}
	if err := sys.PrivateMounts(); err != nil {
		t.Fatal(err)
	}
	tree, err := storage.NewTree(filepath.Join(t.TempDir(), "share"), storage.Host{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	}()
	s := startServer(t, tree.Path())
	connect(t, s.Socket())
	root := fmt.Sprintf("/proc/%d/root", worker(t, s.PID()))
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "file"), []byte("late"), 0o600); err != nil {
		t.Fatal(err)
	}
	late, err := storage.CopyOf(src, storage.How{ReadOnly: true, Recursive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	name, err := tree.Lend(late)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(root + "/" + name + "/file"); err != nil || string(got) != "late" {
		t.Errorf("the server sees %q, %v", got, err)
	}
	if err := os.WriteFile(root+"/"+name+"/file", nil, 0); !errors.Is(err, syscall.EROFS) {
		t.Errorf("write through the server's read-only mount: %v", err)
	}
	if err := tree.Give(name); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
		t.Errorf("after Remove the server sees %v, %v", entries, err)
	}
}

func TestStartRefuses(t *testing.T) {
	need(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("#!/bin/sh\necho some other program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Dir: filepath.Join(dir, "none"), Socket: socket}, "no such file"},
		{Options{Dir: file, Socket: socket}, "not a directory"},
		{Options{Dir: dir + ",posix_acl", Socket: socket}, "comma"},
		{Options{Binary: testenv.Virtiofsd(), Dir: dir, Socket: filepath.Join(dir, strings.Repeat("s", 107))}, "invalid argument"},
		{Options{Dir: dir, Socket: file}, "address already in use"},
		{Options{Dir: dir, Socket: socket, Binary: filepath.Join(dir, "none")}, "no such file"},
		{Options{Dir: dir, Socket: socket, Binary: file}, "no virtiofsd that husk knows"},
	} {
		s, err := Start(context.Background(), c.o)
		if err == nil {
			_ = s.Stop(context.Background())
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
		if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v left a socket: %v", c.o, err)
		}
	}
	if data, err := os.ReadFile(file); err != nil || len(data) == 0 {
		t.Errorf("a refused start took the file that was in its socket's place: %v", err)
	}
}
