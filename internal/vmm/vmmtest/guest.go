package vmmtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"husk.dev/husk/internal/assets"
	"husk.dev/husk/internal/testenv"
)

// Guest returns a kernel and an initrd that echoes, for drivers that boot VMs. It skips tests that
// should not. The kernel is HUSK_TEST_KERNEL, else the one that the build made.
func Guest(t testing.TB) (kernel, initrd string) {
	t.Helper()
	testenv.NeedVM(t)
	kernel = os.Getenv("HUSK_TEST_KERNEL")
	image, err := guestImage()
	if err == nil && kernel == "" {
		kernel, image, err = builtKernel(filepath.Join(repository(t), "build/lib/husk/guest"), image)
	}
	if err != nil {
		t.Fatal(err)
	}
	initrd = filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, image, 0o644); err != nil {
		t.Fatal(err)
	}
	return kernel, initrd
}

// builtKernel is the kernel that the build made. Where that needs modules, the image it goes with is put before the
// given one, whose files take the place of those of the same name.
func builtKernel(dir string, image []byte) (kernel string, whole []byte, err error) {
	built, err := assets.Find(dir)
	if err != nil || built.Kind != "distro" {
		return built.Kernel, image, err
	}
	modules, err := os.ReadFile(built.Initrd)
	if err != nil {
		return "", nil, err
	}
	modules = append(modules, make([]byte, -len(modules)&3)...) // an archive begins at a multiple of 4 bytes
	return built.Kernel, append(modules, image...), nil
}

// repository is where the module's files are.
func repository(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
	}
	t.Fatal("not in the module's directory")
	return ""
}

// guestImage builds the test guest once and packs it.
var guestImage = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "testguest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	binary, err := testenv.Program(dir, "husk.dev/husk/internal/vmm/vmmtest/testguest")
	if err != nil {
		return nil, err
	}
	init, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	var image bytes.Buffer
	cpioEntry(&image, cpioFile{name: "init", mode: 0o100755, data: init})
	cpioEntry(&image, cpioFile{name: "dev", mode: 0o040755})
	// The kernel may start init before it has a console, without any open file. Go's runtime then
	// opens /dev/null in their place, or gives up.
	cpioEntry(&image, cpioFile{name: "dev/null", mode: 0o020666, major: 1, minor: 3})
	cpioEntry(&image, cpioFile{name: "TRAILER!!!"})
	return image.Bytes(), nil
})

// cpioFile is one entry of an initrd: a file, a directory or a device.
type cpioFile struct {
	name         string
	mode         int
	major, minor int
	data         []byte
}

// cpioEntry appends f in the "newc" format of cpio(5): 13 numbers of 8 hexadecimal digits after the
// magic, then name and data, each padded to 4 bytes.
func cpioEntry(b *bytes.Buffer, f cpioFile) {
	// inode, mode, uid, gid, links, time, size, device, device of the node, length of the name, checksum
	numbers := []int{0, f.mode, 0, 0, 1, 0, len(f.data), 0, 0, f.major, f.minor, len(f.name) + 1, 0}
	b.WriteString("070701")
	for _, n := range numbers {
		fmt.Fprintf(b, "%08x", n)
	}
	b.WriteString(f.name)
	b.WriteByte(0)
	pad(b)
	b.Write(f.data)
	pad(b)
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
