// Package child starts processes that must not outlive the one that started them.
package child

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"husk.dev/husk/internal/sys"
)

// request asks the starter thread to start one command.
type request struct {
	cmd    *exec.Cmd
	answer chan<- error
}

// starter hands commands to the one thread that forks. The kernel ties the parent death signal to the
// thread that forked, not to its process, and Go ends threads as it likes; this one it never ends.
var starter = sync.OnceValue(func() chan<- request {
	requests := make(chan request)
	go func() {
		runtime.LockOSThread()
		for r := range requests {
			r.answer <- start(r.cmd)
		}
	}()
	return requests
})

func start(cmd *exec.Cmd) error {
	if err := closeOnExec(); err != nil {
		return err
	}
	return cmd.Start()
}

// closeOnExec keeps from children what this process itself was started with: files that Go opens are
// closed by exec, files that it inherited are not.
func closeOnExec() error {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	for _, entry := range open {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// Start starts cmd like cmd.Start, and has the kernel kill its process with SIGKILL when this process
// ends, however it ends. The command gets the namespaces and credentials of the process, not those
// that the calling goroutine may have given its own thread, and no open file but its standard ones and
// cmd.ExtraFiles. The signal does not reach the command's
// own children, and a set-user-ID program loses it.
func Start(cmd *exec.Cmd) error {
	tie(cmd)
	answer := make(chan error, 1)
	starter() <- request{cmd: cmd, answer: answer}
	return <-answer
}

// StartPrepared is Start from a thread made for cmd alone, on which prepare runs first: what that does to the
// thread, cmd inherits. The thread lives until gone is closed, which must be after cmd has ended, for its
// end would be cmd's.
func StartPrepared(cmd *exec.Cmd, prepare func() error, gone <-chan struct{}) error {
	tie(cmd)
	answer := make(chan error, 1)
	sys.OwnThread(func() {
		err := prepare()
		if err == nil {
			err = start(cmd)
		}
		answer <- err
		if err == nil {
			<-gone
		}
	})
	return <-answer
}

func tie(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
}
