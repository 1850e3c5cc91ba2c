package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/child"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/testenv"
)

// large says whether tests take their full size: minutes on an emulated machine.
func large() bool { return os.Getenv("HUSK_TEST_LARGE") == "1" }

// buffer takes what a running command prints.
type buffer struct {
	mu   sync.Mutex
	data bytes.Buffer // guarded by mu
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

func (b *buffer) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.Len()
}

// running is a husk command that was started and not waited for.
type running struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr buffer
	done           chan struct{} // closed when the command has ended
}

// start starts the command; it is killed at the end of the test where it still runs.
func (c *command) start() *running {
	c.t.Helper()
	return begun(c.t, c.cmd())
}

// begun starts cmd, which ends with the tests at the latest, with its output collected. Without Stdin set it gets /dev/null.
func begun(t *testing.T, cmd *exec.Cmd) *running {
	t.Helper()
	r := &running{t: t, cmd: cmd, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &r.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &r.stderr
	}
	// Processes of the container may outlive the command and hold its output open.
	cmd.WaitDelay = 5 * time.Second
	if err := child.Start(cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait() // the process' state tells
		close(r.done)
	}()
	t.Cleanup(func() {
		select {
		case <-r.done:
		default:
			_ = cmd.Process.Kill()
			<-r.done
		}
	})
	return r
}

// wait waits for the command's end, whatever that is.
func (r *running) wait() result {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		_ = r.cmd.Process.Kill()
		<-r.done
		r.t.Fatalf("%q has not ended within %v\nstdout: %.500s\nstderr: %.500s", r.cmd.Args, patience, r.stdout.String(), r.stderr.String())
	}
	return result{stdout: r.stdout.String(), stderr: r.stderr.String(), code: r.cmd.ProcessState.ExitCode()}
}

// prints waits until the command has printed text.
func (r *running) prints(text string) {
	r.t.Helper()
	until(r.t, fmt.Sprintf("%q prints %q", r.cmd.Args[1:], text), patience, func() bool {
		select {
		case <-r.done:
			if !strings.Contains(r.stdout.String(), text) {
				r.t.Fatalf("%q ended and did not print %q\nstdout: %.500s\nstderr: %.500s", r.cmd.Args, text, r.stdout.String(), r.stderr.String())
			}
		default:
		}
		return strings.Contains(r.stdout.String(), text)
	})
}

func (r *running) signal(sig syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		r.t.Fatal(err)
	}
}

// until polls for something that must come to be within limit, and returns how long it took.
func until(t *testing.T, what string, limit time.Duration, is func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !is() {
		if time.Since(began) > limit {
			t.Fatalf("after %v still not true: %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(began)
}

// remove deletes a container at the end of the test where it is still there.
func remove(t *testing.T, id string) {
	t.Cleanup(func() { husk(t, "delete", "--force", id).ok() })
}

// detach runs a container in the background, named after the test, and returns its id.
func detach(t *testing.T, id string, args ...string) string {
	t.Helper()
	remove(t, id)
	husk(t, append([]string{"run", "-d", "--name", id}, args...)...).ok()
	return id
}

// status is what `husk state` says.
func status(t *testing.T, id string) string {
	t.Helper()
	r := husk(t, "state", id).run()
	if r.code != 0 {
		return "none"
	}
	var s struct{ Status string }
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		t.Fatalf("husk state %s printed %q: %v", id, r.stdout, err)
	}
	return s.Status
}

// record is what is on record of a container.
func record(t *testing.T, id string) state.Container {
	t.Helper()
	dir, err := state.Open(env.run, id)
	if err != nil {
		t.Fatal(err)
	}
	r, err := dir.Load()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// helper is the pid of a container's process on the host by its name on record.
func helper(t *testing.T, id, name string) int {
	t.Helper()
	for _, p := range record(t, id).Helpers {
		if p.Name == name {
			return p.PID
		}
	}
	t.Fatalf("container %s has no %s on record", id, name)
	return 0
}

// childOf is the pid of the only child process of pid.
func childOf(t *testing.T, pid int) int {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("process %d: no list of children (%v)", pid, err)
	}
	var all []string
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.Fields(string(data))...)
	}
	if len(all) != 1 {
		t.Fatalf("process %d has the children %v, want one", pid, all)
	}
	n, err := strconv.Atoi(all[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func kill9(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill process %d: %v", pid, err)
	}
}

// small is a mount namespace with a small file system at dir, in which husk is run.
type small struct {
	t    *testing.T
	pid  int    // of the process that holds the namespace
	dir  string // in the namespace
	seen string // where dir is seen from outside
}

// smallDisk makes a file system of size (as tmpfs takes it) that only this test sees.
func smallDisk(t *testing.T, size string) *small {
	t.Helper()
	testenv.NeedRoot(t)
	dir := t.TempDir()
	holder := exec.Command("sh", "-c", `mount -t tmpfs -o "size=$1" husk-test "$2" && echo ready && exec sleep 1000`, "sh", size, dir)
	// Unshareflags and not Cloneflags: it also makes the mounts private.
	holder.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	r := begun(t, holder)
	r.prints("ready")
	pid := holder.Process.Pid
	return &small{t: t, pid: pid, dir: dir, seen: filepath.Join("/proc", strconv.Itoa(pid), "root", dir)}
}

// config writes a configuration with the given directories.
func (s *small) config(run, data string) string {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "config.toml")
	text := fmt.Sprintf("run_dir = %q\ndata_dir = %q\ntemplate = \"off\"\n", run, data)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return file
}

// husk is a husk command in the namespace.
func (s *small) husk(config string, args ...string) *command {
	return &command{t: s.t, args: args, flag: []string{"--config", config}, within: s.pid}
}

// fill leaves about free bytes on the file system.
func (s *small) fill(free int64) {
	s.t.Helper()
	f, err := os.Create(filepath.Join(s.seen, "ballast"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.seen, &st); err != nil {
		s.t.Fatal(err)
	}
	size := int64(st.Bavail)*st.Bsize - free
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		s.t.Fatalf("fill %d bytes: %v", size, err)
	}
}

// files lists what is below sub of the file system, directories left out.
func (s *small) files(sub string) (found []string) {
	s.t.Helper()
	err := filepath.WalkDir(filepath.Join(s.seen, sub), func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			found = append(found, strings.TrimPrefix(path, s.seen))
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return found
}
