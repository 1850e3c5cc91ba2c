// Command probe runs in a container of the end-to-end tests and prints what busybox cannot see.
//
//	probe xattr FILE    the user's extended attributes of FILE, sorted, one a line
package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
)

func main() {
	if len(os.Args) != 3 || os.Args[1] != "xattr" {
		fmt.Fprintln(os.Stderr, "usage: probe xattr FILE")
		os.Exit(2)
	}
	if err := attributes(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
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
