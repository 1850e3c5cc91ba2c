package image

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow bounds the memory, in bytes, that a zstd stream may ask its reader for: what the format's
// --ultra --long=27 needs.
const maxZstdWindow = 128 << 20

// Compressions by the first bytes of a stream.
var (
	magicGzip = []byte{0x1f, 0x8b}
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
	magicXz   = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
	magicBz2  = []byte("BZh")
)

// Decompress reads what r holds, uncompressed. What the media type says is not asked: it is often wrong.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, magicGzip):
		return gzip.NewReader(br)
	case bytes.HasPrefix(head, magicZstd):
		d, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case bytes.HasPrefix(head, magicXz), bytes.HasPrefix(head, magicBz2):
		return nil, errors.New("compressed with xz or bzip2: only gzip and zstd are read")
	}
	return io.NopCloser(br), nil
}

// isPlain says whether a file is not compressed, and rewinds it.
func isPlain(f *os.File) (bool, error) {
	head := make([]byte, 6)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	head = head[:n]
	for _, magic := range [][]byte{magicGzip, magicZstd, magicXz, magicBz2} {
		if bytes.HasPrefix(head, magic) {
			return false, nil
		}
	}
	return true, nil
}

// boundedReader fails with ErrTooLarge once more than left bytes were read.
type boundedReader struct {
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return 0, fmt.Errorf("%w: it unpacks to more than the limit allows", ErrTooLarge)
	}
	return n, err
}

// hashReader hashes and counts what is read through it, and reports the count.
type hashReader struct {
	r      io.Reader
	sum    hash.Hash
	n      int64
	report func(n int64) // may be nil
}

func newHashReader(r io.Reader, report func(int64)) *hashReader {
	return &hashReader{r: r, sum: sha256.New(), report: report}
}

func (h *hashReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.sum.Write(p[:n])
	h.n += int64(n)
	if h.report != nil && n > 0 {
		h.report(h.n)
	}
	return n, err
}

func (h *hashReader) digest() string { return "sha256:" + hex.EncodeToString(h.sum.Sum(nil)) }
