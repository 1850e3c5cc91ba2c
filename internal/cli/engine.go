package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/sandbox"
	"husk.dev/husk/internal/shim"
)

// The programs that stand between an engine and a runtime, by the names of their processes (the kernel keeps 15 bytes): those
// of podman and CRI-O, and containerd's shims, which Docker has too. They watch a container's control group on the
// host for processes that are killed for want of memory. The guest's kernel kills out of their sight, so the sandbox says
// itself what they would, in the way they do.
const (
	conmon         = "conmon"
	conmonRS       = "conmonrs"
	containerdShim = "containerd-shim"
)

// oomFileName is the file that conmon makes.
const oomFileName = "oom"

// engineOf tells how the engine of a container is reached whose creation the process caller has asked for.
func engineOf(caller int, bundle string) *controlv1.Engine {
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", caller))
	if err != nil {
		return nil // it has died, and the container is not wanted any more
	}
	switch strings.TrimSpace(string(comm)) {
	case conmon, conmonRS:
		// podman 5 has conmon make it in a directory of its choice; podman 4 and CRI-O look for it in the bundle.
		files := []string{filepath.Join(bundle, oomFileName)}
		if dir := flagOf(caller, "persist-dir"); filepath.IsAbs(dir) {
			files = append(files, filepath.Join(dir, oomFileName))
		}
		return &controlv1.Engine{OomFiles: files}
	case containerdShim:
		events, namespace := os.Getenv(shim.EventsEnv), flagOf(caller, "namespace") // it hands its environment on
		if filepath.IsAbs(events) && namespace != "" {
			return &controlv1.Engine{Events: events, Namespace: namespace}
		}
	}
	return nil
}

// flagOf is the value of a flag that a process was started with, empty without it.
func flagOf(pid int, flag string) string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	args := strings.Split(string(line), "\x00")
	for i, arg := range args[:len(args)-1] {
		if name, value, given := strings.Cut(strings.TrimLeft(arg, "-"), "="); name == flag && given {
			return value
		} else if name == flag {
			return args[i+1]
		}
	}
	return ""
}

// tellOutOfMemory tells the engine of a container that a process of it was killed for want of memory.
func tellOutOfMemory(id string, e sandbox.Engine, log *slog.Logger) {
	var err error
	for _, file := range e.OOMFiles {
		err = errors.Join(err, touch(file))
	}
	if e.Events != "" {
		err = errors.Join(err, shim.PublishOOM(e.Events, e.Namespace, id))
	}
	if err != nil {
		log.Warn("tell the engine of a process without memory", "container", id, "error", err)
	}
}

// touch makes an empty file where there is none.
func touch(file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}
