package proc

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// noExec is PF_FORKNOEXEC of the kernel's include/linux/sched.h: the process was forked and has not called execve
// since.
const noExec = 0x40

// AwaitExec waits until the process pid runs a program of its own, has ended, or max has passed. The process is one
// that was forked to call execve; dir is where proc is mounted.
func AwaitExec(dir string, pid int, max time.Duration) {
	end := time.Now().Add(max)
	for wait := time.Millisecond; !executed(dir, pid) && time.Now().Before(end); wait = min(2*wait, 16*time.Millisecond) {
		time.Sleep(wait)
	}
}

// executed tells whether a process has called execve since it was forked, or is gone.
func executed(dir string, pid int) bool {
	fields := statFields(dir, pid)
	const flags = 6 // field 9 of proc(5), where the state is field 3
	if len(fields) <= flags {
		return true
	}
	value, err := strconv.ParseUint(fields[flags], 10, 64)
	return err != nil || value&noExec == 0
}

// Sleeps tells whether a process waits for something that may interrupt it, or is gone.
func Sleeps(dir string, pid int) bool {
	fields := statFields(dir, pid)
	return len(fields) == 0 || fields[0] == "S" || fields[0] == "T" || fields[0] == "Z"
}

// statFields are the fields of /proc/PID/stat from the state on; none of a process that is gone.
func statFields(dir string, pid int) []string {
	stat, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil
	}
	_, rest, _ := strings.Cut(string(stat[max(0, bytes.LastIndexByte(stat, ')')):]), ")")
	return strings.Fields(rest)
}

// Expects tells whether a process catches or ignores sig, or is not the first of a PID namespace below that of dir, and
// so gets every signal. One that is gone expects all.
func Expects(dir string, pid int, sig syscall.Signal) bool {
	status, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(pid), "status"))
	if err != nil {
		return true
	}
	for _, line := range strings.Split(string(status), "\n") {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "NSpid":
			ids := strings.Fields(value)
			if len(ids) < 2 || ids[len(ids)-1] != "1" {
				return true
			}
		case "SigIgn", "SigCgt":
			mask, err := strconv.ParseUint(value, 16, 64)
			if err != nil || mask>>(uint(sig)-1)&1 == 1 {
				return true
			}
		}
	}
	return false
}
