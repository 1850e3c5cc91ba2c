package vmmtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"husk.dev/husk/internal/testenv"
)

// Guest returns a kernel and an initrd that echoes, for drivers that boot VMs. It skips tests that
// should not. The kernel is HUSK_TEST_KERNEL, else the one that the build made.
func Guest(t testing.TB) (kernel, initrd string) {
	t.Helper()
	testenv.NeedVM(t)
	kernel = os.Getenv("HUSK_TEST_KERNEL")
	if kernel == "" {
		kernel = filepath.Join(repository(t), "build/lib/husk/guest/vmlinux")
	}
	if _, err := os.Stat(kernel); err != nil {
		t.Fatalf("no guest kernel (run make, or set HUSK_TEST_KERNEL): %v", err)
	}
	image, err := guestImage()
	if err != nil {
		t.Fatal(err)
	}
	initrd = filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(initrd, image, 0o644); err != nil {
		t.Fatal(err)
	}
	return kernel, initrd
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
	binary := filepath.Join(dir, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", binary, "husk.dev/husk/internal/vmm/vmmtest/testguest")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the test guest: %w\n%s", err, out)
	}
	init, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	var image bytes.Buffer
	cpioEntry(&image, 1, "init", 0o100755, init)
	cpioEntry(&image, 2, "dev", 0o040755, nil)
	cpioEntry(&image, 0, "TRAILER!!!", 0, nil)
	return image.Bytes(), nil
})

// cpioEntry appends one file in the "newc" format of cpio(5): 13 numbers of 8 hexadecimal digits after
// the magic, then name and data, each padded to 4 bytes.
func cpioEntry(b *bytes.Buffer, inode int, name string, mode int, data []byte) {
	fields := []int{inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0}
	b.WriteString("070701")
	for _, f := range fields {
		fmt.Fprintf(b, "%08x", f)
	}
	b.WriteString(name)
	b.WriteByte(0)
	pad(b)
	b.Write(data)
	pad(b)
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
