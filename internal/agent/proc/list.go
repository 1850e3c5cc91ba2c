package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ticks is USER_HZ, in which /proc counts time: 100 on every architecture.
const ticks = 100

// maxCommand bounds a command line, in bytes: a process can make its own as long as it likes.
const maxCommand = 4096

// Info is what /proc tells of a process, see proc(5).
type Info struct {
	PID, Parent int
	UID         uint32
	Command     string // arguments joined by spaces, or [name] without any
	Started     time.Time
	CPU         time.Duration
	TTY         string // "pts/0", "?" without one
}

// Read returns what /proc in dir tells of pid. booted is when the kernel started.
func Read(dir string, pid int, booted time.Time) (Info, error) {
	base := filepath.Join(dir, strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(base, "stat"))
	if err != nil {
		return Info{}, fmt.Errorf("read process %d: %w", pid, gone(err))
	}
	info, err := parseStat(string(stat), booted)
	if err != nil {
		return Info{}, fmt.Errorf("read process %d: %w", pid, err)
	}
	cmdline, err := readBounded(filepath.Join(base, "cmdline"), maxCommand)
	if err != nil {
		return Info{}, fmt.Errorf("read process %d: %w", pid, gone(err))
	}
	if args := strings.TrimRight(string(cmdline), "\x00"); args != "" {
		info.Command = strings.ToValidUTF8(strings.ReplaceAll(args, "\x00", " "), "?")
	}
	var st syscall.Stat_t // the owner of a process' directory is its effective user
	if err := syscall.Stat(base, &st); err != nil {
		return Info{}, fmt.Errorf("read process %d: %w", pid, gone(err))
	}
	info.UID = st.Uid
	return info, nil
}

// gone makes the error of a process that ended meanwhile match os.ErrNotExist.
func gone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrNotExist
	}
	return err
}

func readBounded(path string, limit int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, limit)
	n, err := f.Read(buf)
	if n > 0 || err == nil || err.Error() == "EOF" {
		return buf[:n], nil
	}
	return nil, err
}

// parseStat reads a line of /proc/PID/stat. The name is in parentheses and may hold any character, so the
// fields after it are counted from the last one.
func parseStat(line string, booted time.Time) (Info, error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 1 || end < open {
		return Info{}, errors.New("malformed stat")
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 20 {
		return Info{}, errors.New("malformed stat")
	}
	number := func(field int) int64 { // fields by their number in proc(5); 3 is the first after the name
		n, _ := strconv.ParseInt(fields[field-3], 10, 64)
		return n
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line[:open]))
	if err != nil {
		return Info{}, errors.New("malformed stat")
	}
	return Info{
		PID:     pid,
		Parent:  int(number(4)),
		Command: "[" + strings.ToValidUTF8(line[open+1:end], "?") + "]",
		TTY:     ttyName(uint64(number(7))),
		CPU:     time.Duration(number(14)+number(15)) * time.Second / ticks,
		Started: booted.Add(time.Duration(number(22)) * time.Second / ticks),
	}, nil
}

// ttyName names a terminal by its device number: pts/N for the Unix98 ones (majors 136 to 143).
func ttyName(device uint64) string {
	major := device >> 8 & 0xfff
	minor := device&0xff | device>>12&0xfff00
	switch {
	case device == 0:
		return "?"
	case major >= 136 && major <= 143:
		return "pts/" + strconv.FormatUint((major-136)<<8+minor, 10)
	default:
		return fmt.Sprintf("%d:%d", major, minor)
	}
}

// MemInfo returns MemTotal and MemTotal - MemAvailable of a /proc/meminfo, in KiB.
func MemInfo(text []byte) (total, used uint64) {
	field := func(name string) uint64 {
		for line := range bytes.Lines(text) {
			if rest, found := bytes.CutPrefix(line, []byte(name+":")); found {
				value, _, _ := strings.Cut(strings.TrimSpace(string(rest)), " ")
				n, _ := strconv.ParseUint(value, 10, 64)
				return n
			}
		}
		return 0
	}
	total = field("MemTotal")
	if available := field("MemAvailable"); available < total {
		used = total - available
	}
	return total, used
}

// ResidentKiB returns the resident memory of this process.
func ResidentKiB() uint64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(fields[1], 10, 64)
	return pages * uint64(os.Getpagesize()) / 1024
}
