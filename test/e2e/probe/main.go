// Command probe runs in a container of the end-to-end tests and does what busybox cannot.
//
//	probe xattr FILE            the user's extended attributes of FILE, sorted, one a line
//	probe serve PORT            sends back what comes by TCP and UDP, for ever; prints "serving"
//	probe tcp ADDRESS BYTES     sends random bytes and checks that they come back
//	probe udp ADDRESS BYTES     the same in one datagram, sent again each second until an answer comes
//	probe lock FILE             takes FILE's lock and keeps it; prints "locked", or "busy" where somebody else has it
//	probe watch DIR FILE        prints "watching", and what is in DIR/FILE whenever something was renamed in DIR, see inotify(7)
//	probe random                what the kernel gave this process that no other should have
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	args := append(os.Args[1:], "", "", "")
	verbs := map[string]func(string, string) error{
		"xattr":  func(file, _ string) error { return attributes(file) },
		"serve":  func(port, _ string) error { return serve(port) },
		"tcp":    func(address, bytes string) error { return exchange("tcp", address, bytes) },
		"lock":   func(file, _ string) error { return lock(file) },
		"watch":  watch,
		"random": func(string, string) error { return random() },
		"udp":    func(address, bytes string) error { return exchange("udp", address, bytes) },
	}
	verb := verbs[args[0]]
	if verb == nil {
		fmt.Fprintln(os.Stderr, "usage: probe xattr FILE | serve PORT | tcp ADDRESS BYTES | udp ADDRESS BYTES | lock FILE | watch DIR FILE | random")
		os.Exit(2)
	}
	if err := verb(args[1], args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// lock takes a lock of flock(2) and keeps it until somebody kills this process.
func lock(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		fmt.Println("busy")
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	fmt.Println("locked")
	time.Sleep(time.Hour)
	return nil
}

// watch follows a directory as a program does that reads its configuration anew, for ever.
func watch(dir, file string) error {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_MOVED_TO); err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	fmt.Println("watching")
	for {
		if _, err := syscall.Read(fd, make([]byte, 4096)); err != nil {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
		data, err := os.ReadFile(filepath.Join(dir, file))
		fmt.Printf("%s %v\n", data, err)
	}
}

func attributes(file string) error {
	list := make([]byte, 64<<10)
	n, err := syscall.Listxattr(file, list)
	if err != nil {
		return fmt.Errorf("list attributes of %s: %w", file, err)
	}
	names := strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := syscall.Getxattr(file, name, value)
		if err != nil {
			return fmt.Errorf("read attribute %s of %s: %w", name, file, err)
		}
		fmt.Printf("%s=%q\n", name, value[:n])
	}
	return nil
}
