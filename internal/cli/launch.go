package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/control"
	"husk.dev/husk/internal/hostcgroup"
	"husk.dev/husk/internal/network"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/storage"
	"husk.dev/husk/internal/sys"
)

// Descriptors that a new owner finds open, see ownerCommand.
const (
	ownerRPC = 3 + iota
	ownerFiles
	ownerLifeline
	ownerMounts // the mount namespace of who makes the container
)

// specFile is the container's configuration in the state directory.
const specFile = "config.json"

// ownerLog is the owner's log in the state directory.
const ownerLog = "owner.log"

// goneWait bounds the wait for an owner that was told to end.
const goneWait = 20 * time.Second

// deleteWait bounds the wait for an owner to delete a container, which waits for the guest to end its processes and to
// write what it has of the host's files.
const deleteWait = time.Minute

// joinedDeleteWait is deleteWait for a container in the VM of others, which end with an owner that has not done it by then.
const joinedDeleteWait = 3 * time.Minute

// launch is a container in the making. Until keep is called, abandon takes everything back, and so does
// the owner itself when this process dies.
type launch struct {
	app      *App
	dir      *state.Dir
	owner    *os.Process
	lifeline *os.File // the owner undoes its container when this closes before keep
	again    bool     // of one that has stopped, which stays when it cannot be made
	joined   bool     // in the VM of another container, whose owner is none of ours
	undo     cleanup.Stack
}

// begin takes the container's id, saves a first state and starts an owner.
func (a *App) begin(ctx context.Context, c *creation) (_ *launch, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("husk needs root, or root of a user namespace: it mounts the container's files")
	}
	l := &launch{app: a}
	defer func() {
		if err != nil {
			_ = l.undo.Clean() // the error that led here is the one to tell
		}
	}()
	if _, err = a.driver(); err != nil { // the owner would fail at it, with nobody to tell
		return nil, err
	}
	if c.again != nil {
		return l, l.takeAgain(ctx, c.again)
	}
	neighbour, err := a.neighbour(c)
	if err != nil {
		return nil, err
	}
	if l.dir, err = state.Create(a.config.RunDir, c.id); err != nil {
		return nil, err
	}
	l.undo.Add(l.forget)
	self, err := state.Self("husk")
	if err != nil {
		return nil, err
	}
	record := c.record
	record.Status, record.Owner, record.Created = state.Creating, self, time.Now()
	if neighbour != nil {
		if record.Sandbox, err = sandboxOf(neighbour); err != nil {
			return nil, err
		}
	}
	if err = os.WriteFile(l.dir.Path(specFile), c.spec, 0o600); err != nil {
		return nil, fmt.Errorf("save configuration: %w", err)
	}
	if c.made != nil {
		if err = c.made.save(l.dir); err != nil {
			return nil, err
		}
	}
	unlock, err := l.dir.Lock(ctx)
	if err != nil {
		return nil, err
	}
	err = l.dir.Save(record)
	unlock()
	if err != nil {
		return nil, err
	}
	if neighbour != nil {
		return l, l.join(neighbour)
	}
	if err = l.startOwner(); err != nil {
		return nil, fmt.Errorf("start sandbox owner: %w", err)
	}
	return l, nil
}

func (l *launch) startOwner() error {
	log, err := os.OpenFile(l.dir.Path(ownerLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	rpc, err := control.Listen(l.dir.Path(""), control.RPCSocket)
	if err != nil {
		return err
	}
	defer rpc.Close()
	files, err := control.Listen(l.dir.Path(""), control.FilesSocket)
	if err != nil {
		return err
	}
	defer files.Close()
	theirs, ours, err := os.Pipe()
	if err != nil {
		return err
	}
	defer theirs.Close()

	mounts, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		ours.Close()
		return err
	}
	defer mounts.Close()
	args := l.app.hidden("owner", l.dir.ID())
	if l.again {
		args = append(args, "--again")
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "husk"
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{ownerRPC - 3: rpc, ownerFiles - 3: files, ownerLifeline - 3: theirs, ownerMounts - 3: mounts}
	// The owner's mounts are its own: nobody else sees them, and they go with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		ours.Close()
		return err
	}
	l.owner, l.lifeline = cmd.Process, ours
	l.undo.Add(func() error {
		ours.Close()
		return l.ownerGone()
	})
	return nil
}

// hidden is the command line of one of husk's own processes with this one's global flags.
func (a *App) hidden(verb string, args ...string) []string {
	out := []string{verb, "--root", a.config.RunDir}
	if a.configFile != "" {
		file := a.configFile
		if abs, err := filepath.Abs(file); err == nil {
			file = abs
		}
		out = append(out, "--config", file)
	}
	return append(out, args...)
}

// ownerGone waits for the owner, whose child this process' is, and ends one that does not end.
func (l *launch) ownerGone() error {
	timer := time.AfterFunc(goneWait, func() { _ = l.owner.Kill() })
	defer timer.Stop()
	_, err := l.owner.Wait()
	return err
}

// forget removes a container that was not made, with what an owner that was killed has left of it.
func (l *launch) forget() error {
	if l.joined {
		return l.forgetJoined()
	}
	record, err := l.dir.Load()
	if err == nil {
		waitOwnerGone(record)
		err = l.app.clear(l.dir.ID(), record)
	} else if errors.Is(err, fs.ErrNotExist) || errors.Is(err, state.ErrNotExist) { // the owner has removed it all
		err = nil
	}
	return errors.Join(err, l.dir.Remove())
}

// clear removes what is kept of a container outside of its state directory, once nothing of it runs.
func (a *App) clear(id string, record state.Container) error {
	a.clearHost(record)
	if dir, err := a.open(id); err == nil {
		a.clearMounts(dir)
	}
	if err := os.RemoveAll(a.config.ContainerDir(id)); err != nil {
		return fmt.Errorf("remove the container's data: %w", err)
	}
	return nil
}

// clearMounts ends what the guest of a VM with that directory has mounted on the host.
func (a *App) clearMounts(dir *state.Dir) {
	if err := storage.Unmirror(dir.Path(sandbox.MountsFile)); err != nil {
		a.warn("%v", err)
	}
}

// clearHost removes what an owner that was killed has left on the host.
func (a *App) clearHost(record state.Container) {
	if record.NetNS != "" {
		if err := network.Clean(record.NetNS); err != nil {
			a.warn("%v", err)
		}
	}
	if err := hostcgroup.Remove(record.Cgroup); err != nil {
		a.warn("%v", err)
	}
}

// keep leaves the container to its owner.
func (l *launch) keep() { l.undo.Release() }

// abandon undoes the container.
func (l *launch) abandon() { _ = l.undo.Clean() }

// create has the owner make the container.
func (l *launch) create(ctx context.Context, request *controlv1.CreateRequest) (*controlv1.CreateResponse, error) {
	client, err := control.Dial(l.dir.Path(""))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	answer, err := client.Create(ctx, request)
	if err != nil {
		code, plain := control.Plain(err)
		if errors.Is(plain, control.ErrGone) {
			plain = fmt.Errorf("the sandbox owner died: %s", l.ownerSaid())
		}
		return nil, programError(code, plain)
	}
	for _, w := range answer.Warnings {
		l.app.warn("%s", w)
	}
	return answer, nil
}

// ownerSaid is the last line of the owner's log, for an owner that could not answer.
func (l *launch) ownerSaid() string {
	data, err := os.ReadFile(l.dir.Path(ownerLog))
	data = bytes.TrimSpace(data[max(0, len(data)-500):])
	if err != nil || len(data) == 0 {
		return "it left no message"
	}
	return string(data[bytes.LastIndexByte(data, '\n')+1:])
}

// newToken names descriptors on their way to an owner.
func newToken() (string, error) {
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		return "", fmt.Errorf("make token: %w", err)
	}
	return hex.EncodeToString(raw), nil
}

// waitOwnerGone waits until the owner of a container has ended, and ends it when it does not.
func waitOwnerGone(record state.Container) {
	ctx, cancel := context.WithTimeout(context.Background(), goneWait)
	defer cancel()
	for _, p := range append([]state.Process{record.Owner}, record.Helpers...) {
		if p.PID == os.Getpid() || !p.Alive() {
			continue
		}
		if err := sys.WaitGone(ctx, p.PID); err != nil && p.Alive() {
			_ = syscall.Kill(p.PID, syscall.SIGKILL)
		}
	}
}

// removePidFile takes back what a failed create wrote.
func removePidFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
