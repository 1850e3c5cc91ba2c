// Command testguest is /init of the guest that the drivers' tests boot: it finds the channel to the host
// as the agent does and echoes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"husk.dev/husk/internal/channel"
	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/sys/vsock"
	"husk.dev/husk/internal/vmm/vmmtest/echo"
)

func main() {
	err := run()
	fmt.Println("test guest:", err)
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART) // the monitor ends with the guest
	select {}
}

func run() error {
	for _, m := range []struct{ dir, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if err := sys.LoadModules(); err != nil {
		return err
	}
	if err := console(); err != nil {
		return err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	words := strings.Fields(string(cmdline))
	for _, word := range words {
		switch word {
		case "husktest.panic":
			return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
		case "husktest.poweroff":
			return syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
		case "husktest.garbage":
			return garbage()
		case "husktest.chatter":
			go chatter()
		case "husktest.devices":
			printDevices()
		case "husktest.watch":
			go watchDisks()
		}
	}
	fmt.Println(echo.ConsoleMark)
	for _, word := range words {
		switch word {
		case "husk.channel=vsock":
			l, err := vsock.Listen(echo.Port)
			if err != nil {
				return err
			}
			return echo.ServeListener(l)
		case "husk.channel=serial":
			return serial()
		}
	}
	return fmt.Errorf("no husk.channel in %q", cmdline)
}

// console makes the console standard output: when init starts its driver may not have found it yet.
func console() error {
	var err error
	for range 500 {
		var f *os.File
		if f, err = os.OpenFile("/dev/hvc0", os.O_WRONLY, 0); err == nil {
			os.Stdout, os.Stderr = f, f
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

func serial() error {
	port, err := open()
	if err != nil {
		return err
	}
	s, err := channel.NewServer(port)
	if err != nil {
		return err
	}
	return echo.Serve(context.Background(), s)
}

// garbage says nothing that the host understands, for ever.
func garbage() error {
	port, err := open()
	if err != nil {
		return err
	}
	noise := []byte(strings.Repeat("\xff\x00garbage", 1<<10))
	for {
		if _, err := port.Write(noise); err != nil {
			return err
		}
	}
}

// chatter fills a console that nobody reads.
func chatter() {
	line := strings.Repeat("chatter ", 512)
	for {
		fmt.Println(line)
	}
}

// open opens the port by its name, once its driver has made it.
func open() (*os.File, error) {
	for range 500 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if text, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(text)) == "husk.agent" {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(name)), os.O_RDWR, 0)
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, errors.New("no virtio port named husk.agent")
}

// printDevices lists the disks and shares, one a line: name, serial or tag, size in bytes, read-only flag.
func printDevices() {
	blocks, _ := filepath.Glob("/sys/block/[vp][dm]*")
	for _, dir := range blocks {
		read := func(name string) string {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				return "-"
			}
			return strings.TrimSpace(string(text))
		}
		base := filepath.Base(dir)
		fmt.Printf("disk %s serial %s sectors %s ro %s starts %q\n", base, read("serial"), read("size"), read("ro"), head("/dev/"+base))
	}
	for _, tag := range []string{"rootfs", "volumes"} {
		dir := "/mnt-" + tag
		if os.Mkdir(dir, 0o755) != nil || syscall.Mount(tag, dir, "virtiofs", 0, "") != nil {
			continue
		}
		text, err := os.ReadFile(dir + "/hello")
		fmt.Printf("share %s holds %q %v\n", tag, text, err)
	}
}

// watchDisks tells of each virtio-blk disk that comes, and goes, once it has read and written it.
func watchDisks() {
	there := map[string]string{} // serials by names
	for ; ; time.Sleep(10 * time.Millisecond) {
		now := map[string]bool{}
		blocks, _ := filepath.Glob("/sys/block/vd*")
		for _, dir := range blocks {
			base := filepath.Base(dir)
			serial, err := os.ReadFile(dir + "/serial")
			if err != nil {
				continue
			}
			now[base] = true
			if there[base] == "" {
				there[base] = strings.TrimSpace(string(serial))
				readOnly, _ := os.ReadFile(dir + "/ro")
				fmt.Printf("came %s ro %s starts %q\n", there[base], strings.TrimSpace(string(readOnly)), head("/dev/"+base))
			}
		}
		for base, serial := range there {
			if !now[base] {
				fmt.Printf("went %s\n", serial)
				delete(there, base)
			}
		}
	}
}

// head is the first bytes of a device, after it was asked to take some others.
func head(device string) string {
	if f, err := os.OpenFile(device, os.O_WRONLY|syscall.O_SYNC, 0); err == nil {
		_, _ = f.WriteAt([]byte("written by guest"), 512)
		f.Close()
	}
	f, err := os.Open(device)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	first := make([]byte, 8)
	if _, err := f.Read(first); err != nil {
		return err.Error()
	}
	return string(first)
}
