// Package agenttest runs the real agent with no VM: as PID 1 of new PID and mount namespaces of this
// machine, with a socket pair for a channel. Importing it makes a test binary able to be that process.
package agenttest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent"
	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/child"
)

// variable tells a test binary that it is to be the agent. Its value is the cgroup to use.
const variable = "HUSK_AGENTTEST_CGROUP"

// sharesVariable has the shares as lines of tag=directory.
const sharesVariable = "HUSK_AGENTTEST_SHARES"

func init() {
	agent.Hold()
	agent.CopyFiles()
	if group := os.Getenv(variable); group != "" {
		err := serve(group)
		fmt.Fprintln(os.Stderr, "agenttest:", err)
		os.Exit(1)
	}
}

// Guest is a running agent.
type Guest struct {
	*channel.Client // Dial reaches the agent's ports
	process         *exec.Cmd
	cgroup          string
	exited          chan struct{}
}

// Start starts an agent that ends with the test. It needs root, crun and cgroup v2. shares are directories
// of this machine by the tags that the agent finds them under.
func Start(t testing.TB, shares map[string]string) *Guest {
	t.Helper()
	g, err := New(os.Stderr, shares)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// New starts an agent that writes its console to console. Stop ends it.
func New(console *os.File, shares map[string]string) (*Guest, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "agent's channel")
	defer theirs.Close()
	ours := os.NewFile(uintptr(fds[0]), "channel")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	group := "husk-test-" + strconv.Itoa(os.Getpid()) + "-" + strconv.Itoa(fds[1]) + "-" +
		strconv.FormatInt(time.Now().UnixNano(), 36)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), variable+"="+group, sharesVariable+"="+encode(shares))
	cmd.Stdout, cmd.Stderr = console, console
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Setsid:     true,
	}
	if err := child.Start(cmd); err != nil {
		conn.Close()
		return nil, fmt.Errorf("start agent: %w", err)
	}
	g := &Guest{process: cmd, cgroup: group, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // it is killed, or its end shows as the channel's
		close(g.exited)
	}()
	if g.Client, err = channel.NewClient(conn); err != nil {
		return nil, errors.Join(err, g.Stop())
	}
	return g, nil
}

// PID is the agent's process.
func (g *Guest) PID() int { return g.process.Process.Pid }

// Exited is closed when the agent's process has exited.
func (g *Guest) Exited() <-chan struct{} { return g.exited }

// Stop ends the agent, and every process of its containers with it.
func (g *Guest) Stop() error {
	if g.Client != nil {
		g.Client.Close()
	}
	_ = g.process.Process.Kill() // fails when it has exited
	<-g.exited
	return removeGroup(g.cgroup)
}

func encode(shares map[string]string) string {
	var lines []string
	for tag, dir := range shares {
		lines = append(lines, tag+"="+dir)
	}
	return strings.Join(lines, "\n")
}

// removeGroup removes the agent's cgroup, whose processes are ending.
func removeGroup(name string) error {
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[2] != "cgroup2" {
			continue
		}
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			err := rmdirs(filepath.Join(fields[1], name))
			if err == nil {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("remove the agent's cgroup: %w", err)
			}
		}
	}
	return nil
}

func rmdirs(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := rmdirs(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}

// serve is the agent's process. It returns when the test is gone.
func serve(group string) error {
	if err := isolate(group); err != nil {
		return err
	}
	conn, err := net.FileConn(os.NewFile(3, "channel"))
	if err != nil {
		return err
	}
	server, err := channel.NewServer(conn)
	if err != nil {
		return err
	}
	rpc, err := server.Listen(agentv1.PortRPC)
	if err != nil {
		return err
	}
	io, err := server.Listen(agentv1.PortIO)
	if err != nil {
		return err
	}
	config := agent.GuestConfig()
	config.Runner, err = exec.LookPath("crun")
	if err != nil {
		return err
	}
	config.CgroupParent = "/" + group
	config.Machine = false
	config.NoDevices = !canLoadBPF()
	config.Version = "test"
	config.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	return agent.New(config).Serve(context.Background(), rpc, io)
}

// isolate makes the mounts that the agent expects, in this process' own mount namespace.
func isolate(group string) error {
	for _, m := range []struct {
		source, dir, kind string
		flags             uintptr
	}{
		{"", "/", "", syscall.MS_REC | syscall.MS_PRIVATE},
		{"proc", "/proc", "proc", 0},
		{"tmpfs", "/run", "tmpfs", 0},
	} {
		if err := syscall.Mount(m.source, m.dir, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	// crun refuses a machine with both versions of cgroups; of this one it sees version 2 alone.
	_ = syscall.Unmount("/sys/fs/cgroup", syscall.MNT_DETACH) // may not be mounted
	if err := syscall.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mount /sys/fs/cgroup: %w", err)
	}
	if err := os.Mkdir(filepath.Join("/sys/fs/cgroup", group), 0o755); err != nil {
		return err
	}
	for line := range strings.Lines(os.Getenv(sharesVariable)) {
		tag, source, found := strings.Cut(strings.TrimSpace(line), "=")
		if !found {
			continue
		}
		dir := filepath.Join(agentv1.ShareDir, tag)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(source, dir, "", syscall.MS_BIND|syscall.MS_REC, ""); err != nil {
			return fmt.Errorf("share %s: %w", source, err)
		}
	}
	return nil
}

// canLoadBPF tells whether crun can raise its limit of locked memory, as it does to load device rules:
// whether CAP_SYS_RESOURCE (bit 24) is effective.
func canLoadBPF() bool {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), "CapEff:")
	caps, err := strconv.ParseUint(strings.TrimSpace(strings.SplitN(rest, "\n", 2)[0]), 16, 64)
	return err == nil && caps>>24&1 == 1
}
