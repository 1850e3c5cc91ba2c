package shim

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
)

// errVerity refuses what only a device mapper of the host could check.
var errVerity = errors.New("a layer is to be checked by dm-verity, which husk does not do")

// rootImage is a file system in a file or block device of the host.
type rootImage struct {
	source     string
	filesystem string
	readOnly   bool
	data       []string // further files of an EROFS
}

// rootPlan is a root as file systems that a guest can mount.
type rootPlan struct {
	whole *rootImage  // the root itself
	lower []rootImage // or: layers, the lowest first
	upper *rootImage  // what is written over them, with the directories upper and work in it
	// What is written is kept in directories of the host, as long as nothing takes their place.
	upperDir, workDir string
	readOnly          bool // the root is not to be written to, whatever the configuration says
}

const (
	// verityOption names a layer's hashes, mkdirOption a directory to make (containerd, core/mount/manager).
	verityOption = "X-containerd.dmverity="
	mkdirOption  = "X-containerd.mkdir.path="
	// Transforms that the names of mount types begin with.
	formatPrefix, mkdirPrefix = "format/", "mkdir/"
)

// harmless are options that make no difference to what a guest reads and writes, or that of an image's own disk.
var harmless = []string{
	"loop", "ro", "rw", "defaults", "noatime", "relatime", "nodiratime", "strictatime", "lazytime", "discard", "nodiscard",
	"index=off", "rbind", "bind",
}

// planRoot says how a root is made of disks, from the mounts that containerd would have made on the host. An error says why
// it is not. It looks at no file.
func planRoot(mounts []mount.Mount) (*rootPlan, error) {
	if len(mounts) == 0 {
		return nil, errors.New("no mounts")
	}
	last := mounts[len(mounts)-1]
	if len(mounts) == 1 && !strings.Contains(last.Type, "/") {
		image, err := planImage(last)
		if err != nil {
			return nil, err
		}
		return &rootPlan{whole: &image, readOnly: image.readOnly}, nil
	}
	var images []rootImage
	for _, m := range mounts[:len(mounts)-1] {
		image, err := planImage(m)
		if err != nil {
			return nil, err
		}
		images = append(images, image)
	}
	kind, options := last.Type, last.Options
	for _, prefix := range []string{formatPrefix, mkdirPrefix} {
		kind = strings.TrimPrefix(kind, prefix)
	}
	expand := func(s string) (string, error) { return expandMounts(s, len(images), point) }
	switch kind {
	case "bind":
		source, err := expand(last.Source)
		if err != nil {
			return nil, err
		}
		return planBind(source, options, images)
	case "overlay":
		return planOverlay(options, images, expand)
	}
	return nil, fmt.Errorf("mount type %q", last.Type)
}

// planImage reads a mount of a file system that guests know.
func planImage(m mount.Mount) (rootImage, error) {
	image := rootImage{source: m.Source, filesystem: m.Type, readOnly: m.Type == "erofs"}
	if m.Type != "ext4" && m.Type != "erofs" {
		return image, fmt.Errorf("mount type %q", m.Type)
	}
	if m.Target != "" && m.Target != "/" {
		return image, fmt.Errorf("mounted on %q", m.Target)
	}
	for _, option := range m.Options {
		file, isData := strings.CutPrefix(option, "device=")
		switch {
		case strings.HasPrefix(option, verityOption):
			return image, errVerity
		case isData && m.Type == "erofs":
			image.data = append(image.data, file)
		case option == "ro":
			image.readOnly = true
		case !slices.Contains(harmless, option):
			return image, fmt.Errorf("option %q", option)
		}
	}
	for _, path := range append([]string{image.source}, image.data...) {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsRune(path, 0) {
			return image, fmt.Errorf("path %q", path)
		}
	}
	return image, nil
}

// planBind reads a bind mount of one of the images as a whole.
func planBind(source string, options []string, images []rootImage) (*rootPlan, error) {
	for i := range images {
		if source != point(i) || len(images) > 1 {
			continue
		}
		for _, option := range options {
			if !slices.Contains(harmless, option) {
				return nil, fmt.Errorf("option %q", option)
			}
		}
		image := images[i]
		image.readOnly = image.readOnly || slices.Contains(options, "ro")
		return &rootPlan{whole: &image, readOnly: image.readOnly}, nil
	}
	return nil, fmt.Errorf("a bind mount of %q", source)
}

// planOverlay reads an overlay of images. The guest calls the two directories of what is written upper and work.
func planOverlay(options []string, images []rootImage, expand func(string) (string, error)) (*rootPlan, error) {
	var p rootPlan
	upper, work := "", ""
	for _, option := range options {
		option, err := expand(option)
		if err != nil {
			return nil, err
		}
		key, value, _ := strings.Cut(option, "=")
		switch {
		case key == "lowerdir":
			if p.lower, err = layersOf(value, images); err != nil {
				return nil, err
			}
		case key == "upperdir":
			upper = value
		case key == "workdir":
			work = value
		case option == "ro":
			p.readOnly = true
		case strings.HasPrefix(option, mkdirOption): // of what the guest makes itself
		case !slices.Contains(harmless, option):
			return nil, fmt.Errorf("option %q", option)
		}
	}
	if len(p.lower) == 0 {
		return nil, errors.New("an overlay of no images")
	}
	if err := p.planUpper(upper, work, images); err != nil {
		return nil, err
	}
	if extra := len(images) - len(p.lower); extra > 1 || extra == 1 && p.upper == nil {
		return nil, errors.New("images that are no part of the overlay")
	}
	p.readOnly = p.readOnly || upper == ""
	return &p, nil
}

// planUpper finds where what is written goes: to an image, or to directories of the host.
func (p *rootPlan) planUpper(upper, work string, images []rootImage) error {
	for i := range images {
		if upper == point(i)+"/upper" && work == point(i)+"/work" && images[i].filesystem == "ext4" && !images[i].readOnly {
			p.upper = &images[i]
			return nil
		}
	}
	if upper == "" && work == "" {
		return nil
	}
	for _, path := range []string{upper, work} {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			return fmt.Errorf("directory %q", path)
		}
	}
	p.upperDir, p.workDir = upper, work
	return nil
}

// layersOf reads overlayfs' list of layers, whose uppermost is first.
func layersOf(list string, images []rootImage) (layers []rootImage, err error) {
	for _, dir := range strings.Split(list, ":") {
		i := 0
		for i < len(images) && dir != point(i) {
			i++
		}
		if i == len(images) {
			return nil, fmt.Errorf("the layer %q", dir)
		}
		if images[i].filesystem != "erofs" {
			return nil, fmt.Errorf("a layer of type %q", images[i].filesystem)
		}
		layers = append(layers, images[i])
	}
	slices.Reverse(layers)
	return layers, nil
}

// point stands for where the image i is mounted, and is no path of the host.
func point(i int) string { return fmt.Sprintf("\x00%d", i) }

// place is what containerd's mounts have for where others before them are mounted: {{ mount 0 }}, or {{ overlay 0 2 }} for
// a list of them.
var place = regexp.MustCompile(`\{\{\s*(mount|overlay)((?:\s+[0-9]{1,4}){1,2})\s*\}\}`)

// expandMounts replaces what stands for where others of count mounts are.
func expandMounts(s string, count int, at func(int) string) (string, error) {
	if strings.ContainsRune(s, 0) {
		return "", fmt.Errorf("%q holds a zero byte", s)
	}
	wrong := false
	out := place.ReplaceAllStringFunc(s, func(found string) string {
		parts := place.FindStringSubmatch(found)
		var numbers []int
		for _, field := range strings.Fields(parts[2]) {
			n, err := strconv.Atoi(field)
			wrong = wrong || err != nil || n >= count
			numbers = append(numbers, n)
		}
		if wrong || len(numbers) != map[string]int{"mount": 1, "overlay": 2}[parts[1]] {
			wrong = true
			return ""
		}
		from, to := numbers[0], numbers[len(numbers)-1]
		step := 1
		if from > to {
			step = -1
		}
		dirs := []string{at(from)}
		for i := from; i != to; {
			i += step
			dirs = append(dirs, at(i))
		}
		return strings.Join(dirs, ":")
	})
	if wrong || strings.Contains(out, "{{") {
		return "", fmt.Errorf("%q names no earlier mount", s)
	}
	return out, nil
}
