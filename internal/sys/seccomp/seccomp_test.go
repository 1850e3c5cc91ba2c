package seccomp

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

// TestOpener has a shell open files for reading and writing: the one path gives what we lend, though it is
// open for reading only and the path does not exist; another path is the file system's.
func TestOpener(t *testing.T) {
	dir := t.TempDir()
	lent, other := filepath.Join(dir, "lent"), filepath.Join(dir, "other")
	for path, text := range map[string]string{lent: "lent", other: "other"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.Open(lent)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	opener := NewOpener("/nowhere/asked", file)
	type result struct {
		out []byte
		err error
	}
	results, served := make(chan result, 1), make(chan error, 1)
	cmd := exec.Command(os.Args[0], "-test.run=^TestOpens$")
	cmd.Env = append(os.Environ(), opensEnv+"="+other)
	var run func()
	run = func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() { // the first thread never ends, and its filter with it
			go run()
			select {}
		}
		err := opener.Install()
		if err != nil {
			results <- result{err: err}
			return
		}
		go func() { served <- opener.Serve() }()
		out, err := cmd.Output()
		results <- result{out, err}
	}
	go run()
	select {
	case r := <-results:
		if r.err != nil {
			t.Fatal(r.err)
		}
		const want = "lent|bad file descriptor|other|no such file or directory"
		if got := string(r.out); len(got) < len(want) || got[:len(want)] != want {
			t.Errorf("the child printed %q, want %q first", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the child hangs")
	}
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Serve goes on without a process")
	}
}

// opensEnv makes TestOpens the child of TestOpener; it names the file that the file system has.
const opensEnv = "HUSK_SECCOMP_TEST_OPENS"

// TestOpens opens, writes and prints in the child; by itself it does nothing.
func TestOpens(t *testing.T) {
	other := os.Getenv(opensEnv)
	if other == "" {
		return
	}
	lent, err := open("/nowhere/asked")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Print(read(lent))
	_, err = syscall.Write(lent, []byte("x"))
	fmt.Print("|", err)
	own, err := open(other)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Print("|", read(own))
	_, err = open("/nowhere/else")
	fmt.Print("|", err)
}

// open is openat with no flag but O_RDWR; syscall.Open adds one.
func open(path string) (int, error) { return unix.Openat(unix.AT_FDCWD, path, unix.O_RDWR, 0) }

func read(fd int) string {
	text := make([]byte, 16)
	n, _ := syscall.Read(fd, text)
	return string(text[:n])
}
