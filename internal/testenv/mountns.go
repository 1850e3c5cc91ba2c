package testenv

import (
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"testing"
)

// mountEnv is set in the copy of the test binary that runs in a mount namespace of its own.
const mountEnv = "HUSK_TEST_PRIVATE_MOUNTS"

// PrivateMounts runs the calling test again in a copy of the test binary that has a mount namespace of
// its own, so that whatever it mounts ends with it. It returns true in the copy, where the test goes on,
// and false in the original, where the test returns with the copy's result. It skips without root.
func PrivateMounts(t *testing.T) bool {
	t.Helper()
	if os.Getenv(mountEnv) == t.Name() {
		return true
	}
	NeedRoot(t)
	cmd := exec.Command(os.Args[0], "-test.run=^"+regexp.QuoteMeta(t.Name())+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), mountEnv+"="+t.Name())
	// Unshareflags and not Cloneflags: it also makes the copy's mounts private.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	t.Logf("in a mount namespace of its own:\n%s", out)
	if err != nil {
		t.Errorf("in a mount namespace of its own: %v", err)
	}
	return false
}
