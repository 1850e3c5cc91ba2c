package image

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"time"

	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// recordVersion is the format of records that this code writes and reads.
const recordVersion = 1

// recordTemp is the pattern of half-written records.
const recordTemp = ".tmp-*"

// maxRecord bounds a record file in bytes: two files of 1 MiB in base64, and a configuration.
const maxRecord = 16 << 20

// record is what is kept of an image in images/ID.json.
type record struct {
	Version  int               `json:"version"`
	ID       string            `json:"id"`
	Names    []string          `json:"names"`
	Digest   string            `json:"digest,omitempty"`
	Platform string            `json:"platform"`
	Created  time.Time         `json:"created,omitzero"`
	Pulled   time.Time         `json:"pulled"`
	Config   ociv1.ImageConfig `json:"config"`
	Layers   []string          `json:"layers"` // keys, the lowest first
	Passwd   []byte            `json:"passwd,omitempty"`
	Group    []byte            `json:"group,omitempty"`
}

func (s *Store) recordPath(id string) string {
	return filepath.Join(s.dir, imagesDir, hexOf(id)+".json")
}

// records reads all records, the last pulled first. The error names those that could not be read.
func (s *Store) records() ([]record, error) {
	files, err := filepath.Glob(filepath.Join(s.dir, imagesDir, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("list image records: %w", err)
	}
	var found []record
	var damaged error
	for _, file := range files {
		r, err := readRecord(file)
		if os.IsNotExist(err) {
			continue // removed meanwhile
		}
		if err != nil {
			damaged = joinErrors(damaged, fmt.Errorf("%w: record %s: %w", ErrDamaged, file, err))
			continue
		}
		found = append(found, r)
	}
	sort.SliceStable(found, func(i, j int) bool { return found[i].Pulled.After(found[j].Pulled) })
	return found, damaged
}

func readRecord(file string) (record, error) {
	var r record
	fi, err := os.Stat(file)
	if err != nil {
		return r, err
	}
	if fi.Size() > maxRecord {
		return r, fmt.Errorf("%d bytes are too many", fi.Size())
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, err
	}
	if r.Version != recordVersion {
		return r, fmt.Errorf("format %d is not known (this husk writes %d)", r.Version, recordVersion)
	}
	if len(hexOf(r.ID)) != 64 || !isHex(hexOf(r.ID)) {
		return r, fmt.Errorf("id %q is not a digest", r.ID)
	}
	for _, key := range r.Layers {
		if !isKey(key) {
			return r, fmt.Errorf("layer %q is not a key", key)
		}
	}
	return r, nil
}

// image makes an Image of a record. It fails when a layer's file is missing.
func (s *Store) image(r record) (Image, error) {
	img := Image{
		ID: r.ID, Names: r.Names, Digest: r.Digest, Platform: r.Platform,
		Created: r.Created, Pulled: r.Pulled, Config: r.Config,
		Passwd: r.Passwd, Group: r.Group,
	}
	for _, key := range r.Layers {
		path := s.layerPath(key)
		fi, err := os.Stat(path)
		if err != nil {
			return Image{}, fmt.Errorf("%w: layer %s is missing (pull the image again): %w", ErrDamaged, shortDigest(key), err)
		}
		if fi.Size() == 0 {
			continue // a layer that changes nothing
		}
		img.Layers = append(img.Layers, path)
		img.Size += allocated(fi)
	}
	return img, nil
}

// putRecord writes r, and takes its names from all other images. A record of the same image that is
// there keeps its names and gets those of r.
func (s *Store) putRecord(ctx context.Context, r record) error {
	guard, err := s.lock(ctx, storeLock, exclusive)
	if err != nil {
		return err
	}
	defer guard.Close()
	all, _ := s.records() // a damaged record has no names that could be found
	for _, other := range all {
		if other.ID == r.ID {
			for _, name := range other.Names {
				r.Names = appendNew(r.Names, name)
			}
			continue
		}
		kept := slices.DeleteFunc(slices.Clone(other.Names), func(n string) bool { return contains(r.Names, n) })
		if len(kept) == len(other.Names) {
			continue
		}
		other.Names = kept
		if err := s.writeRecord(other); err != nil {
			return err
		}
	}
	return s.writeRecord(r)
}

// writeRecord writes a record as a whole or not at all. Precondition: the store lock is held.
func (s *Store) writeRecord(r record) error {
	r.Version = recordVersion
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return fmt.Errorf("encode image record: %w", err)
	}
	dir := filepath.Join(s.dir, imagesDir)
	f, err := os.CreateTemp(dir, recordTemp)
	if err != nil {
		return fmt.Errorf("write image record: %w", err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = joinErrors(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), s.recordPath(r.ID))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write image record: %w", err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

func contains(list []string, s string) bool { return slices.Contains(list, s) }

func appendNew(list []string, s string) []string {
	if contains(list, s) {
		return list
	}
	return append(list, s)
}
