package ocispec

import (
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// MaxFiles and MaxFilesBytes bound what a guest gets a copy of: one message to it has all.
	MaxFiles      = 1024
	MaxFilesBytes = 3 << 20
)

// CopiedFiles is a small directory whose files whoever made it replaces while containers use it. The guest has a copy, which the
// sandbox keeps the same, in place of a share: programs that wait for a change (inotify(7)) hear of it from their own kernel
// only.
type CopiedFiles struct {
	HostPath  string // absolute, without symlinks
	GuestName string // its name in PlanOptions.FilesDir, the same for every container that has the same directory
}

// kubeletVolumes are the kinds of the kubelet's volumes that are such directories, by their names below "volumes".
var kubeletVolumes = []string{
	"kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api",
}

// copied plans a bind mount of such a directory, and tells whether it was one.
func (p *Plan) copied(m *specs.Mount, source string, info fs.FileInfo, o PlanOptions) bool {
	parts := strings.Split(source, "/") // .../pods/UID/volumes/KIND/NAME
	n := len(parts)
	if !info.IsDir() || n < 5 || parts[n-5] != "pods" || parts[n-3] != "volumes" || !slices.Contains(kubeletVolumes, parts[n-2]) {
		return false
	}
	plain := readOnly(m.Options) && len(m.UIDMappings)+len(m.GIDMappings) == 0
	if !plain || slices.ContainsFunc(m.Options, func(o string) bool { return strings.HasSuffix(o, "shared") || strings.HasSuffix(o, "slave") }) || !small(source) {
		return false
	}
	name := guestName(source)
	p.Files = append(p.Files, CopiedFiles{HostPath: source, GuestName: name})
	asGuestPath(m, path.Join(o.FilesDir, name))
	return true
}

// small tells whether a directory has at most half of what a guest gets a copy of, and regular files, directories and symlinks
// alone.
func small(dir string) bool {
	err := measure(dir)
	for range 3 {
		if !errors.Is(err, fs.ErrNotExist) { // its files are being replaced
			break
		}
		err = measure(dir)
	}
	return err == nil
}

func measure(dir string) error {
	files, bytes := 0, int64(0)
	return filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Type()&^(fs.ModeDir|fs.ModeSymlink) != 0 {
			return fs.ErrInvalid
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !e.IsDir() {
			bytes += info.Size()
		}
		if files++; files > MaxFiles/2 || bytes > MaxFilesBytes/2 {
			return fs.ErrInvalid
		}
		return nil
	})
}
