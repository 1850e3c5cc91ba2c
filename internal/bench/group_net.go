package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"husk.dev/husk/internal/cleanup"
)

const (
	netServer = "10.98.0.1:7"
	netReady  = 10 * time.Second
)

// netCommands make the interface of the container, in its namespace (at $1), and that of the server, in the
// namespace of the process $2.
const netCommands = `nsenter --net="$1" ip link add eth0 type veth peer name eth0 netns "$2"
nsenter --net="$1" sh -ec 'ip addr add 10.98.0.2/24 dev eth0; ip link set eth0 up; ip link set lo up'
nsenter --net="/proc/$2/ns/net" sh -ec 'ip addr add 10.98.0.1/24 dev eth0; ip link set eth0 up; ip link set lo up'`

// stepNet sends data between a container and a server of the host, which have a veth between them.
func stepNet(ctx context.Context, s *session, rt Runtime, note add) (err error) {
	var undo cleanup.Stack
	defer func() {
		err = errors.Join(err, undo.Clean())
	}()
	space, err := s.makeNet(ctx, &undo)
	if err != nil {
		return fmt.Errorf("make a network: %w", err)
	}
	var o output
	if rt.Name == native {
		o, err = s.foreground(ctx, []string{"nsenter", "--net=" + space, s.setting.Binary, "bench-load", "net", netServer})
	} else {
		if err := s.makeBundle("net", []string{loadProgram, "bench-load", "net", netServer}, space); err != nil {
			return err
		}
		o, err = s.container(rt).run(ctx, "net")
	}
	if err != nil {
		return err
	}
	return noteLoad(o, "net.", note)
}

// makeNet makes two network namespaces, with a server in one, and returns the path of the other.
func (s *session) makeNet(ctx context.Context, undo *cleanup.Stack) (space string, err error) {
	container, _, err := s.inNet(undo, s.setting.Busybox, "sleep", "1000")
	if err != nil {
		return "", err
	}
	server, said, err := s.inNet(undo, s.setting.Binary, "bench-load", "net-serve", netServer[strings.IndexByte(netServer, ':'):])
	if err != nil {
		return "", err
	}
	space = fmt.Sprintf("/proc/%d/ns/net", container)
	if err := s.command(ctx, nil, []string{"sh", "-ec", netCommands, "sh", space, fmt.Sprint(server)}); err != nil {
		return "", err
	}
	if err := said.SetReadDeadline(time.Now().Add(netReady)); err != nil {
		return "", err
	}
	if _, err := said.Read(make([]byte, 1)); err != nil {
		return "", fmt.Errorf("wait for the server: %w", err)
	}
	return space, nil
}

// inNet starts a program in a network namespace of its own, which it keeps in being until it is killed.
func (s *session) inNet(undo *cleanup.Stack, argv ...string) (pid int, out *os.File, err error) {
	out, theirs, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	undo.Add(out.Close)
	defer theirs.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout = theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Cloneflags: syscall.CLONE_NEWNET}
	forget, err := s.start(cmd)
	if err != nil {
		return 0, nil, fmt.Errorf("%s in a network namespace: %w", strings.Join(argv, " "), err)
	}
	undo.Add(func() error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		forget()
		return nil
	})
	return cmd.Process.Pid, out, nil
}
