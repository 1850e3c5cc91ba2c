package sys

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ThisNetwork opens the network namespace of the calling thread, and keeps it in being.
func ThisNetwork() (*os.File, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return f, nil
}

// InNetwork calls f on a thread of its own in the network namespace at path. What f opens there stays there.
func InNetwork(path string, f func() error) error {
	done := make(chan error, 1)
	OwnThread(func() { done <- enterNetwork(path, f) })
	return <-done
}

// InNewNetwork calls f on a thread of its own in a network namespace of its own, which lasts for as long as something
// that f opened there.
func InNewNetwork(f func() error) error {
	done := make(chan error, 1)
	OwnThread(func() {
		err := newNetwork("")
		if err == nil {
			err = f()
		}
		done <- err
	})
	return <-done
}

func enterNetwork(path string, f func() error) error {
	ns, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // what is a pipe must not hold us up
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return f()
}

// InIPC calls f on a thread of its own in the IPC namespace at path.
func InIPC(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("enter IPC namespace: %w", err)
	}
	defer ns.Close()
	done := make(chan error, 1)
	OwnThread(func() {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWIPC); err != nil {
			done <- fmt.Errorf("enter IPC namespace %s: %w", path, err)
			return
		}
		done <- f()
	})
	return <-done
}

// AsUser calls f with uid as the effective user of the calling thread alone. The goroutine must be locked to it, as f of InIPC is.
func AsUser(uid int, f func() error) error {
	become := func(uid int) error {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			return fmt.Errorf("become user %d: %w", uid, errno)
		}
		return nil
	}
	before := os.Geteuid()
	if err := become(uid); err != nil {
		return err
	}
	return errors.Join(f(), become(before))
}

// SameNetwork tells whether two files are the same network namespace.
func SameNetwork(a, b string) (bool, error) {
	one, err := os.Stat(a)
	if err != nil {
		return false, fmt.Errorf("look at network namespace: %w", err)
	}
	other, err := os.Stat(b)
	if err != nil {
		return false, fmt.Errorf("look at network namespace: %w", err)
	}
	return os.SameFile(one, other), nil
}

// Interfaces returns the names of the network interfaces in the network namespace at path.
func Interfaces(path string) ([]string, error) {
	var names []string
	err := InNetwork(path, func() error {
		interfaces, err := net.Interfaces()
		for _, i := range interfaces {
			names = append(names, i.Name)
		}
		return err
	})
	return names, err
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

// InMountNamespace calls f where the files are those of the mount namespace that path names. It does so on a thread
// of its own, which no other goroutine ever runs on: f must not hand its work to others.
func InMountNamespace(path string, f func() error) error {
	done := make(chan error, 1)
	OwnThread(func() {
		err := JoinMounts(path)
		if err == nil {
			err = f()
		}
		done <- err
	})
	return <-done
}

// JoinMounts puts the calling thread, which its goroutine is locked to for good, into the mount namespace at path.
func JoinMounts(path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open mount namespace: %w", err)
	}
	defer ns.Close()
	// A thread that shares its root and directory with others cannot change the namespace they are in.
	err = unix.Unshare(unix.CLONE_FS)
	if err == nil {
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
	}
	if err != nil {
		return fmt.Errorf("enter mount namespace %s: %w", path, err)
	}
	return nil
}
