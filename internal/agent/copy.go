package agent

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/agent/runner"
	"husk.dev/husk/internal/agent/stdio"
	"husk.dev/husk/internal/cleanup"
	"husk.dev/husk/internal/filetar"
	"husk.dev/husk/internal/sys"
)

const (
	// copierArg, as the first argument, makes a process of the program that CopyFiles is for. A CopyRequest and the
	// container's uid_map and gid_map follow.
	copierArg = "copy-files"
	// copierRoot is the descriptor of the container's root directory in it.
	copierRoot = 3
	// copierMemory is where its collector works harder, in bytes.
	copierMemory = 16 << 20
	// maxWarnings bounds the files that it tells of as left out: the owner shows fewer.
	maxWarnings = 12
	// overflowID is what a user is shown as that a user namespace does not have (user_namespaces(7)).
	overflowID = 65534
)

// fileCapabilities are those about files (capabilities(7)): CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID
// and CAP_MKNOD.
var fileCapabilities = []uintptr{0, 1, 2, 3, 4, 27}

// copyFrom is what it takes to copy files of a container, as it was when its init began.
type copyFrom struct {
	mounts     *os.File // its mount namespace
	uids, gids string   // uid_map and gid_map
}

// Copy starts a process that copies files.
func (s service) Copy(ctx context.Context, r *agentv1.CopyRequest) (*agentv1.ExecResponse, error) {
	if !validID(r.GetExec()) {
		return nil, fail(codes.InvalidArgument, "invalid exec id %q", r.GetExec())
	}
	if len(r.GetPath()) > filetar.MaxName || len(r.GetFirst()) > filetar.MaxName || strings.Contains(r.GetPath(), "\x00") {
		return nil, fail(codes.InvalidArgument, "the path is longer than %d bytes, or has a zero byte", filetar.MaxName)
	}
	pid, err := s.agent.copy(ctx, r)
	if err != nil {
		return nil, err
	}
	return &agentv1.ExecResponse{Pid: uint32(pid)}, nil
}

func (a *Agent) copy(ctx context.Context, r *agentv1.CopyRequest) (int, error) {
	streams, err := a.streams.Open(ctx, r.GetStdio())
	if err != nil {
		return 0, err
	}
	var undo cleanup.Stack
	defer undo.Clean()
	undo.Add(func() error { streams.Abort(); return nil })
	c, err := a.find(r.GetContainer())
	if err != nil {
		return 0, err
	}
	c.op.Lock() // nobody removes it meanwhile
	defer c.op.Unlock()
	if c.undo == nil || c.files.mounts == nil {
		return 0, wrongState("copy files of", c.id, c.is())
	}
	if err := c.procs.reserve(r.GetExec()); err != nil {
		return 0, err
	}
	undo.Add(func() error { c.procs.remove(r.GetExec()); return nil })
	started, err := a.startCopier(c, r, streams)
	if err != nil {
		return 0, fmt.Errorf("copy files: %w", err)
	}
	undo.Release()
	p := &process{pid: started.PID, streams: streams}
	c.procs.set(r.GetExec(), p)
	go a.follow(c.id, r.GetExec(), c.procs, started, p, nil)
	return started.PID, nil
}

// startCopier starts the process, which is in no namespace of the container and has its root open. It is no process of the
// container, so that it works while that one is paused, and takes none of its memory.
func (a *Agent) startCopier(c *container, r *agentv1.CopyRequest, streams *stdio.IO) (runner.Process, error) {
	root, err := sys.MountsRoot(fmt.Sprintf("/proc/self/fd/%d", c.files.mounts.Fd()))
	if err != nil {
		return runner.Process{}, err
	}
	defer root.Close()
	told := proto.CloneOf(r)
	told.Stdio, told.Container, told.Exec = nil, "", ""
	data, err := proto.Marshal(told)
	if err != nil {
		return runner.Process{}, err
	}
	attr := &syscall.SysProcAttr{Setsid: true}
	if err := c.files.become(attr); err != nil {
		return runner.Process{}, err
	}
	args := []string{"husk-agent", copierArg, base64.StdEncoding.EncodeToString(data), c.files.uids, c.files.gids}
	pid, exited, err := a.reaper.Start("/proc/self/exe", args, &syscall.ProcAttr{
		Dir: "/", Files: append(streams.Files(), root.Fd()), Sys: attr,
	})
	if err != nil {
		return runner.Process{}, err
	}
	streams.Run()
	return runner.Process{PID: pid, Exited: exited}, nil
}

// become has a process begin as the root of the container's user namespace, if it has one: on what was mounted there nobody else
// can make files. It keeps root's rights on files.
func (f *copyFrom) become(attr *syscall.SysProcAttr) error {
	uids, err := parseIDs(f.uids)
	if err != nil {
		return err
	}
	gids, err := parseIDs(f.gids)
	if err != nil {
		return err
	}
	uid, err := uids.outer(0)
	if err != nil {
		return err
	}
	gid, err := gids.outer(0)
	if err != nil {
		return err
	}
	if uid != 0 || gid != 0 {
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		attr.AmbientCaps = fileCapabilities
	}
	return nil
}

// holdFiles keeps a container's mounts beyond its last process, until the container is removed: its files can be copied as long.
// And when the kernel (seen in 6.1) unmounts a part of a share while a read ahead is under way in it, it panics: the
// read's end is for an inode that is gone ("VFS: Busy inodes after unmount of virtiofs").
func (c *container) holdFiles(pid int, undo *cleanup.Stack) {
	var f copyFrom
	var err error
	if f.mounts, err = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid)); err != nil {
		return // the process has ended already
	}
	undo.Add(f.mounts.Close)
	uids, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", pid))
	if err != nil {
		return
	}
	gids, err := os.ReadFile(fmt.Sprintf("/proc/%d/gid_map", pid))
	if err != nil {
		return
	}
	f.uids, f.gids = string(uids), string(gids)
	c.files = f
}

// endCopies ends what copies files of a container that is about to be removed: it keeps them busy.
func (a *Agent) endCopies(ctx context.Context, c *container) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupWait)
	defer cancel()
	for {
		left := c.procs.added()
		for _, pid := range left {
			_ = a.reaper.Signal(pid, syscall.SIGKILL) // it may just have ended
		}
		if len(left) == 0 {
			return nil
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("end what copies files of container %q: %w", c.id, ctx.Err())
		}
	}
}

// CopyFiles does not return in a process that was started to copy files. A program that has an agent calls it first.
func CopyFiles() {
	if len(os.Args) != 5 || os.Args[1] != copierArg {
		return
	}
	debug.SetMemoryLimit(copierMemory)
	if err := copyFiles(os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, oneLine(err.Error()))
		os.Exit(1)
	}
	os.Exit(0)
}

func oneLine(text string) string { return strings.ReplaceAll(text, "\n", " ") }

func copyFiles(request, uidMap, gidMap string) error {
	data, err := base64.StdEncoding.DecodeString(request)
	if err != nil {
		return err
	}
	var r agentv1.CopyRequest
	if err := proto.Unmarshal(data, &r); err != nil {
		return err
	}
	uids, err := parseIDs(uidMap)
	if err != nil {
		return err
	}
	gids, err := parseIDs(gidMap)
	if err != nil {
		return err
	}
	root := os.NewFile(copierRoot, "container")
	if r.GetInto() {
		return copyInto(root, &r, uids, gids)
	}
	source, _, err := filetar.FindSource(root, filetar.Name(r.GetPath()), r.GetFollow())
	if err != nil {
		return err
	}
	source.IDs = func(uid, gid int) (int, int) { return uids.inner(uid), gids.inner(gid) }
	source.Warn = warnCopies()
	return source.Write(os.Stdout)
}

// warnCopies tells what is left out, as far as anybody reads it.
func warnCopies() func(text string) {
	n := 0
	return func(text string) {
		if n++; n <= maxWarnings {
			fmt.Fprintln(os.Stderr, oneLine(text))
		}
	}
}

// copyInto unpacks standard input in the container. Without archive all belongs to the container's root.
func copyInto(root *os.File, r *agentv1.CopyRequest, uids, gids idMap) error {
	first, named := r.GetFirst(), filetar.Name(r.GetPath())
	stream := first == ""
	if stream {
		first, named.Directory = filetar.Self, true
	}
	target, err := filetar.FindTarget(root, named, r.GetDirectory() && !stream, first)
	if err != nil {
		return err
	}
	target.Any, target.SetID, target.Fifos, target.Devices, target.Warn = stream, r.GetArchive(), true, true, warnCopies()
	target.IDs = func(uid, gid int) (int, int, error) {
		if !r.GetArchive() {
			uid, gid = 0, 0
		}
		outer, err := uids.outer(uid)
		if err != nil {
			return 0, 0, err
		}
		group, err := gids.outer(gid)
		return outer, group, err
	}
	if err := target.Read(nil, tar.NewReader(os.Stdin)); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin) // what tar programs write behind the end
	return err
}

// idMap is a uid_map or gid_map (user_namespaces(7)).
type idMap []struct{ inside, outside, length int64 }

func parseIDs(text string) (idMap, error) {
	var m idMap
	for line := range strings.Lines(text) {
		var one struct{ inside, outside, length int64 }
		if _, err := fmt.Sscan(line, &one.inside, &one.outside, &one.length); err != nil {
			return nil, fmt.Errorf("read %q: %w", text, err)
		}
		m = append(m, one)
	}
	return m, nil
}

// inner is what an id is in the container.
func (m idMap) inner(id int) int {
	for _, one := range m {
		if n := int64(id) - one.outside; n >= 0 && n < one.length {
			return int(n + one.inside)
		}
	}
	return overflowID
}

// outer is what an id of the container is outside of it.
func (m idMap) outer(id int) (int, error) {
	for _, one := range m {
		if n := int64(id) - one.inside; n >= 0 && n < one.length {
			return int(n + one.outside), nil
		}
	}
	return 0, fmt.Errorf("the container has no user or group %d", id)
}
