package sys

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
)

// NewUserNS makes a user namespace with the given mappings and no process in it. The caller closes it.
func NewUserNS(uids, gids []syscall.SysProcIDMap) (*os.File, error) {
	runtime.LockOSThread() // the child is traced by this thread
	defer runtime.UnlockOSThread()
	// The child is stopped before it runs anything.
	cmd := exec.Command("/proc/self/exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: uids, GidMappings: gids, Ptrace: true, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	return ns, nil
}

// MountsBelow tells whether anything is mounted below the directory path, which has no symlinks, as this thread sees it.
func MountsBelow(path string) (bool, error) {
	table, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return false, fmt.Errorf("look at mounts: %w", err)
	}
	defer table.Close()
	// Spaces and the like are written as octal numbers there, proc(5).
	escaped := strings.NewReplacer("\\", `\134`, " ", `\040`, "\t", `\011`, "\n", `\012`).Replace(strings.TrimSuffix(path, "/")) + "/"
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], escaped) {
			return true, nil
		}
	}
	return false, lines.Err()
}
