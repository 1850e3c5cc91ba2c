package mnt

import (
	"fmt"
	"testing"

	"husk.dev/husk/internal/sys"
)

func TestReturned(t *testing.T) {
	const dir = "/run/husk/share"
	parts := map[string]bool{dir + "/husk": true, dir + "/husk/3": true, dir + "/husk/5": true}
	table := []sys.MountPoint{
		{Device: "0:1", Root: "/", Path: "/", Type: "rootfs"},
		{Device: "0:30", Root: "/", Path: dir + "/husk", Type: "virtiofs"},
		{Device: "0:33", Root: "/", Path: dir + "/husk/3", Type: "virtiofs"},
		{Device: "0:35", Root: "/", Path: dir + "/husk/5", Type: "virtiofs"},
		{Device: "0:36", Root: "/", Path: dir + "/husk/5/of the host", Type: "virtiofs"},
		{Device: "0:37", Root: "/", Path: dir + "/husk/5/memory", Type: "tmpfs"},
		{Device: "0:33", Root: "/etc", Path: dir + "/husk/5/a part", Type: "virtiofs"},
		{Device: "0:33", Root: "/", Path: dir + "/husk/5/all", Type: "virtiofs"},
		{Device: "0:30", Root: "/7", Path: dir + "/husk/5/file", Type: "virtiofs"},
		{Device: "0:33", Root: "/etc", Path: "/elsewhere", Type: "virtiofs"},
	}
	got := ""
	for _, m := range returned(table, dir, func(path string) bool { return parts[path] }) {
		got += fmt.Sprintf("%s on %s\n", m.Source, m.Target)
	}
	want := "husk/3/etc on husk/5/a part\nhusk/3 on husk/5/all\nhusk/7 on husk/5/file\n"
	if got != want {
		t.Errorf("found\n%swant\n%s", got, want)
	}
}
