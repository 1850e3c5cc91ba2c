package image

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
)

// What an error of this package may match with errors.Is.
var (
	ErrNotFound         = errors.New("no such image")
	ErrAmbiguous        = errors.New("ambiguous image reference")
	ErrInvalidReference = errors.New("invalid image reference")
	ErrInUse            = errors.New("image is in use")
	ErrNoSpace          = errors.New("no space left")
	ErrTooLarge         = errors.New("image is too large")
	ErrCorrupt          = errors.New("content does not match its digest")
	ErrPlatform         = errors.New("no image for the platform")
	ErrNotImage         = errors.New("not a container image")
	ErrNeedsRoot        = errors.New("unpacking an image needs root")
	ErrNoTool           = errors.New("mkfs.erofs not found")
	ErrDamaged          = errors.New("image store is damaged")
	ErrNoCommand        = errors.New("image has no command")
	ErrNoUser           = errors.New("no such user or group in the image")
)

// NotFoundError says that the store does not hold an image. It matches ErrNotFound.
type NotFoundError struct{ Ref string }

func (e *NotFoundError) Error() string {
	if isTransport(e.Ref) || !isHex(e.Ref) {
		return fmt.Sprintf("no such image: %s (pull it with: husk pull %s)", e.Ref, e.Ref)
	}
	return fmt.Sprintf("no such image: %s (husk images lists those there are)", e.Ref)
}

// Is makes errors.Is(err, ErrNotFound) true.
func (e *NotFoundError) Is(target error) bool { return target == ErrNotFound }

// LayerError says which layer of an image could not be had, and why.
type LayerError struct {
	Index  int    // from 0, the lowest
	Count  int    // of layers in the image
	Digest string // of the layer as the image names it
	Err    error
}

func (e *LayerError) Error() string {
	return fmt.Sprintf("layer %d of %d (%s): %v", e.Index+1, e.Count, shortDigest(e.Digest), e.Err)
}

// Unwrap returns the cause.
func (e *LayerError) Unwrap() error { return e.Err }

// NoSpaceError says that a file system is full. It matches ErrNoSpace.
type NoSpaceError struct {
	Dir  string
	Need int64 // bytes, where they are known, else 0
	Free int64 // bytes
}

func (e *NoSpaceError) Error() string {
	if e.Need > 0 {
		return fmt.Sprintf("no space left in %s: need at least %s, %s free (remove images with: husk rmi)",
			e.Dir, FormatBytes(e.Need), FormatBytes(e.Free))
	}
	return fmt.Sprintf("no space left in %s: %s free (remove images with: husk rmi)", e.Dir, FormatBytes(e.Free))
}

// Is makes errors.Is(err, ErrNoSpace) true.
func (e *NoSpaceError) Is(target error) bool { return target == ErrNoSpace }

// spaceError turns a full disk under dir, however it shows in err, into a NoSpaceError.
func (s *Store) spaceError(err error) error {
	if err == nil || errors.Is(err, ErrNoSpace) {
		return err
	}
	if !isFull(err) {
		return err
	}
	free, _ := freeBytes(s.dir)
	return &NoSpaceError{Dir: s.dir, Free: free}
}

func joinErrors(a, b error) error {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return errors.Join(a, b)
}

// FormatBytes renders n bytes with a binary unit: "12.3 MiB".
func FormatBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1024, 0
	for value >= 1024 && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", value, units[unit])
}

// hexOf strips the algorithm from a digest.
func hexOf(digest string) string {
	if _, hex, ok := strings.Cut(digest, ":"); ok {
		return hex
	}
	return digest
}

// shortDigest is the first twelve hex digits of a digest.
func shortDigest(digest string) string {
	hex := hexOf(digest)
	return hex[:min(12, len(hex))]
}

func isHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}

// isFull says whether an error comes of a full disk or a used-up quota.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
