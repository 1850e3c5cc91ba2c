package ocispec

import (
	"path"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"husk.dev/husk/internal/sys"
)

// Places lists what spec mounts in the container's root as far as the host can show it, in the order in which it is
// mounted. bundle is the directory that relative sources are below. What the guest makes by itself has no
// source; what lies below such a place, and what is mounted on the root itself, is left out.
func Places(bundle string, spec *specs.Spec) []sys.Place {
	var places []sys.Place
	var own []string // the guest's
	for _, m := range spec.Mounts {
		at := path.Clean("/" + m.Destination)
		if at == "/" || belowAny(at, own) {
			continue
		}
		p := sys.Place{Path: at}
		if isBind(m) {
			p.Source = shown(bundle, m)
		}
		if p.Source == "" {
			own = append(own, at)
		} else {
			p.ReadOnly = readOnly(m.Options)
			p.Recursive = m.Type == "rbind" || has(m.Options, "rbind")
		}
		places = append(places, p)
	}
	return places
}

// shown is the host's file that a bind mount shows in the guest too; empty where it is the guest's own.
func shown(bundle string, m specs.Mount) string {
	source := m.Source
	if !filepath.IsAbs(source) {
		source = filepath.Join(bundle, source)
	}
	resolved, err := filepath.EvalSymlinks(source)
	if err != nil {
		return ""
	}
	for _, kernel := range []string{"/proc", "/sys", "/dev"} {
		if resolved == kernel || below(resolved, kernel) {
			return ""
		}
	}
	return resolved
}

func belowAny(p string, dirs []string) bool {
	for _, dir := range dirs {
		if p == dir || below(p, dir) {
			return true
		}
	}
	return false
}
