// Package e2e runs the husk binary as its users do: real containers in real virtual machines.
package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/testenv"
)

// patience bounds one husk command. It only ends what hangs: an emulated guest on a busy machine is slow.
const patience = 3 * time.Minute

// env is what all tests of this package share; it is made by TestMain.
var env struct {
	binary string // of husk
	config string
	run    string // run_dir
	data   string // data_dir
	rootfs string // a busybox root directory
}

// demo is the image that TestMain puts into the store.
const demo = "husk-demo"

func TestMain(m *testing.M) {
	if os.Getenv("HUSK_TEST_VM") != "1" || os.Geteuid() != 0 {
		os.Exit(m.Run()) // every test says why it is skipped
	}
	dir, err := os.MkdirTemp("", "husk-e2e-")
	if err == nil {
		err = prepare(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "prepare end-to-end tests:", err)
		os.Exit(1)
	}
	code := m.Run()
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "clean up:", err)
		code = 1
	}
	os.Exit(code)
}

func prepare(dir string) (err error) {
	if err := sys.BecomeSubreaper(); err != nil {
		return err
	}
	if env.binary, err = filepath.Abs("../../build/bin/husk"); err != nil {
		return err
	}
	env.run, env.data = filepath.Join(dir, "run"), filepath.Join(dir, "data")
	env.config, env.rootfs = filepath.Join(dir, "config.toml"), filepath.Join(dir, "rootfs")
	// Templates are built here and not by some test's husk: the checks for leaks would see the builder.
	config := fmt.Sprintf("run_dir = %q\ndata_dir = %q\ntemplate = \"ready\"\n", env.run, env.data)
	if machine := os.Getenv("HUSK_TEST_MACHINE"); machine != "" {
		config += fmt.Sprintf("machine = %q\n", machine)
	}
	if qemu := testenv.QEMU(); qemu != "" {
		config += fmt.Sprintf("qemu = %q\n", qemu)
	}
	if virtiofsd := testenv.Virtiofsd(); virtiofsd != "" {
		config += fmt.Sprintf("virtiofsd = %q\n", virtiofsd)
	}
	if guest := os.Getenv("HUSK_TEST_GUEST"); guest != "" { // make test runs some with the distribution's kernel too
		config += fmt.Sprintf("guest_dir = %q\n", guest)
	}
	if err := os.WriteFile(env.config, []byte(config), 0o600); err != nil {
		return err
	}
	for _, d := range []string{env.run, filepath.Join(env.data, "containers")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if out, err := exec.Command("../../guest/demo/build.sh", env.rootfs).CombinedOutput(); err != nil {
		return fmt.Errorf("make rootfs: %w: %s", err, out)
	}
	out, err := exec.Command(env.binary, "--config", env.config, "import", "--cmd", "sh", env.rootfs, demo).CombinedOutput()
	if err != nil {
		return fmt.Errorf("import %s: %w: %s", demo, err, out)
	}
	if out, err := exec.Command(env.binary, "--config", env.config, "template", "build").CombinedOutput(); err != nil {
		return fmt.Errorf("build template: %w: %s", err, out)
	}
	return nil
}

// begin is the first line of every test: it skips where no VM can be booted and checks for leaks at the end.
func begin(t *testing.T) {
	t.Helper()
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	testenv.Leaks(t, env.run, filepath.Join(env.data, "containers"))
}

// command is a husk command that has not been started.
type command struct {
	t    *testing.T
	args []string
	in   string
	dir  string
	flag []string // global flags

	within int // a process whose mount namespace the command runs in; 0: this one's
}

// result is what a command printed and how it ended.
type result struct {
	stdout, stderr string
	code           int
}

func husk(t *testing.T, args ...string) *command { return &command{t: t, args: args} }

// cmd is the command for tests that need more than run.
func (c *command) cmd() *exec.Cmd {
	args := append([]string{"--config", env.config}, c.flag...)
	args = append(args, c.args...)
	cmd := exec.Command(env.binary, args...)
	if c.within != 0 {
		enter := []string{"--mount", "--target", strconv.Itoa(c.within), "--", env.binary}
		cmd = exec.Command("nsenter", append(enter, args...)...)
	}
	cmd.Dir = c.dir
	if c.in != "" {
		cmd.Stdin = strings.NewReader(c.in)
	}
	return cmd
}

// run runs the command to its end, whatever that is.
func (c *command) run() result {
	c.t.Helper()
	cmd := c.cmd()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	timer := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatalf("husk %q: %v", c.args, err)
	}
	return result{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
}

// ok runs the command and fails the test unless it exits with 0; it returns what the command printed.
func (c *command) ok() string {
	c.t.Helper()
	r := c.run()
	if r.code != 0 {
		c.t.Fatalf("husk %q: exit code %d, want 0\nstdout: %s\nstderr: %s", c.args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// fails runs the command, which must exit with code and say each of the words on one line of stderr.
func (c *command) fails(code int, words ...string) result {
	c.t.Helper()
	r := c.run()
	if r.code != code {
		c.t.Errorf("husk %q: exit code %d, want %d\nstderr: %s", c.args, r.code, code, r.stderr)
	}
	line := strings.TrimRight(r.stderr, "\n")
	if strings.Contains(line, "\n") || line == "" {
		c.t.Errorf("husk %q printed %q, want one line", c.args, r.stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			c.t.Errorf("husk %q printed %q, want %q in it", c.args, r.stderr, w)
		}
	}
	if strings.Contains(r.stderr, "panic") || strings.Contains(r.stderr, "goroutine") {
		c.t.Errorf("husk %q panicked: %s", c.args, r.stderr)
	}
	return r
}
