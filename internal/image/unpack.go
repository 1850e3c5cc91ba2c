package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	confs "github.com/containerd/continuity/fs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// Names with a meaning in a layer; see layer.md of the OCI image specification.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

const (
	xattrPAX     = "SCHILY.xattr."
	xattrTrusted = "trusted."
	xattrOpaque  = "trusted.overlay.opaque"
)

// epoch is the time of what a layer implies and gives no time for: a fixed one, so that the same layer
// makes the same file.
var epoch = time.Unix(0, 0)

// unpacker unpacks one layer into a directory that will be made an EROFS image.
type unpacker struct {
	root   string  // the directory, existing
	below  *view   // the layers below; nil for none
	skel   string  // an existing empty directory: the parents that the layer implies, as they are below
	merge  bool    // root holds the layers below: delete what is whited out, in place of marking it
	budget *budget // of the image

	rootAttr attributes           // of "/": what is below, until the layer says otherwise
	explicit map[string]bool      // directories that the layer carries, relative to root
	implied  map[string]time.Time // directories that it does not carry but has entries in: their times
	deletes  []string             // whiteouts, relative to root, without their prefix
	opaques  []string             // directories whose content below is hidden, relative to root
}

// newUnpacker prepares to unpack into root what lies on below. A merge starts with nothing below.
func newUnpacker(root, skel string, below *view, merge bool, b *budget) *unpacker {
	u := &unpacker{root: root, skel: skel, below: below, merge: merge, budget: b}
	u.rootAttr = attributes{mode: 0o755, mtime: epoch}
	if a, ok := below.lookup("."); ok && a.isDir() {
		u.rootAttr = a
	}
	return u
}

// apply unpacks the tar in r. In a merge it is called for every layer in turn.
func (u *unpacker) apply(ctx context.Context, r io.Reader) error {
	u.explicit = map[string]bool{}
	u.implied = map[string]time.Time{}
	opts := []archive.ApplyOpt{archive.WithFilter(u.filter)}
	if !u.merge {
		opts = append(opts, archive.WithConvertWhiteout(u.whiteout), archive.WithParents([]string{u.skel}))
	}
	if _, err := archive.Apply(quiet(ctx), u.root, r, opts...); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return u.finish()
}

// quiet keeps the unpacking library from writing to standard error.
func quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// filter sees every entry before it is unpacked.
func (u *unpacker) filter(hdr *tar.Header) (bool, error) {
	if err := u.budget.take(hdr); err != nil {
		return false, err
	}
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return false, nil
	}
	rel := strings.TrimPrefix(filepath.Clean("/"+hdr.Name), "/")
	if rel == "" {
		if hdr.Typeflag == tar.TypeDir {
			u.rootAttr = headerAttributes(hdr)
		}
		return false, nil
	}
	if isMeta(rel) {
		return false, nil
	}
	if err := u.imply(filepath.Dir(rel)); err != nil {
		return false, fmt.Errorf("make the parents of %q: %w", hdr.Name, err)
	}
	if hdr.Typeflag == tar.TypeDir {
		u.explicit[rel] = true
	}
	return true, nil
}

// isMeta says whether an entry is bookkeeping of the AUFS file system, which some old layers carry.
func isMeta(rel string) bool {
	parts := strings.Split(rel, "/")
	for i, part := range parts {
		if strings.HasPrefix(part, whiteoutMeta) && (part != whiteoutOpaque || i < len(parts)-1) {
			return true
		}
	}
	return false
}

// imply notes that the directory rel and its parents must exist, and gives the unpacking library a copy
// of those of them that are directories below.
func (u *unpacker) imply(rel string) error {
	if _, known := u.implied[rel]; rel == "." || known {
		return nil
	}
	if err := u.imply(filepath.Dir(rel)); err != nil {
		return err
	}
	u.implied[rel] = epoch
	if u.merge {
		if path, err := confs.RootPath(u.root, rel); err == nil && path == filepath.Join(u.root, rel) {
			if fi, err := os.Lstat(path); err == nil && fi.IsDir() {
				u.implied[rel] = fi.ModTime()
			}
		}
		return nil
	}
	a, ok := u.below.lookup(rel)
	if !ok || !a.isDir() {
		return nil
	}
	u.implied[rel] = a.mtime
	// The copy is made of directories alone, so no path in it leads out of it.
	copied := filepath.Join(u.skel, rel)
	if err := os.Mkdir(copied, 0o700); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil // its parent is no directory below: overlay hides what is under it
		}
		return err
	}
	return a.apply(copied)
}

// whiteout sees every entry once its place in root is known, and keeps the whiteouts for finish: what
// they mean depends on entries that may come later.
func (u *unpacker) whiteout(_ *tar.Header, path string) (bool, error) {
	base := filepath.Base(path)
	if !strings.HasPrefix(base, whiteoutPrefix) {
		return true, nil
	}
	rel, err := filepath.Rel(u.root, path)
	if err != nil {
		return false, err
	}
	if base == whiteoutOpaque {
		u.opaques = append(u.opaques, filepath.Dir(rel))
	} else {
		u.deletes = append(u.deletes, filepath.Join(filepath.Dir(rel), strings.TrimPrefix(base, whiteoutPrefix)))
	}
	return false, nil
}

// finish does what has to wait until the last entry is unpacked.
func (u *unpacker) finish() error {
	for _, rel := range u.opaques {
		dir, err := confs.RootPath(u.root, rel)
		if err != nil {
			return fmt.Errorf("hide what is below %q: %w", rel, err)
		}
		if err := markOpaque(dir); err != nil {
			return fmt.Errorf("hide what is below %q: %w", rel, err)
		}
	}
	for _, rel := range u.deletes {
		if err := u.markDeleted(rel); err != nil {
			return fmt.Errorf("delete %q: %w", rel, err)
		}
	}
	for rel, mtime := range u.implied {
		if err := u.setImpliedTime(rel, mtime); err != nil {
			return fmt.Errorf("set time of %q: %w", rel, err)
		}
	}
	// Last, because all before has changed its time. The unpacking library leaves "/" alone.
	if err := u.rootAttr.apply(u.root); err != nil {
		return fmt.Errorf("set attributes of the root directory: %w", err)
	}
	return nil
}

// markDeleted leaves overlayfs's mark that rel is deleted. What the same layer puts in its place stays: a
// file hides what is below by itself, a directory by being opaque.
func (u *unpacker) markDeleted(rel string) error {
	dir, err := confs.RootPath(u.root, filepath.Dir(rel))
	if err != nil {
		return err
	}
	parent, err := os.Lstat(dir)
	if err != nil || !parent.IsDir() {
		return nil // the layer has put something else where the parent was
	}
	path := filepath.Join(dir, filepath.Base(rel))
	fi, err := os.Lstat(path)
	switch {
	case err == nil && fi.IsDir():
		return markOpaque(path)
	case err == nil:
		return nil
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if err := syscall.Mknod(path, syscall.S_IFCHR, 0); err != nil {
		return err
	}
	if err := os.Chtimes(path, epoch, epoch); err != nil {
		return err
	}
	return os.Chtimes(dir, parent.ModTime(), parent.ModTime())
}

// markOpaque leaves overlayfs's mark that a directory hides the one below.
func markOpaque(dir string) error {
	fi, err := os.Lstat(dir)
	if err != nil || !fi.IsDir() {
		return nil // replaced by a later entry, which hides what is below by itself
	}
	err = syscall.Setxattr(dir, xattrOpaque, []byte{'y'}, 0)
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("a layer replaces a directory of the one below, which only root can unpack: %w", err)
	}
	return err
}

// setImpliedTime gives a directory that the layer does not carry the time it has below: unpacking into
// it has changed that.
func (u *unpacker) setImpliedTime(rel string, mtime time.Time) error {
	if u.explicit[rel] {
		return nil
	}
	path := filepath.Join(u.root, rel)
	resolved, err := confs.RootPath(u.root, rel)
	if err != nil || resolved != path {
		return nil // by way of a symbolic link: a directory of another name
	}
	fi, err := os.Lstat(path)
	if err != nil || !fi.IsDir() {
		return nil
	}
	return os.Chtimes(path, mtime, mtime)
}

// attributes are those of a directory.
type attributes struct {
	mode     uint32 // permission bits, and the type as in st_mode where it is known
	uid, gid int
	mtime    time.Time
	xattrs   map[string]string
	rdev     uint32
}

func (a attributes) isDir() bool      { return a.mode&syscall.S_IFMT == syscall.S_IFDIR }
func (a attributes) isWhiteout() bool { return a.mode&syscall.S_IFMT == syscall.S_IFCHR && a.rdev == 0 }

func headerAttributes(hdr *tar.Header) attributes {
	a := attributes{mode: uint32(hdr.Mode) & 0o7777, uid: hdr.Uid, gid: hdr.Gid, mtime: hdr.ModTime, xattrs: map[string]string{}}
	for key, value := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrPAX); ok {
			a.xattrs[name] = value
		}
	}
	return a
}

// apply gives the directory at path these attributes, but for those of the trusted namespace.
func (a attributes) apply(path string) error {
	if err := os.Lchown(path, a.uid, a.gid); err != nil {
		return err
	}
	for name, value := range a.xattrs {
		if strings.HasPrefix(name, xattrTrusted) {
			continue
		}
		err := syscall.Setxattr(path, name, []byte(value), 0)
		if err != nil && !errors.Is(err, syscall.ENOTSUP) {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	if err := syscall.Chmod(path, a.mode&0o7777); err != nil {
		return err
	}
	return os.Chtimes(path, a.mtime, a.mtime)
}

// changesNothing says whether the layer, on what is below, makes no difference.
func (u *unpacker) changesNothing() bool {
	entries, err := os.ReadDir(u.root)
	if err != nil || len(entries) > 0 || len(u.opaques) > 0 {
		return false
	}
	a, ok := u.below.lookup(".")
	return ok && a.mode&0o7777 == u.rootAttr.mode&0o7777 && a.uid == u.rootAttr.uid && a.gid == u.rootAttr.gid &&
		a.mtime.Equal(u.rootAttr.mtime) && maps.Equal(a.xattrs, u.rootAttr.xattrs)
}
