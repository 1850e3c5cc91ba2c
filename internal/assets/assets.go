// Package assets finds the guest's kernel and image and what is known of them.
package assets

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Cmdline is what the guest's kernel is told beside what a driver tells it: no dummy interface, which nobody
// asked for, and memory that is plugged in is used without further ado.
const Cmdline = "dummy.numdummies=0 memhp_default_state=online"

// Guest is what guest.json, written beside the files when they are built, says of a kernel and image.
type Guest struct {
	Dir           string `json:"-"`
	Arch          string `json:"arch"`           // x86_64 or arm64
	Kind          string `json:"kind"`           // husk (own config, nothing but built in) or distro
	Kernel        string `json:"kernel"`         // file name, made absolute by Find
	KernelVersion string `json:"kernel_version"` // uname -r of it
	KernelSource  string `json:"kernel_source"`  // licence and source package, one line
	Initrd        string `json:"initrd"`         // file name, made absolute by Find
	NoACPI        bool   `json:"no_acpi"`        // the kernel needs no ACPI to find its processors and devices
	Key           string `json:"key"`            // hash of what both were built from
	// Agent and Crun tell what the image holds: the agent by a hash of its program, which carries no version, and
	// crun by its version. Empty where who built it did not say.
	Agent string `json:"agent"`
	Crun  string `json:"crun"`
	// FilterCompiler is the program that internal/seccomp runs; empty where none could be built. A file
	// name, made absolute by Find.
	FilterCompiler string `json:"filter_compiler"`
}

// Arch is this machine's architecture as guest.json names it.
func Arch() string {
	if runtime.GOARCH == "amd64" {
		return "x86_64"
	}
	return runtime.GOARCH
}

// Find reads guest.json in dir, or where dir is empty in ../lib/husk/guest as seen from the running
// binary, and makes sure that the files it names are there.
func Find(dir string) (Guest, error) {
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return Guest{}, fmt.Errorf("find guest kernel and image: %w", err)
		}
		dir = filepath.Join(filepath.Dir(self), "../lib/husk/guest")
	}
	g := Guest{Dir: dir}
	data, err := os.ReadFile(filepath.Join(dir, "guest.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return g, fmt.Errorf("guest kernel and image not found in %s: install the package husk-guest, build them with 'make image', or set guest_dir", dir)
	}
	if err != nil {
		return g, fmt.Errorf("find guest kernel and image: %w", err)
	}
	if err := json.Unmarshal(data, &g); err != nil {
		return g, fmt.Errorf("read %s: %w", filepath.Join(dir, "guest.json"), err)
	}
	if g.Arch != Arch() {
		return g, fmt.Errorf("guest kernel and image in %s are for %s, this machine is %s", dir, g.Arch, Arch())
	}
	files := map[string]*string{"kernel": &g.Kernel, "image": &g.Initrd}
	if g.FilterCompiler != "" {
		files["filter compiler"] = &g.FilterCompiler
	}
	for what, name := range files {
		if *name == "" || *name != filepath.Base(*name) {
			return g, fmt.Errorf("read %s: %s is %q, want a file name", filepath.Join(dir, "guest.json"), what, *name)
		}
		*name = filepath.Join(dir, *name)
		if _, err := os.Stat(*name); err != nil {
			return g, fmt.Errorf("guest %s: %w: build it with 'make kernel image'", what, err)
		}
	}
	return g, nil
}
