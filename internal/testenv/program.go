package testenv

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// Program makes a static program of the package (its import path) in the directory dir, with go build's flags, and returns its
// path. A machine without Go is given the programs that tests need: then HUSK_TEST_PROGRAMS names their directory, and each is
// named as ProgramName says.
func Program(dir, pkg string, flags ...string) (string, error) {
	if given := os.Getenv("HUSK_TEST_PROGRAMS"); given != "" {
		binary := filepath.Join(given, ProgramName(pkg, flags...))
		if _, err := os.Stat(binary); err != nil {
			return "", fmt.Errorf("find the program of %s: %w", pkg, err)
		}
		return binary, nil
	}
	binary := filepath.Join(dir, path.Base(pkg))
	args := append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", binary}, flags...)
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return binary, nil
}

// ProgramName is the name of a package's program that was built with flags.
func ProgramName(pkg string, flags ...string) string {
	return strings.NewReplacer("/", "-", "=", "-").Replace(path.Base(pkg) + strings.Join(flags, ""))
}
