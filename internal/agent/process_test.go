package agent_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent/agenttest"
	"husk.dev/husk/internal/testenv"
)

// TestProcess runs every scenario on an agent that is a process of this machine, with the real crun.
func TestProcess(t *testing.T) {
	testenv.NeedRoot(t)
	if _, err := exec.LookPath("crun"); err != nil {
		t.Skip("needs crun: ", err)
	}
	dir := busyboxRoot(t)
	s := greet(t, agenttest.Start(t, map[string]string{"root": dir}))
	s.root = func() *agentv1.Rootfs {
		return &agentv1.Rootfs{Path: filepath.Join(agentv1.ShareDir, "root")}
	}
	scenarios(t, s)
}

// program opens a stream that carries busybox.
func (s *subject) program(t *testing.T) uint64 {
	t.Helper()
	token, conn, err := s.Stream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = conn.Write(text) // a loss shows as a shell that does not run
		conn.Close()
	}()
	return token
}
