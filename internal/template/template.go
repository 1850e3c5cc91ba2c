// Package template keeps virtual machines that were booted and saved, for others to start from: a start then
// takes a fraction of a boot, and what the guests have in common is in the host's memory once.
package template

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"syscall"
	"time"

	"husk.dev/husk/internal/sys"
	"husk.dev/husk/internal/vmm"
)

// Names in a template's directory.
const (
	memoryFile = "memory"
	stateFile  = "state"
	recordFile = "template.json"
)

// baseMiB is the RAM of templates, in MiB: every VM starts with the largest that it is not smaller than, and
// gets the rest of its memory plugged in.
var baseMiB = []int{256, 512}

// maxState bounds the state of processors and devices, in bytes. QEMU writes some 150 KiB.
const maxState = 16 << 20

// Errors that callers tell apart.
var (
	// ErrNone says that there is no template of this key.
	ErrNone = errors.New("no such template")
	// ErrDamaged says that a template's files are not as they were written.
	ErrDamaged = errors.New("template is damaged")
)

var keyPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// BaseMiB is the RAM of the template that a VM of memoryMiB starts from, in MiB.
func BaseMiB(memoryMiB int) int {
	base := baseMiB[0]
	for _, size := range baseMiB {
		if size <= memoryMiB {
			base = size
		}
	}
	return base
}

// Template is a saved VM and what is known of it. It is kept as JSON.
type Template struct {
	Key           string    `json:"key"` // of vmm.Keyer
	Revision      int       `json:"revision"`
	MemoryMiB     int       `json:"memory_mib"`
	VCPUs         int       `json:"vcpus"`
	Machine       string    `json:"machine"`
	Card          vmm.Card  `json:"card"` // for VMs with a network card
	KernelVersion string    `json:"kernel_version"`
	Created       time.Time `json:"created"`
	BuildMS       int64     `json:"build_ms"` // how long boot and save took
	Memory        File      `json:"memory"`
	State         File      `json:"state"`
	Used          time.Time `json:"-"` // when a VM last started from it
	DiskBytes     int64     `json:"-"` // what its files take on disk
	dir           string
}

// File is what a template's file was when it was written. The first four change when somebody changes the
// file or puts another in its place, and cost nothing to compare; the sum costs reading the file.
type File struct {
	Size  int64  `json:"size"` // bytes
	Inode uint64 `json:"inode"`
	MTime int64  `json:"mtime_ns"`
	CTime int64  `json:"ctime_ns"`
	Sum   string `json:"sum"` // of hash
}

// Store is a directory of templates.
type Store struct{ dir string }

// Open returns the store in a directory, which need not exist.
func Open(dir string) *Store { return &Store{dir: dir} }

// Find returns what a VM starts from. The error matches ErrNone or ErrDamaged where the caller had better boot
// and have the template built.
func (s *Store) Find(key string) (*vmm.Snapshot, error) {
	t, err := s.load(key)
	if err != nil {
		return nil, err
	}
	for name, want := range map[string]File{memoryFile: t.Memory, stateFile: t.State} {
		got, err := look(filepath.Join(t.dir, name))
		if err != nil {
			return nil, fmt.Errorf("template %s: %w: %w", key, ErrDamaged, err)
		}
		got.Sum = want.Sum
		if got != want {
			return nil, fmt.Errorf("template %s: %w: somebody has changed %s", key, ErrDamaged, name)
		}
	}
	now := time.Now()
	_ = os.Chtimes(t.dir, now, now) // only tells which templates are used
	return t.snapshot(), nil
}

func (t *Template) snapshot() *vmm.Snapshot {
	return &vmm.Snapshot{
		Memory: filepath.Join(t.dir, memoryFile), State: filepath.Join(t.dir, stateFile), MemoryMiB: t.MemoryMiB,
		Card: t.Card,
	}
}

func (s *Store) load(key string) (*Template, error) {
	if !keyPattern.MatchString(key) {
		return nil, fmt.Errorf("template %q: %w: a key is 32 hexadecimal digits", key, ErrNone)
	}
	dir := filepath.Join(s.dir, key)
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, fmt.Errorf("template %s: %w", key, ErrNone)
	}
	if err != nil {
		return nil, fmt.Errorf("read template: %w", err)
	}
	t := &Template{dir: dir}
	if err := json.Unmarshal(data, t); err != nil || t.Key != key || t.Revision != revision {
		return nil, fmt.Errorf("template %s: %w: %s is not its own", key, ErrDamaged, recordFile)
	}
	if info, err := os.Stat(dir); err == nil {
		t.Used = info.ModTime()
	}
	for _, name := range []string{memoryFile, stateFile} {
		var stat syscall.Stat_t
		if syscall.Stat(filepath.Join(dir, name), &stat) == nil {
			t.DiskBytes += stat.Blocks * 512
		}
	}
	return t, nil
}

// List returns all templates, the last used first. A damaged record makes no entry.
func (s *Store) List() ([]*Template, error) {
	keys, err := s.Keys()
	if err != nil {
		return nil, err
	}
	var found []*Template
	for _, key := range keys {
		if t, err := s.load(key); err == nil {
			found = append(found, t)
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].Used.After(found[j].Used) })
	return found, nil
}

// Keys returns the keys of all templates, damaged ones too.
func (s *Store) Keys() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	var keys []string
	for _, e := range entries {
		if keyPattern.MatchString(e.Name()) {
			keys = append(keys, e.Name())
		}
	}
	return keys, nil
}

// Remove deletes a template, whole or damaged. VMs that started from it keep what they have mapped.
func (s *Store) Remove(key string) error {
	if !keyPattern.MatchString(key) {
		return fmt.Errorf("template %q: %w: a key is 32 hexadecimal digits", key, ErrNone)
	}
	dir := filepath.Join(s.dir, key)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("template %s: %w", key, ErrNone)
	}
	// Out of sight at once, so that nobody starts from half of it.
	gone, err := os.MkdirTemp(s.dir, trashPrefix)
	if err != nil {
		return fmt.Errorf("remove template: %w", err)
	}
	if err := os.Rename(dir, filepath.Join(gone, key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove template: %w", err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove template: %w", err)
	}
	return nil
}

// Verify reads a template's files whole and compares them with what was written.
func (s *Store) Verify(key string) error {
	if _, err := s.Find(key); err != nil {
		return err
	}
	t, err := s.load(key)
	if err != nil {
		return err
	}
	for name, want := range map[string]File{memoryFile: t.Memory, stateFile: t.State} {
		sum, err := hash(filepath.Join(t.dir, name))
		if err != nil {
			return fmt.Errorf("verify template: %w", err)
		}
		if sum != want.Sum {
			return fmt.Errorf("template %s: %w: the checksum of %s is another", key, ErrDamaged, name)
		}
	}
	return nil
}

// look returns what can be seen of a file without reading it.
func look(path string) (File, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return File{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return File{}, fmt.Errorf("%s is not a regular file", path)
	}
	return File{Size: info.Size(), Inode: stat.Ino, MTime: stat.Mtim.Nano(), CTime: stat.Ctim.Nano()}, nil
}

// hash is the SHA-256 of a file's size and of its blocks that are not all zeros, each after its number; numbers have 8 bytes, the
// lowest first. Of a saved memory most is holes and zeros: to leave them out makes no difference to what is told apart, and saves
// the time to read them.
func hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	sum, block, next := sha256.New(), make([]byte, 8+hashBlock), int64(0)
	number, data := block[:8], block[8:]
	binary.LittleEndian.PutUint64(number, uint64(info.Size()))
	sum.Write(number)
	for part, err := range sys.DataParts(f, info.Size()) {
		if err != nil {
			return "", fmt.Errorf("look for data in %s: %w", path, err)
		}
		// The blocks that a part touches, less those that the one before it did.
		for i := max(next, part.Offset/hashBlock); i*hashBlock < part.Offset+part.Length; i++ {
			n, err := f.ReadAt(data, i*hashBlock)
			if err != nil && !errors.Is(err, io.EOF) {
				return "", err
			}
			next = i + 1
			if allZeros(data[:n]) {
				continue
			}
			binary.LittleEndian.PutUint64(number, uint64(i))
			sum.Write(block[:8+n])
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// hashBlock is how many bytes hash reads at once.
const hashBlock = 64 << 10

var zeros [hashBlock]byte

func allZeros(data []byte) bool { return bytes.Equal(data, zeros[:len(data)]) }
