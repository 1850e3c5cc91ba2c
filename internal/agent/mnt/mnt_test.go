package mnt

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	agentv1 "husk.dev/husk/api/agent/v1"
)

func TestBlockBySerial(t *testing.T) {
	dir := t.TempDir()
	for name, serial := range map[string]string{"vda": "root", "vdb": "upper\n", "vdaa": "full-twenty-bytes-20", "sda": "other"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "serial"), []byte(serial), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "vdc"), 0o755); err != nil { // a disk without a serial
		t.Fatal(err)
	}
	for serial, want := range map[string]string{
		"root": "/dev/vda", "upper": "/dev/vdb", "full-twenty-bytes-20": "/dev/vdaa", "other": "", "up": "", "": "",
	} {
		if got := blockBySerial(dir, serial); got != want {
			t.Errorf("%q: %q, want %q", serial, got, want)
		}
	}
}

func TestAssembleRefuses(t *testing.T) {
	share := t.TempDir()
	if err := os.WriteFile(filepath.Join(share, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	table := NewTable(t.TempDir(), share, t.TempDir())
	ok := &agentv1.Disk{Serial: "a", Filesystem: "erofs"}
	many := uint32(1 << 20)
	for name, root := range map[string]*agentv1.Rootfs{
		"nil":             nil,
		"empty":           {},
		"both":            {Path: share + "/x", Lower: []*agentv1.Disk{ok}},
		"elsewhere":       {Path: "/etc"},
		"the share":       {Path: share},
		"dots":            {Path: share + "/../x"},
		"slash":           {Path: share + "/x/"},
		"file":            {Path: share + "/file"},
		"many":            {Lower: make([]*agentv1.Disk, maxLowers+1)},
		"file system":     {Lower: []*agentv1.Disk{{Serial: "a", Filesystem: "proc"}}},
		"serial":          {Lower: []*agentv1.Disk{{Serial: "../../x", Filesystem: "ext4"}}},
		"no serial":       {Lower: []*agentv1.Disk{{Filesystem: "ext4"}}},
		"pmem number":     {Lower: []*agentv1.Disk{{Pmem: &many, Filesystem: "erofs"}}},
		"disk and path":   {Path: share + "/x", Whole: ok},
		"disk and layers": {Lower: []*agentv1.Disk{ok}, Whole: ok},
		"disk and upper":  {Upper: ok, Whole: ok},
		"disk of nothing": {Whole: &agentv1.Disk{Serial: "a", Filesystem: "xfs"}},
		"data of ext4":    {Whole: &agentv1.Disk{Serial: "a", Filesystem: "ext4", Data: []string{"b"}}},
		"much data":       {Whole: &agentv1.Disk{Serial: "a", Filesystem: "erofs", Data: make([]string, maxLowers+1)}},
		"long serial":     {Lower: []*agentv1.Disk{{Serial: "twenty-one-bytes-long", Filesystem: "ext4"}}},
	} {
		if got, err := table.Assemble(t.Context(), root); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v, want ErrInvalid", name, got, err)
		}
	}
	if left, err := os.ReadDir(table.dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	root, err := table.Assemble(t.Context(), &agentv1.Rootfs{Path: mkdir(t, share, "good")})
	if err != nil || root.Path != filepath.Join(share, "good") {
		t.Errorf("%v, %v", root, err)
	}
}

func mkdir(t *testing.T, parent, name string) string {
	t.Helper()
	path := filepath.Join(parent, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestShareTags(t *testing.T) {
	table := NewTable(t.TempDir(), t.TempDir(), t.TempDir())
	for _, tag := range []string{"", ".", "..", "a/b", "-a", "a b", "0123456789012345678901234567890123456"} {
		if err := table.Shares([]string{tag}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", tag, err)
		}
	}
}
