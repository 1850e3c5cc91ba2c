package image

import (
	"archive/tar"
	"fmt"
	"io"
)

// Limits bound what an image may unpack to. The zero value of a field is its default.
type Limits struct {
	Bytes   int64 // of all files of all layers; default 64 GiB
	Entries int64 // files, directories and so on in all layers; default 2,000,000
}

// Defaults of Limits, and the bound of what is kept in memory for names and attributes of entries.
const (
	DefaultMaxBytes   = 64 << 30
	DefaultMaxEntries = 2_000_000
	maxNameBytes      = 512 << 20
)

func (l Limits) withDefaults() Limits {
	if l.Bytes <= 0 {
		l.Bytes = DefaultMaxBytes
	}
	if l.Entries <= 0 {
		l.Entries = DefaultMaxEntries
	}
	return l
}

// budget is what is left of the limits while the layers of one image are unpacked, one after the other.
type budget struct {
	limits  Limits
	stream  int64 // bytes of tar
	content int64 // bytes of files as their headers give them: a sparse file is larger than its tar
	entries int64
	names   int64
}

func newBudget(l Limits) *budget {
	l = l.withDefaults()
	return &budget{limits: l, stream: l.Bytes, content: l.Bytes, entries: l.Entries, names: maxNameBytes}
}

// take accounts for one entry of a tar before it is unpacked.
func (b *budget) take(hdr *tar.Header) error {
	b.entries--
	if b.entries < 0 {
		return fmt.Errorf("%w: it has more than %d entries (the limit)", ErrTooLarge, b.limits.Entries)
	}
	b.names -= int64(len(hdr.Name) + len(hdr.Linkname))
	for k, v := range hdr.PAXRecords {
		b.names -= int64(len(k) + len(v))
	}
	if b.names < 0 {
		return fmt.Errorf("%w: its names and attributes have more than %s", ErrTooLarge, FormatBytes(maxNameBytes))
	}
	if hdr.Typeflag == tar.TypeReg || hdr.Typeflag == tar.TypeGNUSparse {
		b.content -= hdr.Size
		if b.content < 0 || hdr.Size < 0 {
			return b.tooLarge()
		}
	}
	return nil
}

func (b *budget) tooLarge() error {
	return fmt.Errorf("%w: it unpacks to more than %s (the limit)", ErrTooLarge, FormatBytes(b.limits.Bytes))
}

// reader accounts for the bytes of an uncompressed layer.
func (b *budget) reader(r io.Reader) io.Reader { return &budgetReader{r: r, b: b} }

type budgetReader struct {
	r io.Reader
	b *budget
}

func (r *budgetReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.b.stream -= int64(n)
	if r.b.stream < 0 {
		return 0, r.b.tooLarge()
	}
	return n, err
}
