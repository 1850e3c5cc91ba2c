package state

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"husk.dev/husk/internal/testenv"
)

// TestRemoveSparesMounts has a user's directory mounted in the container's: Remove must not empty it.
func TestRemoveSparesMounts(t *testing.T) {
	if !testenv.PrivateMounts(t) {
		return
	}
	d := create(t, "c")
	user := t.TempDir()
	if err := os.WriteFile(filepath.Join(user, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	point := d.Path("a share")
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(user, point, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(); err == nil || !strings.Contains(err.Error(), "a share is still mounted") {
		t.Errorf("Remove: %v", err)
	}
	if _, err := os.Stat(filepath.Join(user, "precious")); err != nil {
		t.Fatalf("Remove took a user's file: %v", err)
	}
	if err := syscall.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(); err != nil {
		t.Error(err)
	}
}
