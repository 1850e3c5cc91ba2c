package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"
)

// virtioBlk is where the driver of virtio-blk disks shows its devices, and takes and lets go of them.
const virtioBlk = "/sys/bus/virtio/drivers/virtio_blk"

// ReleaseDisks takes the driver from every virtio-blk disk and returns what BindDisk knows them by, in the
// order of their places on the bus. The disks must not be in use.
func ReleaseDisks() ([]string, error) {
	links, err := filepath.Glob(virtioBlk + "/virtio*")
	if err != nil {
		return nil, err
	}
	type disk struct{ name, place string }
	var disks []disk
	for _, link := range links {
		place, err := filepath.EvalSymlinks(link)
		if err != nil {
			return nil, fmt.Errorf("release disks: %w", err)
		}
		disks = append(disks, disk{name: filepath.Base(link), place: place})
	}
	sort.Slice(disks, func(i, j int) bool { return disks[i].place < disks[j].place })
	var names []string
	for _, d := range disks {
		if err := os.WriteFile(virtioBlk+"/unbind", []byte(d.name), 0); err != nil {
			return nil, fmt.Errorf("release disk: %w", err)
		}
		names = append(names, d.name)
	}
	return names, nil
}

// BindDisk gives a disk its driver back, which then finds out anew what is behind it.
func BindDisk(name string) error {
	if err := os.WriteFile(virtioBlk+"/bind", []byte(name), 0); err != nil {
		return fmt.Errorf("bind disk: %w", err)
	}
	return nil
}

// ReleaseCard takes the driver from the virtio network card with an interface, which is gone then. What is none is
// left alone.
func ReleaseCard(name string) error {
	device, err := os.Readlink(filepath.Join("/sys/class/net", name, "device"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.WriteFile("/sys/bus/virtio/drivers/virtio_net/unbind", []byte(filepath.Base(device)), 0)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) { // it was unplugged meanwhile
		return fmt.Errorf("release network card: %w", err)
	}
	return nil
}
