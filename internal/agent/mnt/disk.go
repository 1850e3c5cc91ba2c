// Package mnt mounts what containers are made of: disks, shares and the overlays over them.
package mnt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// deviceWait bounds how long a disk may take to appear after it was plugged.
const deviceWait = 10 * time.Second

var (
	// ErrInvalid is matched by requests that cannot be right, whatever the guest has.
	ErrInvalid = errors.New("invalid mount")
	// ErrNoDevice is matched by disks that do not appear.
	ErrNoDevice = errors.New("no such device")
)

// maxSerial is how long the serial number of a virtio-blk disk may be (VIRTIO_BLK_ID_BYTES).
const maxSerial = 20

// named tells whether s is 1 to most letters, digits, '_', '.' and '-'. (A regular expression takes an
// emulated guest 20 ms to compile.)
func named(s string, most int) bool {
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '.', c == '-':
		default:
			return false
		}
	}
	return len(s) >= 1 && len(s) <= most
}

// fileName tells whether s is named, at most maxTag long, and begins like no hidden file and no option.
func fileName(s string) bool { return named(s, maxTag) && s[0] != '.' && s[0] != '-' }

// filesystems are what a disk may hold. The kernel would try to read anything as whatever it is told.
var filesystems = map[string]bool{"erofs": true, "ext4": true}

// findDevice returns the device node of a disk once it is there.
func findDevice(ctx context.Context, d *agentv1.Disk) (string, error) {
	look := func() string { return blockBySerial("/sys/block", d.GetSerial()) }
	name := "disk " + d.GetSerial()
	switch {
	case d.Pmem != nil && d.GetPmem() < 1024:
		node := "/dev/pmem" + strconv.Itoa(int(d.GetPmem()))
		look, name = func() string { return node }, node
	case d.Pmem != nil || !named(d.GetSerial(), maxSerial):
		return "", fmt.Errorf("disk %q: %w", d.GetSerial(), ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(ctx, deviceWait)
	defer cancel()
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if node := look(); node != "" {
			if _, err := os.Stat(node); err == nil {
				return node, nil
			}
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return "", fmt.Errorf("%s: %w", name, ErrNoDevice)
		}
	}
}

// BlockNumber returns the device number of the disk with a serial number once it is there.
func BlockNumber(ctx context.Context, serial string) (uint64, error) {
	node, err := findDevice(ctx, &agentv1.Disk{Serial: serial})
	if err != nil {
		return 0, err
	}
	var st syscall.Stat_t
	if err := syscall.Stat(node, &st); err != nil {
		return 0, fmt.Errorf("look at disk %s: %w", serial, err)
	}
	return st.Rdev, nil
}

// blockBySerial returns the node of the virtio-blk disk with the serial number, or "".
func blockBySerial(dir, serial string) string {
	disks, _ := filepath.Glob(filepath.Join(dir, "vd*")) // fails on bad patterns only
	for _, disk := range disks {
		text, err := os.ReadFile(filepath.Join(disk, "serial"))
		if err == nil && strings.TrimRight(string(text), "\n\x00") == serial {
			return "/dev/" + filepath.Base(disk)
		}
	}
	return ""
}

// mountDisk mounts a disk on the directory dir.
func mountDisk(ctx context.Context, d *agentv1.Disk, dir string, readonly bool) error {
	if !filesystems[d.GetFilesystem()] {
		return fmt.Errorf("file system %q: %w", d.GetFilesystem(), ErrInvalid)
	}
	if len(d.GetData()) > maxLowers || len(d.GetData()) > 0 && d.GetFilesystem() != "erofs" {
		return fmt.Errorf("disk %q with %d further ones: %w", d.GetSerial(), len(d.GetData()), ErrInvalid)
	}
	node, err := findDevice(ctx, d)
	if err != nil {
		return err
	}
	var flags uintptr
	if readonly {
		flags |= syscall.MS_RDONLY
	}
	var options []string
	if d.GetDax() {
		options = append(options, "dax=always")
	}
	for _, serial := range d.GetData() {
		data, err := findDevice(ctx, &agentv1.Disk{Serial: serial})
		if err != nil {
			return err
		}
		options = append(options, "device="+data)
	}
	if err := syscall.Mount(node, dir, d.GetFilesystem(), flags, strings.Join(options, ",")); err != nil {
		return fmt.Errorf("mount %s (%s) from %s: %w", node, d.GetSerial(), d.GetFilesystem(), err)
	}
	return nil
}
