package state

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// Process names a process on the host in a way that a later process with the same number does not
// match.
type Process struct {
	Name  string `json:"name,omitempty"` // qemu, virtiofsd, …
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // StartTime of PID
}

// Self is the calling process.
func Self(name string) (Process, error) { return Of(name, os.Getpid()) }

// Of is the process with number pid as it runs now.
func Of(name string, pid int) (Process, error) {
	start, err := StartTime(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{Name: name, PID: pid, Start: start}, nil
}

// Alive tells whether the process still runs. The zero Process does not.
func (p Process) Alive() bool { return Alive(p.PID, p.Start) }

// Alive tells whether the process pid that started at start still runs; a zombie does not.
func Alive(pid int, start uint64) bool {
	if pid <= 0 {
		return false
	}
	now, state, err := stat(pid)
	return err == nil && now == start && state != 'Z' && state != 'X'
}

// StartTime is when a process started, in clock ticks since the host booted: field 22 of
// /proc/PID/stat, see proc_pid_stat(5).
func StartTime(pid int) (uint64, error) {
	start, _, err := stat(pid)
	return start, err
}

func stat(pid int) (start uint64, state byte, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return parseStat(pid, data)
}

// parseStat starts behind the last parenthesis: field 2 is a name that may hold anything.
func parseStat(pid int, data []byte) (start uint64, state byte, err error) {
	const stateField, startField = 3, 22
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) <= startField-stateField || len(fields[0]) != 1 {
		return 0, 0, fmt.Errorf("read start time of process %d: unexpected form of its stat file", pid)
	}
	start, err = strconv.ParseUint(string(fields[startField-stateField]), 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return start, fields[0][0], nil
}
