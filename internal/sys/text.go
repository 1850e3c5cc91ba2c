package sys

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ReleaseText takes this program's code and constants out of this process' memory. What is used again is found in the
// page cache; what only a start or a rare request needed is no longer counted, nor held, for it. Pages that differ from
// the file stay.
func ReleaseText() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find program: %w", err)
	}
	table, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("look at memory: %w", err)
	}
	defer table.Close()
	var from, to uint64 // of the mapping that the lines are about; 0 for one to leave alone
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 5 && strings.Contains(fields[0], "-") {
			from, to = 0, 0
			if len(fields) == 6 && fields[5] == program && !strings.Contains(fields[1], "w") {
				first, last, _ := strings.Cut(fields[0], "-")
				from, _ = strconv.ParseUint(first, 16, 64)
				to, _ = strconv.ParseUint(last, 16, 64)
			}
			continue
		}
		if from < to && len(fields) >= 2 && fields[0] == "Private_Dirty:" && fields[1] == "0" {
			if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(from), uintptr(to-from), unix.MADV_DONTNEED); errno != 0 {
				return fmt.Errorf("release memory: %w", errno)
			}
		}
	}
	return lines.Err()
}

// ForgetPages has the kernel forget what it keeps in memory of a file that is on its disk (posix_fadvise(2),
// POSIX_FADV_DONTNEED). What a process has mapped stays.
func ForgetPages(f *os.File) error {
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return fmt.Errorf("forget pages of %s: %w", f.Name(), err)
	}
	return nil
}
