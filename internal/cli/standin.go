package cli

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/ocispec"
	"husk.dev/husk/internal/state"
	"husk.dev/husk/internal/sys"
)

// The first thread of a process is the one whose namespaces /proc/PID/ns and /proc/PID/root name. Only here,
// before main, can the first goroutine be kept on it.
func init() {
	if len(os.Args) > 1 && os.Args[1] == attendVerb || filepath.Base(os.Args[0]) == ShimName {
		runtime.LockOSThread()
	}
}

// attendVerb is the hidden verb of the process that stands for a container's.
const attendVerb = "attend"

// standIn moves this process' first thread to where the container's process would be: engines enter the
// namespaces of the pid that they were given, to copy files in and out and to read /proc, and would do all that in the
// host's. The mount namespace has the container's root and volumes; what only the guest has (/proc, tmpfs) is empty there and
// cannot be written to. The network namespace is the container's.
func (a *App) standIn(dir *state.Dir) error {
	record, err := dir.Load()
	if err != nil {
		return err
	}
	if record.Image != "" || record.Rootfs == "" {
		return nil // no engine made it, and its files are on the guest's disks
	}
	spec, err := savedSpec(dir)
	if err != nil {
		return err
	}
	if ns := ocispec.Namespace(spec, specs.NetworkNamespace); ns != nil && ns.Path != "" {
		if sys.JoinNetwork(ns.Path) != nil {
			return sys.EnterNothing() // the owner fails at it too, and tells
		}
	}
	readOnly := spec.Root != nil && spec.Root.Readonly
	if err := sys.Enter(record.Rootfs, readOnly, ocispec.Places(record.Bundle, spec)); err != nil {
		// A container runs without: what engines cannot do then is to copy files.
		a.log.write("warning", "show the container's files to engines: "+err.Error())
		if nothing := sys.EnterNothing(); nothing != nil {
			return errors.Join(err, nothing)
		}
	}
	return nil
}
