package shim

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	bootstrap "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/mount"
	"google.golang.org/protobuf/proto"
)

// erofs is a layer as containerd's snapshotter has it.
func erofs(n string, options ...string) mount.Mount {
	return mount.Mount{Type: "erofs", Source: "/s/" + n + "/layer.erofs", Options: append([]string{"ro", "loop"}, options...)}
}

func layer(n string) rootImage {
	return rootImage{source: "/s/" + n + "/layer.erofs", filesystem: "erofs", readOnly: true}
}

func overlay(options ...string) mount.Mount {
	return mount.Mount{Type: "format/mkdir/overlay", Source: "overlay", Options: options}
}

func TestPlanRoot(t *testing.T) {
	block := mount.Mount{Type: "ext4", Source: "/s/9/rwlayer.img", Options: []string{"rw", "loop"}}
	upper := rootImage{source: "/s/9/rwlayer.img", filesystem: "ext4"}
	for name, c := range map[string]struct {
		mounts []mount.Mount
		want   rootPlan
	}{
		"blockfile": {
			[]mount.Mount{{Type: "ext4", Source: "/b/snapshots/7", Options: []string{"loop", "rw"}}},
			rootPlan{whole: &rootImage{source: "/b/snapshots/7", filesystem: "ext4"}},
		},
		"a view of blockfile": {
			[]mount.Mount{{Type: "ext4", Source: "/b/snapshots/7", Options: []string{"loop", "ro"}}},
			rootPlan{whole: &rootImage{source: "/b/snapshots/7", filesystem: "ext4", readOnly: true}, readOnly: true},
		},
		"device mapper": {
			[]mount.Mount{{Type: "ext4", Source: "/dev/mapper/pool-snap-3", Options: []string{"discard"}}},
			rootPlan{whole: &rootImage{source: "/dev/mapper/pool-snap-3", filesystem: "ext4"}},
		},
		"one layer": {
			[]mount.Mount{erofs("1")},
			rootPlan{whole: &rootImage{source: "/s/1/layer.erofs", filesystem: "erofs", readOnly: true}, readOnly: true},
		},
		"layers, what is written in a directory": {
			[]mount.Mount{erofs("3"), erofs("2"), erofs("1"), overlay("workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir={{ overlay 0 2 }}", "index=off")},
			rootPlan{lower: []rootImage{layer("1"), layer("2"), layer("3")}, upperDir: "/s/9/fs", workDir: "/s/9/work"},
		},
		"a layer, what is written in an image": {
			[]mount.Mount{block, erofs("1"), overlay(
				"X-containerd.mkdir.path={{ mount 0 }}/upper:0755", "X-containerd.mkdir.path={{ mount 0 }}/work:0755",
				"workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper", "lowerdir={{ mount 1 }}",
			)},
			rootPlan{lower: []rootImage{layer("1")}, upper: &upper},
		},
		"a view of layers": {
			[]mount.Mount{erofs("2"), erofs("1"), overlay("lowerdir={{ overlay 0 1 }}")},
			rootPlan{lower: []rootImage{layer("1"), layer("2")}, readOnly: true},
		},
		"one layer, bound": {
			[]mount.Mount{erofs("1"), {Type: "format/bind", Source: "{{ mount 0 }}", Options: []string{"ro", "rbind"}}},
			rootPlan{whole: &rootImage{source: "/s/1/layer.erofs", filesystem: "erofs", readOnly: true}, readOnly: true},
		},
		"layers merged by their metadata": {
			[]mount.Mount{erofs("m", "device=/s/1/layer.erofs", "device=/s/2/layer.erofs"), overlay("workdir=/w", "upperdir=/u", "lowerdir={{ mount 0 }}")},
			rootPlan{
				lower:    []rootImage{{source: "/s/m/layer.erofs", filesystem: "erofs", readOnly: true, data: []string{"/s/1/layer.erofs", "/s/2/layer.erofs"}}},
				upperDir: "/u", workDir: "/w",
			},
		},
	} {
		got, err := planRoot(c.mounts)
		if err != nil || !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

// TestPlanRootRefuses: what a guest cannot mount just so is none of its disks. The words say what was in the way.
func TestPlanRootRefuses(t *testing.T) {
	ext4 := func(source string, options ...string) []mount.Mount {
		return []mount.Mount{{Type: "ext4", Source: source, Options: options}}
	}
	for name, c := range map[string]struct {
		mounts []mount.Mount
		says   string
	}{
		"nothing":             {nil, "no mounts"},
		"overlayfs":           {[]mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/a:/b"}}}, "overlay"},
		"native":              {[]mount.Mount{{Type: "bind", Source: "/n/1", Options: []string{"rbind", "rw"}}}, "bind"},
		"another file system": {[]mount.Mount{{Type: "xfs", Source: "/dev/dm-1"}}, "xfs"},
		"relative":            {ext4("snapshots/7"), "snapshots/7"},
		"up and away":         {ext4("/b/../etc/shadow"), "/b/../etc/shadow"},
		"no source":           {ext4(""), `""`},
		"zero byte":           {ext4("/b/7\x00"), "path"},
		"template in source":  {ext4("{{ mount 0 }}"), "mount 0"},
		"unknown option":      {ext4("/b/7", "loop", "data=journal"), "data=journal"},
		"options in one":      {ext4("/b/7", "rw,dax=always"), "dax"},
		"a device of ext4":    {ext4("/b/7", "device=/dev/sda"), "/dev/sda"},
		"relative data":       {[]mount.Mount{erofs("1", "device=etc/shadow")}, "etc/shadow"},
		"a target":            {[]mount.Mount{{Type: "ext4", Source: "/b/7", Target: "/etc"}}, "/etc"},
		"owners mapped":       {[]mount.Mount{erofs("1"), overlay("uidmap=0:1000:65536", "lowerdir={{ mount 0 }}")}, "uidmap"},
		"a layer of the host": {[]mount.Mount{erofs("1"), overlay("lowerdir={{ mount 0 }}:/etc")}, "/etc"},
		"a layer too many":    {[]mount.Mount{erofs("1"), overlay("lowerdir={{ mount 1 }}")}, "mount 1"},
		"layers backwards":    {[]mount.Mount{erofs("1"), overlay("lowerdir={{ overlay 5 0 }}")}, "overlay 5 0"},
		"a number too large":  {[]mount.Mount{erofs("1"), overlay("lowerdir={{ mount 99999999999999999999 }}")}, "mount"},
		"a program":           {[]mount.Mount{erofs("1"), overlay(`lowerdir={{ printf "/etc" }}`)}, "printf"},
		"an image too many":   {[]mount.Mount{erofs("2"), erofs("1"), overlay("lowerdir={{ mount 0 }}")}, "no part"},
		"upper in a layer":    {[]mount.Mount{erofs("1"), overlay("lowerdir={{ mount 0 }}", "upperdir={{ mount 0 }}/upper", "workdir={{ mount 0 }}/work")}, "upper"},
		"upper alone":         {[]mount.Mount{erofs("1"), overlay("lowerdir={{ mount 0 }}", "upperdir=/u")}, `""`},
		"relative upper":      {[]mount.Mount{erofs("1"), overlay("lowerdir={{ mount 0 }}", "upperdir=u", "workdir=/w")}, `"u"`},
		"another transform":   {[]mount.Mount{erofs("1"), {Type: "mkfs/overlay", Options: []string{"lowerdir={{ mount 0 }}"}}}, "mkfs"},
		"a part of an image":  {append(ext4("/b/7"), mount.Mount{Type: "format/mkdir/bind", Source: "{{ mount 0 }}/upper"}), "upper"},
		"zero byte in option": {[]mount.Mount{erofs("1"), overlay("lowerdir=\x000")}, "zero byte"},
	} {
		got, err := planRoot(c.mounts)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %+v, %v, want an error about %q", name, got, err, c.says)
		}
	}
	if _, err := planRoot([]mount.Mount{erofs("1", "X-containerd.dmverity=/s/1/.dmverity")}); !errors.Is(err, errVerity) {
		t.Errorf("a layer that is to be checked: %v", err)
	}
}

// TestOwnMounts: containerd is told which mounts to leave to the shim, in the forms of its versions.
func TestOwnMounts(t *testing.T) {
	var out bytes.Buffer
	p := Program{Version: "1", In: strings.NewReader(""), Out: &out}
	if err := p.answer(&bootstrap.BootstrapParams{}, "unix:///s"); err != nil {
		t.Fatal(err)
	}
	var result bootstrap.BootstrapResult
	var own types.MountCapabilities
	err := proto.Unmarshal(out.Bytes(), &result)
	if found, failed := result.FindExtension(&own); err != nil || failed != nil || !found {
		t.Fatalf("the answer to start: %v, %v, found %v", err, failed, found)
	}
	if result.Address != "unix:///s" || !slices.Equal(own.Types, []string{"erofs"}) || !slices.Equal(own.Transforms, []string{"format", "mkdir"}) {
		t.Errorf("the answer to start is %v with %v", &result, &own)
	}
	out.Reset()
	if err := p.printInfo(); err != nil {
		t.Fatal(err)
	}
	var info types.RuntimeInfo
	if err := proto.Unmarshal(out.Bytes(), &info); err != nil || info.Annotations[allowMounts] != "format/*,mkdir/*,erofs" {
		t.Errorf("the runtime's information: %v, %v", info.Annotations, err)
	}
}
