package sys

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// SealProgram copies a program into memory that nobody can change any more (memfd_create(2) with every
// seal). It can be started as /proc/self/fd/N, with the descriptor N that is returned, which this process
// keeps for good.
func SealProgram(path string) (fd int, err error) {
	writable, err := sealedCopy(path)
	if err != nil {
		return -1, fmt.Errorf("seal %s: %w", path, err)
	}
	defer unix.Close(writable)
	// A file that is open for writing cannot be executed.
	fd, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", writable), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("seal %s: %w", path, err)
	}
	return fd, nil
}

func sealedCopy(path string) (int, error) {
	source, err := os.Open(path)
	if err != nil {
		return -1, err
	}
	defer source.Close()
	fd, err := unix.MemfdCreate("program", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, err
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		copied := os.NewFile(uintptr(dup), "program")
		_, err = io.Copy(copied, source)
		copied.Close()
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS,
			unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}
