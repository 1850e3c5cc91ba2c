package sys

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
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
