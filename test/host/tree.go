package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"husk.dev/husk/internal/testenv"
)

// module is the path before that of every package.
const module = "husk.dev/husk/"

// brought is where in the tree the programs are that are made for the host.
const brought = "build/test-host"

// programs are those of the module that tests run, with their flags; hosts have no Go.
var programs = [][]string{
	{module + "test/e2e/probe"}, {module + "test/e2e/probe", "-gcflags=-l"}, {module + "internal/vmm/vmmtest/testguest"},
}

// MakeTree compiles the suites' tests, and makes the disk file with them, with this tree, and with what was built of it.
func MakeTree(ctx context.Context, top, file string, suites []Suite) error {
	stage, err := os.MkdirTemp(filepath.Join(top, "build"), "test-host-")
	if err != nil {
		return fmt.Errorf("make the host's tree (make build image comes first): %w", err)
	}
	defer os.RemoveAll(stage)
	if err := copyTree(ctx, top, stage); err != nil {
		return err
	}
	dir := filepath.Join(top, brought)
	builds := [][]string{{"build", "-o", filepath.Join(dir, "inside"), "./test/host/inside"}}
	for _, p := range programs {
		to := filepath.Join(dir, testenv.ProgramName(p[0], p[1:]...))
		builds = append(builds, append(append([]string{"build", "-o", to}, p[1:]...), p[0]))
	}
	for _, s := range suites {
		builds = append(builds, []string{"test", "-c", "-o", filepath.Join(dir, s.program()), "./" + s.Package})
	}
	for _, args := range builds {
		args = append([]string{args[0], "-trimpath", "-ldflags=-s -w"}, args[1:]...)
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir, cmd.Stderr, cmd.Env = top, os.Stderr, append(os.Environ(), "CGO_ENABLED=0")
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
		}
	}
	if err := run(ctx, "cp", "-al", dir, filepath.Join(stage, "build")); err != nil {
		return err
	}
	if err := os.RemoveAll(file); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "mkfs.erofs", file, stage).CombinedOutput(); err != nil {
		return fmt.Errorf("make the host's tree: %w: %s", err, out)
	}
	return nil
}

// copyTree links what git knows of the tree at top, and what was built of it, into the directory stage.
func copyTree(ctx context.Context, top, stage string) error {
	list := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = top
	names, err := list.Output()
	if err != nil {
		return fmt.Errorf("list the tree: %w", err)
	}
	// What was removed and not yet committed is still on the list.
	var there bytes.Buffer
	for name := range strings.SplitSeq(string(names), "\x00") {
		if info, err := os.Lstat(filepath.Join(top, name)); name != "" && err == nil && !info.IsDir() {
			there.WriteString(name + "\x00")
		}
	}
	link := exec.CommandContext(ctx, "xargs", "-0", "cp", "-al", "--parents", "-t", stage)
	link.Dir, link.Stdin = top, &there
	if out, err := link.CombinedOutput(); err != nil {
		return fmt.Errorf("copy the tree: %w: %s", err, out)
	}
	if err := os.MkdirAll(filepath.Join(stage, "build"), 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"bin", "lib", "demo"} {
		from := filepath.Join(top, "build", dir)
		if _, err := os.Stat(from); err != nil {
			continue
		}
		if err := run(ctx, "cp", "-al", from, filepath.Join(stage, "build")); err != nil {
			return err
		}
	}
	return nil
}

// program is the name of the suite's compiled tests.
func (s Suite) program() string {
	return strings.ReplaceAll(path.Clean(s.Package), "/", "-") + ".test"
}
