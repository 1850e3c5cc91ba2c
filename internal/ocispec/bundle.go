// Package ocispec turns an OCI bundle into a request that is checked, sized and planned: plain data that
// says what the guest is told and what the host must lend it.
package ocispec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// MaxFile is the longest config.json or process.json that is read, in bytes.
	MaxFile = 10 << 20
	// MaxSpec is the longest configuration without its white space, in bytes: with the rest of its
	// message it must fit a frame of 4 MiB to the guest.
	MaxSpec = 4<<20 - 64<<10
)

// Bundle is a checked OCI bundle.
type Bundle struct {
	Dir      string      // absolute
	Spec     *specs.Spec // passed every check
	Rootfs   string      // absolute, without symlinks; empty until ResolveRoot
	Warnings []string    // what is accepted but not as it was written
}

// Load reads and checks the config.json of the bundle at dir and finds its root directory.
func Load(dir string) (*Bundle, error) {
	path := filepath.Join(dir, "config.json")
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("bundle %s has no config.json: %w", dir, err)
	}
	if err != nil {
		return nil, err
	}
	b, err := FromSpec(dir, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := b.ResolveRoot(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// FromSpec is the bundle at dir with data for its config.json. Its root directory need not exist.
func FromSpec(dir string, data []byte) (*Bundle, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find bundle %s: %w", dir, err)
	}
	spec, err := Parse(data)
	if err != nil {
		return nil, err
	}
	return &Bundle{Dir: abs, Spec: spec, Warnings: warnings(spec)}, nil
}

// FromPod is FromSpec for what the containers of a pod share and no container holds: a configuration that has neither
// process nor root.
func FromPod(dir string, data []byte) (*Bundle, error) {
	var spec specs.Spec
	if err := decode(data, &spec); err != nil {
		return nil, err
	}
	if err := check(&spec, podChecks); err != nil {
		return nil, err
	}
	return &Bundle{Dir: dir, Spec: &spec, Warnings: warnings(&spec)}, nil
}

// ResolveRoot finds the root directory, which is relative to the bundle, and fills Rootfs.
func (b *Bundle) ResolveRoot() error {
	if b.Spec.Root == nil || b.Spec.Root.Path == "" {
		return errors.New("root.path is missing")
	}
	path := b.Spec.Root.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(b.Dir, path)
	}
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("root.path %q: %s does not exist", b.Spec.Root.Path, path)
	}
	if err != nil {
		return fmt.Errorf("root.path %q: %w", b.Spec.Root.Path, err)
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return fmt.Errorf("root.path %q: %w", b.Spec.Root.Path, err)
	}
	if !info.IsDir() {
		return fmt.Errorf("root.path %q: %s is not a directory", b.Spec.Root.Path, path)
	}
	b.Rootfs = resolved
	return nil
}

// Parse decodes a configuration and checks all that can be checked without looking at the host.
func Parse(data []byte) (*specs.Spec, error) {
	var spec specs.Spec
	if err := decode(data, &spec); err != nil {
		return nil, err
	}
	if err := check(&spec, checks); err != nil {
		return nil, err
	}
	return &spec, nil
}

// decode bounds data, then decodes it into v. Its errors name line and column.
func decode(data []byte, v any) error {
	if len(data) > MaxFile {
		return fmt.Errorf("%d bytes long, at most %d", len(data), MaxFile)
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil { // Compact's errors do not say where
		return place(data, err)
	}
	var dense bytes.Buffer
	if err := json.Compact(&dense, data); err != nil {
		return place(data, err)
	}
	if dense.Len() > MaxSpec {
		return fmt.Errorf("%d bytes long without white space, at most %d", dense.Len(), MaxSpec)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return place(data, err)
	}
	return nil
}

// place puts line and column before an error of encoding/json that knows its offset.
func place(data []byte, err error) error {
	var (
		syntax *json.SyntaxError
		typed  *json.UnmarshalTypeError
		offset int64
	)
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &typed):
		offset = typed.Offset
	default:
		return fmt.Errorf("decode JSON: %w", err)
	}
	before := data[:max(0, min(int(offset), len(data)))]
	line := bytes.Count(before, []byte{'\n'}) + 1
	column := len(before) - (bytes.LastIndexByte(before, '\n') + 1)
	return fmt.Errorf("line %d, column %d: %w", line, column, err)
}

// readFile reads a regular file of at most MaxFile bytes. It looks at the size first, so that a huge
// file costs nothing, and bounds the read as well, because a file can grow.
func readFile(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	tooLong := fmt.Errorf("%s is longer than %d MiB", path, MaxFile>>20)
	if info.Size() > MaxFile {
		return nil, tooLong
	}
	data, err := io.ReadAll(io.LimitReader(file, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > MaxFile {
		return nil, tooLong
	}
	return data, nil
}
