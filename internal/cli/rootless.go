package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// mappingFD is set in the environment of a husk in a new user namespace, whose ids are being mapped: the descriptor
// that it reads a byte from when they are.
const mappingFD = "HUSK_USERNS_FD"

// asRoot are the verbs that an ordinary user's husk does as root of a user namespace: those that make containers and
// images, whose files belong to users that only exist there, those that remove them, and the one that tries them all.
var asRoot = []string{"create", "run", "start", "restart", "exec", "cp", "delete", "rm", "prune", "pull", "load", "import", "rmi", "build", "template", "selftest"}

// needsNamespace tells whether the verb cannot be done as the ordinary user that this process is.
func needsNamespace(cmd *cobra.Command) bool {
	if os.Geteuid() == 0 {
		return false
	}
	for c := cmd; c != nil; c = c.Parent() {
		if slices.Contains(asRoot, c.Name()) {
			return true
		}
	}
	return false
}

// mapped goes on in a user namespace once its ids are mapped; elsewhere it does nothing. Only a program that is executed
// by root of the namespace has root's rights there, so this one is executed again.
func mapped() error {
	text, found := os.LookupEnv(mappingFD)
	if !found {
		return nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return fmt.Errorf("%s=%q: not a descriptor", mappingFD, text)
	}
	ready := os.NewFile(uintptr(fd), "ready")
	if n, _ := ready.Read(make([]byte, 1)); n != 1 {
		return &exitError{code: exitFailed} // whoever maps them has told
	}
	ready.Close()
	if err := os.Unsetenv(mappingFD); err != nil {
		return err
	}
	err = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
	return fmt.Errorf("go on in a user namespace: %w", err)
}

// inNamespace runs this command line again as root of a new user namespace, in which the user's subordinate ids are the
// other users, and returns its end as an error.
func inNamespace() error {
	me, err := user.Current()
	if err != nil {
		return fmt.Errorf("find who I am: %w", err)
	}
	uids, err := subordinate("/etc/subuid", me)
	if err != nil {
		return err
	}
	gids, err := subordinate("/etc/subgid", me)
	if err != nil {
		return err
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ours.Close()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(os.Environ(), mappingFD+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	// A terminal sends its signals to the child too, the others are handed on.
	signal.Ignore(syscall.SIGINT, syscall.SIGQUIT)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	pid := strconv.Itoa(cmd.Process.Pid)
	if err := errors.Join(mapIDs("newuidmap", pid, me.Uid, uids), mapIDs("newgidmap", pid, me.Gid, gids)); err != nil {
		ours.Close()
		_ = cmd.Wait() // it ends without a byte
		return err
	}
	if _, err := ours.Write([]byte{1}); err != nil {
		return fmt.Errorf("go on in a user namespace: %w", err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	code := cmd.ProcessState.ExitCode()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		code = 128 + int(status.Signal())
	}
	return &exitError{code: code}
}

// failedBefore gives the error of a run that has not begun the exit code of one.
func failedBefore(cmd *cobra.Command, err error) error {
	var exit *exitError
	if err == nil || cmd.Name() != "run" || errors.As(err, &exit) {
		return err
	}
	return &exitError{code: exitRunFailed, err: err}
}

// idRange is a user's subordinate ids.
type idRange struct{ first, count uint64 }

// subordinate reads the first range of the user's in a file as subuid(5) has it.
func subordinate(file string, who *user.User) (idRange, error) {
	f, err := os.Open(file)
	if err == nil {
		defer f.Close()
		r, found, readErr := findRange(f, who.Username, who.Uid)
		if found {
			return r, nil
		}
		err = readErr
	}
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return idRange{}, errors.Join(fmt.Errorf("user %s has no range in %s, which the users of a container without root come from "+
		"(usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %[1]s)", who.Username, file), err)
}

func findRange(r io.Reader, name, id string) (idRange, bool, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) != 3 || fields[0] != name && fields[0] != id {
			continue
		}
		first, err := strconv.ParseUint(fields[1], 10, 32)
		count, err2 := strconv.ParseUint(fields[2], 10, 32)
		if err == nil && err2 == nil && count > 0 {
			return idRange{first, count}, true, nil
		}
	}
	return idRange{}, false, lines.Err()
}

// mapIDs has the set-user-id program newuidmap(1) or newgidmap(1) map the ids of a namespace: 0 is the user.
func mapIDs(program, pid, own string, r idRange) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("husk without root needs %s (apt-get install uidmap): %w", program, err)
	}
	out, err := exec.Command(path, pid, "0", own, "1", "1", strconv.FormatUint(r.first, 10), strconv.FormatUint(r.count, 10)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("map ids: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
