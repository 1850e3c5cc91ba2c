package sys

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Interfaces returns the names of the network interfaces in the network namespace at path.
func Interfaces(path string) ([]string, error) {
	type result struct {
		names []string
		err   error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, in the other namespace
		names, err := interfacesIn(path)
		done <- result{names, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("look into network namespace %s: %w", path, r.err)
	}
	return r.names, nil
}

func interfacesIn(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range interfaces {
		names = append(names, i.Name)
	}
	return names, nil
}

// monitorIDs is the first of the 2^22 user and group ids that monitors run as, one a VM, so that none can
// touch another. Beyond what distributions, systemd's DynamicUser and the usual sub-id ranges give out.
const monitorIDs = 0x60000000

// MonitorID returns the user and group id that belongs to the VM that the calling process owns: 0, to
// keep the caller's own, where this process may not take on another.
func MonitorID() uint32 {
	if os.Geteuid() != 0 {
		return 0
	}
	all, err := os.ReadFile("/proc/self/uid_map")
	if err != nil || strings.Join(strings.Fields(string(all)), " ") != "0 0 4294967295" {
		return 0 // in a user namespace, where those ids may not exist
	}
	return monitorIDs + uint32(os.Getpid())
}

// PrivateMounts makes what happens to the mounts of this process' mount namespace from now on invisible
// outside of it, while mounts made outside still arrive (MS_SLAVE, mount_namespaces(7)).
func PrivateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}
