package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// RemoveOptions say how images are removed.
type RemoveOptions struct {
	// Force removes an image that has several names by its id, and one that is in use. Layers that a
	// running machine holds open stay until it ends.
	Force bool
	// InUse names who needs an image though no process holds it, such as containers that run; may be nil.
	InUse func(Image) []string
}

// Removed says what Remove did.
type Removed struct {
	Untagged []string // full names that are gone
	Deleted  []string // ids of images that are gone
	Freed    int64    // bytes of layer files that are gone
}

// collectMarker asks whoever can to collect layers that no image names.
const collectMarker = "collect"

// Remove removes images by name or id, and the layers that no other image needs. Of an image with
// several names, removing one name takes away that name only. It goes on after an error with the next
// reference, and returns what it did with all errors.
func (s *Store) Remove(ctx context.Context, refs []string, opts RemoveOptions) (Removed, error) {
	var done Removed
	var errs error
	for _, ref := range refs {
		if err := s.removeOne(ctx, ref, opts, &done); err != nil {
			errs = joinErrors(errs, fmt.Errorf("remove image %s: %w", ref, err))
		}
	}
	if len(done.Deleted) > 0 {
		freed, err := s.collect()
		done.Freed = freed
		errs = joinErrors(errs, err)
	}
	return done, errs
}

func (s *Store) removeOne(ctx context.Context, ref string, opts RemoveOptions, done *Removed) error {
	guard, err := s.lock(ctx, storeLock, exclusive)
	if err != nil {
		return err
	}
	defer guard.Close()
	records, damaged := s.records()
	r, err := find(records, ref)
	if err != nil {
		return joinErrors(err, damaged)
	}
	byName := slices.ContainsFunc(lookupNames(ref), func(n string) bool { return contains(r.Names, n) })
	if byName && len(r.Names) > 1 {
		gone := lookupNames(ref)
		r.Names = slices.DeleteFunc(r.Names, func(n string) bool {
			if contains(gone, n) {
				done.Untagged = append(done.Untagged, n)
				return true
			}
			return false
		})
		return s.writeRecord(r)
	}
	if len(r.Names) > 1 && !opts.Force {
		return fmt.Errorf("it has several names (remove one of them, or all with --force): %s", strings.Join(r.Names, ", "))
	}
	if !opts.Force {
		if err := s.checkUnused(r, opts); err != nil {
			return err
		}
	}
	if err := os.Remove(s.recordPath(r.ID)); err != nil {
		return err
	}
	if lock, err := tryLock(s.imageLock(r.ID), exclusive); err == nil {
		unlockAndDelete(lock)
	}
	done.Untagged = append(done.Untagged, r.Names...)
	done.Deleted = append(done.Deleted, r.ID)
	return nil
}

// checkUnused returns an error that matches ErrInUse if somebody needs the image of r.
func (s *Store) checkUnused(r record, opts RemoveOptions) error {
	lock, err := tryLock(s.imageLock(r.ID), exclusive)
	if errors.Is(err, errLocked) {
		return fmt.Errorf("%w: a running container needs it (stop it first, or use --force)", ErrInUse)
	}
	if err != nil {
		return err
	}
	unlockAndDelete(lock)
	if opts.InUse == nil {
		return nil
	}
	img, err := s.image(r)
	if err != nil {
		return nil // damaged: nobody can need it
	}
	if holders := opts.InUse(img); len(holders) > 0 {
		return fmt.Errorf("%w: by %s (remove that first, or use --force)", ErrInUse, strings.Join(holders, ", "))
	}
	return nil
}

// Prune removes what unfinished pulls have left and layers that no image needs, and returns the bytes
// freed. It does nothing while a pull runs: the last one does it when it ends.
func (s *Store) Prune() (int64, error) {
	err := s.sweep()
	freed, cerr := s.collect()
	return freed, joinErrors(err, cerr)
}

// collect deletes layer files that no record names and nobody holds open.
func (s *Store) collect() (int64, error) {
	marker := filepath.Join(s.dir, collectMarker)
	pulls, err := tryLock(filepath.Join(s.dir, locksDir, pullLock), exclusive)
	if errors.Is(err, errLocked) {
		// A pull counts on layers that no record names yet. It looks for the marker when it ends.
		f, err := os.OpenFile(marker, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return 0, fmt.Errorf("leave layers to be collected later: %w", err)
		}
		return 0, f.Close()
	}
	if err != nil {
		return 0, err
	}
	defer pulls.Close()
	_ = os.Remove(marker)
	records, damaged := s.records()
	if damaged != nil {
		// What a damaged record names is not known, so nothing may go.
		return 0, fmt.Errorf("collect layers: %w", damaged)
	}
	needed := map[string]bool{}
	for _, r := range records {
		for _, key := range r.Layers {
			needed[s.layerPath(key)] = true
		}
	}
	files, err := filepath.Glob(filepath.Join(s.dir, layersDir, "*.erofs"))
	if err != nil {
		return 0, err
	}
	var freed int64
	var errs error
	for _, file := range files {
		if needed[file] {
			continue
		}
		n, err := deleteUnheld(file)
		freed += n
		errs = joinErrors(errs, err)
	}
	return freed, errs
}

// deleteUnheld deletes a layer file unless a Lease, or a process that inherited its file, holds it.
func deleteUnheld(file string) (int64, error) {
	f, err := lockExisting(file, exclusive)
	if errors.Is(err, errLocked) || errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if err := os.Remove(file); err != nil {
		return 0, err
	}
	return allocated(fi), nil
}

// collectIfAsked collects if somebody had to leave that undone. Precondition: this process pulls no more.
func (s *Store) collectIfAsked() {
	if _, err := os.Lstat(filepath.Join(s.dir, collectMarker)); err == nil {
		_, _ = s.collect() // what could not be done now is done by the next Remove
	}
}
