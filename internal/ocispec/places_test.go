package ocispec

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/sys"
)

func TestPlaces(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"hosts", "data"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("data", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	spec := &specs.Spec{Mounts: []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/dev/shm", Type: "bind", Source: dir, Options: []string{"rbind"}},
		{Destination: "/etc/hosts", Type: "bind", Source: dir + "/hosts", Options: []string{"bind", "ro"}},
		{Destination: "data/", Type: "bind", Source: "link", Options: []string{"rbind"}},
		{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind"}},
		{Destination: "/", Type: "bind", Source: dir},
		{Destination: "/gone", Type: "bind", Source: dir + "/gone"},
	}}
	want := []sys.Place{
		{Path: "/proc"}, {Path: "/dev"}, {Path: "/etc/hosts", Source: dir + "/hosts", ReadOnly: true},
		{Path: "/data", Source: dir + "/data", Recursive: true}, {Path: "/sys"}, {Path: "/gone"},
	}
	if got := Places(dir, spec); !slices.Equal(got, want) {
		t.Errorf("places are %+v\nwant %+v", got, want)
	}
}

func TestEveryDevice(t *testing.T) {
	one := int64(1)
	all := specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"}
	none := specs.LinuxDeviceCgroup{Access: "rwm"}
	for _, c := range []struct {
		rules []specs.LinuxDeviceCgroup
		want  bool
	}{
		{nil, false},
		{[]specs.LinuxDeviceCgroup{all}, true},
		{[]specs.LinuxDeviceCgroup{none, {Allow: true, Type: "a", Access: "rwm"}}, true},
		{[]specs.LinuxDeviceCgroup{all, none}, false},
		{[]specs.LinuxDeviceCgroup{{Allow: true, Access: "r"}}, false},
		{[]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm", Major: &one}}, false},
		{[]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm", Type: "c"}}, false},
	} {
		if got := everyDevice(&specs.LinuxResources{Devices: c.rules}); got != c.want {
			t.Errorf("%+v: %v, want %v", c.rules, got, c.want)
		}
	}
	device := specs.LinuxDevice{Path: "/dev/sda", Type: "b", Major: 8}
	null := specs.LinuxDevice{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}
	p := &Plan{Spec: &specs.Spec{Linux: &specs.Linux{
		Devices: []specs.LinuxDevice{device, null}, Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{all}},
	}}}
	if err := p.planDevices(); err != nil || len(p.Warnings) != 1 || len(p.Spec.Linux.Devices) != 1 || p.Spec.Linux.Devices[0].Path != "/dev/null" {
		t.Errorf("a privileged container has %+v, warnings %q, error %v", p.Spec.Linux.Devices, p.Warnings, err)
	}
}
