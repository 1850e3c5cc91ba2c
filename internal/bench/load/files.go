package load

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Sizes of the work on files.
const (
	dataSize    = 64 << 20 // of the large files, in bytes
	chunk       = 1 << 20  // of sequential reads and writes, in bytes
	block       = 4 << 10  // of random ones, in bytes
	randomCount = 2000     // random reads, and writes
	smallCount  = 2000     // small files
	smallSize   = 1 << 10  // in bytes
)

// MakeData writes a file for files to read: of bytes that cannot be compressed, always the same.
func MakeData(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{}), dataSize)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// files measures data, which this kernel has not read before, and a new directory below parent.
func files(parent, data string) (samples []Sample, err error) {
	dir, err := os.MkdirTemp(parent, "bench-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if removeErr := os.RemoveAll(dir); err == nil {
			err = removeErr
		}
	}()
	large := filepath.Join(dir, "large")
	for _, m := range []struct {
		name    string
		count   float64 // of what the rate is of: MiB, operations
		measure func() error
	}{
		{"read.first", dataSize >> 20, func() error { return sequentialRead(data) }},
		{"read.again", dataSize >> 20, func() error { return sequentialRead(data) }},
		{"write", dataSize >> 20, func() error { return sequentialWrite(large) }},
		{"random.read", randomCount, func() error { return random(large, os.O_RDONLY, readAt) }},
		{"random.write", randomCount, func() error { return random(large, os.O_WRONLY, writeAt) }},
		{"small.create", smallCount, func() error { return small(dir, create) }},
		{"small.stat", smallCount, func() error { return small(dir, stat) }},
		{"small.read", smallCount, func() error { return small(dir, read) }},
		{"small.unlink", smallCount, func() error { return small(dir, os.Remove) }},
	} {
		began := time.Now()
		if err := m.measure(); err != nil {
			return nil, fmt.Errorf("measure %s: %w", m.name, err)
		}
		samples = append(samples, Sample{m.name, perSecond(m.count, time.Since(began))})
	}
	return samples, nil
}

func sequentialRead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, chunk)
	for total := 0; ; {
		n, err := f.Read(buf)
		total += n
		if err == io.EOF && total == dataSize {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %s after %d bytes: %w", path, total, err)
		}
	}
}

// sequentialWrite counts until the data is on the disk.
func sequentialWrite(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, chunk)
	for range dataSize / chunk {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return f.Sync()
}

func readAt(f *os.File, buf []byte, at int64) error {
	_, err := f.ReadAt(buf, at)
	return err
}

func writeAt(f *os.File, buf []byte, at int64) error {
	_, err := f.WriteAt(buf, at)
	return err
}

// random does operations at the same places each time; writes count until they are on the disk.
func random(path string, flags int, do func(*os.File, []byte, int64) error) error {
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	places := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, block)
	for range randomCount {
		if err := do(f, buf, places.Int64N(dataSize/block)*block); err != nil {
			return err
		}
	}
	if flags == os.O_RDONLY {
		return nil
	}
	return f.Sync()
}

// small does something with each of the small files.
func small(dir string, do func(path string) error) error {
	for i := range smallCount {
		if err := do(filepath.Join(dir, "small-"+strconv.Itoa(i))); err != nil {
			return err
		}
	}
	return nil
}

func create(path string) error { return os.WriteFile(path, make([]byte, smallSize), 0o644) }

func stat(path string) error {
	_, err := os.Stat(path)
	return err
}

func read(path string) error {
	_, err := os.ReadFile(path)
	return err
}
