package virtiofs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Kind is one of the two programs named virtiofsd, which have little but the name in common.
type Kind string

// Kinds: C came with QEMU until 7.2, Rust is a project of its own since.
const (
	C    Kind = "C"
	Rust Kind = "Rust"
)

// openFiles is how many files a server may have open for its guest.
const openFiles = 1 << 19

// listenFD is the number under which the server finds its listening socket.
const listenFD = 3

// argv is the command line of a server of dir. Both kinds give each mount below dir a device number of
// its own in the guest, without which files of two file systems can look like one; both cage themselves
// in namespaces, with pivot_root into dir, behind a seccomp filter.
func argv(kind Kind, dir string, files int) ([]string, error) {
	if strings.ContainsAny(dir, ",\\\x00") {
		return nil, fmt.Errorf("directory %q: a path with a comma or backslash cannot be shared", dir)
	}
	switch kind {
	case C:
		return []string{
			"-f", fmt.Sprintf("--fd=%d", listenFD), fmt.Sprintf("--rlimit-nofile=%d", files),
			"-o", "source=" + dir, "-o", "sandbox=namespace", "-o", "cache=auto", "-o", "xattr",
			"-o", "announce_submounts", "-o", "log_level=warn",
		}, nil
	case Rust:
		return []string{
			fmt.Sprintf("--fd=%d", listenFD), fmt.Sprintf("--rlimit-nofile=%d", files), "--shared-dir=" + dir,
			"--sandbox=namespace", "--seccomp=kill", "--cache=auto", "--xattr", "--announce-submounts",
			"--inode-file-handles=never", "--log-level=warn",
		}, nil
	}
	return nil, fmt.Errorf("unknown kind of virtiofsd %q", kind)
}

// usual are the places where distributions install virtiofsd, the Rust one's first: where there are
// both, the C one is the older.
var usual = []string{"/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/virtiofsd/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/libexec/qemu/virtiofsd"}

// Find returns the virtiofsd to use: binary where it is not empty, else the first of the usual places,
// else the one on PATH.
func Find(binary string) (string, error) {
	if binary != "" {
		if _, err := exec.LookPath(binary); err != nil {
			return "", fmt.Errorf("find virtiofsd: %w", err)
		}
		return binary, nil
	}
	for _, path := range usual {
		if _, err := exec.LookPath(path); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath("virtiofsd")
	if err != nil {
		return "", fmt.Errorf("find virtiofsd: not on PATH nor in %s: install virtiofsd (on Debian 12: qemu-system-common)", strings.Join(usual, ", "))
	}
	return path, nil
}

// versionWait bounds asking a binary for its version.
const versionWait = 10 * time.Second

// kinds remembers what Detect found, by path, size and age of the binary.
var kinds sync.Map

// Detect tells which virtiofsd binary is, and its version, by running it with --version.
func Detect(ctx context.Context, binary string) (kind Kind, version string, err error) {
	info, err := os.Stat(binary)
	if err != nil {
		return "", "", fmt.Errorf("look at virtiofsd: %w", err)
	}
	key := fmt.Sprintf("%s\x00%d\x00%d", binary, info.Size(), info.ModTime().UnixNano())
	type known struct {
		kind    Kind
		version string
	}
	if k, ok := kinds.Load(key); ok {
		return k.(known).kind, k.(known).version, nil
	}
	ctx, cancel := context.WithTimeout(ctx, versionWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "--version")
	cmd.Env = environment
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if errors.Is(err, fs.ErrPermission) {
		return "", "", fmt.Errorf("run %s: %w", binary, err)
	}
	kind, version = parseVersion(string(out))
	if kind == "" {
		return "", "", fmt.Errorf("%s is no virtiofsd that husk knows: --version says %.80q (%v)", binary, out, err)
	}
	kinds.Store(key, known{kind, version})
	return kind, version, nil
}

// The C one says "virtiofsd version 7.2.22 (Debian …)", the Rust one "virtiofsd 1.13.0" and, when it was
// young, "virtiofsd backend 1.1.0".
var (
	cVersion    = regexp.MustCompile(`^virtiofsd version (\d[0-9.]*)`)
	rustVersion = regexp.MustCompile(`^virtiofsd(?: backend)? v?(\d[0-9.]*)`)
)

func parseVersion(out string) (Kind, string) {
	if m := cVersion.FindStringSubmatch(out); m != nil {
		return C, m[1]
	}
	if m := rustVersion.FindStringSubmatch(out); m != nil {
		return Rust, m[1]
	}
	return "", ""
}
