package child

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// helperEnv makes the test binary act as the parent that gets killed.
const helperEnv = "HUSK_CHILD_TEST_PARENT"

func TestMain(m *testing.M) {
	if os.Getenv(helperEnv) != "" {
		parent()
	}
	os.Exit(m.Run())
}

// parent starts a process that would live for a minute, prints its pid and waits to be killed.
func parent() {
	pids := make(chan int)
	go func() {
		// A goroutine that ends while locked takes its thread with it: a child tied to this thread
		// would die at once.
		runtime.LockOSThread()
		cmd := exec.Command("sleep", "60")
		if err := Start(cmd); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		pids <- cmd.Process.Pid
	}()
	pid := <-pids
	time.Sleep(50 * time.Millisecond)
	fmt.Println(pid)
	time.Sleep(time.Minute) // and not for ever: Go ends a program in which nothing can happen any more
}

func TestChildDiesWithItsParent(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperEnv+"=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("read the grandchild's pid: %v", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if !running(pid) {
		t.Fatalf("grandchild %d is gone while its parent lives", pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed" is what it has to say
	for deadline := time.Now().Add(5 * time.Second); running(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			t.Fatalf("grandchild %d still runs 5 s after its parent was killed", pid)
		}
	}
}

func TestStartReportsAMissingProgram(t *testing.T) {
	if err := Start(exec.Command("/nonexistent/program")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("Start of a missing program: %v", err)
	}
}

func TestStartKeepsTheCallersAttributes(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	stat := statFields(t, cmd.Process.Pid)
	if session := stat[3]; session != strconv.Itoa(cmd.Process.Pid) {
		t.Errorf("session is %s, want the child's own %d", session, cmd.Process.Pid)
	}
}

func TestChildInheritsOnlyItsFiles(t *testing.T) {
	dir, err := syscall.Open(t.TempDir(), syscall.O_RDONLY, 0) // no O_CLOEXEC, as if it were inherited
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(dir)
	extra, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{extra}
	if err := Start(cmd); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	const want = "0 1 2 3"
	got := ""
	for deadline := time.Now().Add(5 * time.Second); got != want && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		var names []string // the libraries among them, while they are loaded
		for _, entry := range open {
			names = append(names, entry.Name())
		}
		got = strings.Join(names, " ")
	}
	if got != want {
		t.Errorf("child has descriptors %s, want %s", got, want)
	}
}

// running tells whether pid is a process that is not a zombie: whoever inherits it may reap it late.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// statFields returns the fields of /proc/pid/stat that follow the name: state, ppid, pgrp, session, …
func statFields(t *testing.T, pid int) []string {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.Fields(rest)
}
