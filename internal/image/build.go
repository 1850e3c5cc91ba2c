package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	digest "github.com/opencontainers/go-digest"
)

// Bounds of fetching layers.
const (
	fetchJobs     = 3           // layers at a time
	fetchAttempts = 3           // each with all of the layer
	fetchStall    = time.Minute // with no byte received
	fetchPause    = time.Second // before the second attempt; doubles
)

// errStalled says that a download has stood still.
var errStalled = fmt.Errorf("nothing received for %v", fetchStall)

// build makes the layer files of one image that the store lacks.
type build struct {
	s       *Store
	w       *work
	src     *sourceImage
	diffIDs []digest.Digest
	units   []unit
	report  func(Progress)
	budget  *budget
}

// claim is a layer file that this process is to make: its lock is held.
type claim struct {
	unit
	place int // of the unit in the image
	lock  *os.File
}

// fetched is a layer on its way into a file.
type fetched struct {
	done chan struct{} // closed when the rest is valid
	path string
	err  error
}

func newBuild(s *Store, w *work, src *sourceImage, diffIDs []digest.Digest, opts PullOptions) *build {
	b := &build{
		s: s, w: w, src: src, diffIDs: diffIDs,
		units: plan(diffIDs, opts.MaxLayers), budget: newBudget(opts.Limits),
	}
	var mu sync.Mutex // one call of Progress at a time
	b.report = func(p Progress) {
		if opts.Progress == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		opts.Progress(p)
	}
	return b
}

// keys are the layer files of the image, the lowest first.
func (b *build) keys() []string {
	keys := make([]string, len(b.units))
	for i, u := range b.units {
		keys[i] = u.key
	}
	return keys
}

// run makes what is missing, the lowest layer first.
func (b *build) run(ctx context.Context) error {
	claims, err := b.claim(ctx)
	defer func() {
		for _, c := range claims {
			if c.lock != nil {
				unlockAndDelete(c.lock)
			}
		}
	}()
	if err != nil {
		return err
	}
	if err := b.checkSpace(claims); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var fetches sync.WaitGroup
	defer fetches.Wait() // nothing writes into the work directory any more once run returns
	defer cancel()
	blobs := b.fetchAll(ctx, &fetches, claims)
	for i, c := range claims {
		if err := b.make(ctx, c, blobs); err != nil {
			return err
		}
		unlockAndDelete(c.lock)
		claims[i].lock = nil
	}
	return nil
}

// claim locks the layer files that are missing, in the order that locks are taken in. Those that another
// process is making it waits for.
func (b *build) claim(ctx context.Context) ([]claim, error) {
	var claims []claim
	for i, u := range b.units {
		if b.s.hasLayer(u.key) {
			b.progress(u, PhaseCached)
			continue
		}
		path := filepath.Join(b.s.dir, locksDir, u.key)
		lock, err := tryLock(path, exclusive)
		if errors.Is(err, errLocked) {
			b.progress(u, PhaseWaiting)
			lock, err = lockFile(ctx, path, exclusive)
		}
		if err != nil {
			return claims, err
		}
		if b.s.hasLayer(u.key) {
			unlockAndDelete(lock)
			b.progress(u, PhaseCached)
			continue
		}
		claims = append(claims, claim{unit: u, place: i, lock: lock})
	}
	return claims, nil
}

func (s *Store) hasLayer(key string) bool {
	fi, err := os.Lstat(s.layerPath(key))
	return err == nil && fi.Mode().IsRegular()
}

func (b *build) progress(u unit, phase Phase) {
	for i := u.first; i <= u.last; i++ {
		b.report(b.at(i, phase, 0))
	}
}

// at is the progress of layer i.
func (b *build) at(i int, phase Phase, done int64) Progress {
	return Progress{
		Layer: i + 1, Layers: len(b.src.layers), Digest: b.name(i), Phase: phase,
		Done: done, Total: max(0, b.src.layers[i].size),
	}
}

// name is what layer i is called in messages: its blob's digest, or else that of its content.
func (b *build) name(i int) string {
	if d := b.src.layers[i].digest; d.Hex != "" {
		return d.String()
	}
	return b.diffIDs[i].String()
}

func (b *build) layerError(i int, err error) error {
	// Here and not later: what filled the disk is still there, so the free space told is what mattered.
	return &LayerError{Index: i, Count: len(b.src.layers), Digest: b.name(i), Err: b.s.spaceError(err)}
}

// checkSpace refuses to begin what cannot end well: layers do not get smaller by unpacking.
func (b *build) checkSpace(claims []claim) error {
	var need int64
	for _, c := range claims {
		for i := c.first; i <= c.last; i++ {
			size := max(0, b.src.layers[i].size)
			if size > b.budget.limits.Bytes {
				return b.layerError(i, b.budget.tooLarge())
			}
			need += size
		}
	}
	free, err := freeBytes(b.s.dir)
	if err != nil {
		return err
	}
	if need > free {
		return &NoSpaceError{Dir: b.s.dir, Need: need, Free: free}
	}
	return nil
}

// fetchAll begins to fetch the layers that are behind a network, some at a time, in order.
func (b *build) fetchAll(ctx context.Context, wg *sync.WaitGroup, claims []claim) map[int]*fetched {
	blobs := map[int]*fetched{}
	var queue []int
	for _, c := range claims {
		for i := c.first; i <= c.last; i++ {
			if b.src.layers[i].remote {
				blobs[i] = &fetched{done: make(chan struct{}), path: b.w.path(fmt.Sprintf("blob-%d", i))}
				queue = append(queue, i)
			}
		}
	}
	slots := make(chan struct{}, fetchJobs)
	wg.Go(func() {
		for _, i := range queue {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				defer close(blobs[i].done)
				blobs[i].err = b.fetch(ctx, i, blobs[i].path)
			})
		}
	})
	return blobs
}

// fetch gets layer i into a file, and tries again where that may help.
func (b *build) fetch(ctx context.Context, i int, path string) error {
	var err error
	for attempt := range fetchAttempts {
		if attempt > 0 {
			select {
			case <-ctx.Done():
				return err
			case <-time.After(fetchPause << (attempt - 1)):
			}
		}
		if err = b.fetchOnce(ctx, i, path); err == nil {
			return nil
		}
		if ctx.Err() != nil || isPermanent(err) {
			return err
		}
	}
	return err
}

func (b *build) fetchOnce(ctx context.Context, i int, path string) error {
	layer := b.src.layers[i]
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(fetchStall, func() { cancel(errStalled) })
	defer watch.Stop()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := layer.open(ctx)
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	defer r.Close()
	// One byte more than announced is enough to know that there is too much.
	h := newHashReader(io.LimitReader(r, layer.size+1), func(n int64) {
		watch.Reset(fetchStall)
		b.report(b.at(i, PhaseDownloading, n))
	})
	_, err = io.Copy(f, h)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if err != nil && h.n < layer.size {
		return fmt.Errorf("download: after %d of %d bytes: %w", h.n, layer.size, err)
	}
	if err := checkBlob(h, layer); err != nil {
		return err
	}
	return joinErrors(err, f.Close())
}

// checkBlob compares what was read of a layer's blob, to its end, with what the image says.
func checkBlob(h *hashReader, layer sourceLayer) error {
	switch {
	case layer.size >= 0 && h.n < layer.size:
		return fmt.Errorf("%w: it is cut off after %d of %d bytes", ErrCorrupt, h.n, layer.size)
	case layer.size >= 0 && h.n > layer.size:
		return fmt.Errorf("%w: it has more than the %d bytes it should have", ErrCorrupt, layer.size)
	case layer.digest.Hex != "" && h.digest() != layer.digest.String():
		return fmt.Errorf("%w: it is %s", ErrCorrupt, h.digest())
	}
	return nil
}

// make makes one layer file.
func (b *build) make(ctx context.Context, c claim, blobs map[int]*fetched) error {
	tree, skel := b.w.path("tree"), b.w.path("parents")
	for _, dir := range []string{tree, skel} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	defer os.RemoveAll(tree)
	defer os.RemoveAll(skel)
	below, err := b.s.view(b.keys()[:c.place])
	if err != nil {
		return err
	}
	defer below.close()
	u := newUnpacker(tree, skel, below, c.last > c.first, b.budget)
	for i := c.first; i <= c.last; i++ {
		if err := b.unpack(ctx, u, i, blobs[i]); err != nil {
			return b.layerError(i, err)
		}
	}
	b.progress(c.unit, PhaseConverting)
	if err := b.s.install(ctx, b.w, u, c.key, c.place > 0); err != nil {
		return b.layerError(c.last, err)
	}
	b.progress(c.unit, PhaseDone)
	return nil
}

// unpack reads layer i, checks it and unpacks it.
func (b *build) unpack(ctx context.Context, u *unpacker, i int, blob *fetched) error {
	layer := b.src.layers[i]
	var r io.ReadCloser
	var err error
	if blob != nil {
		select {
		case <-blob.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if blob.err != nil {
			return blob.err
		}
		defer os.Remove(blob.path)
		r, err = os.Open(blob.path)
	} else {
		r, err = layer.open(ctx)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	raw := newHashReader(r, func(n int64) { b.report(b.at(i, PhaseUnpacking, n)) })
	got, err := unpackStream(ctx, u, raw)
	if err != nil {
		if errors.Is(err, ErrTooLarge) || isFull(err) || ctx.Err() != nil {
			return err
		}
		// A damaged stream fails to unpack before its end is reached. Say what is wrong, not where.
		if _, rerr := io.Copy(io.Discard, raw); rerr == nil {
			if cerr := checkBlob(raw, layer); cerr != nil {
				return cerr
			}
		}
		return err
	}
	if err := checkBlob(raw, layer); err != nil {
		return err
	}
	if want := b.diffIDs[i].String(); got != want {
		return fmt.Errorf("%w: its content is %s, the image says %s", ErrCorrupt, got, want)
	}
	return nil
}

// unpackStream unpacks a layer's blob, reads it to its end and returns the digest of its content.
func unpackStream(ctx context.Context, u *unpacker, raw io.Reader) (string, error) {
	d, err := Decompress(raw)
	if err != nil {
		return "", fmt.Errorf("decompress: %w", err)
	}
	defer d.Close()
	content := newHashReader(u.budget.reader(d), nil)
	if err := u.apply(ctx, content); err != nil {
		return "", err
	}
	// A tar may be padded, and a blob may go on after what it compresses.
	for _, rest := range []io.Reader{content, raw} {
		if _, err := io.Copy(io.Discard, rest); err != nil {
			return "", fmt.Errorf("read to the end: %w", err)
		}
	}
	return content.digest(), nil
}

// isPermanent says whether an error will come again, whatever is tried.
func isPermanent(err error) bool {
	var answer *transport.Error
	if errors.As(err, &answer) && answer.StatusCode/100 == 4 && !answer.Temporary() {
		return true
	}
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrTooLarge) || isFull(err)
}

// install makes the tree that u has unpacked the layer file of key.
func (s *Store) install(ctx context.Context, w *work, u *unpacker, key string, mayBeEmpty bool) error {
	file := w.path("layer.erofs")
	if mayBeEmpty && u.changesNothing() {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			return err
		}
	} else if err := makeErofs(ctx, file, u.root, key); err != nil {
		_ = os.Remove(file)
		return err
	}
	if err := os.Rename(file, s.layerPath(key)); err != nil {
		return fmt.Errorf("put layer in place: %w", err)
	}
	return syncDir(filepath.Join(s.dir, layersDir))
}
