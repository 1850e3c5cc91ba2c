package image

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// layerAlign is what a layer file's length must be a multiple of, in bytes, for virtio-pmem.
const layerAlign = 2 << 20

// sourceDateEpoch fixes the time in the superblock, so that the same tree makes the same file. It is
// also the latest time that a file may keep, so it is the last that fits 32 bits.
const sourceDateEpoch = "4294967295"

// findMkfs finds mkfs.erofs, also where a user's PATH does not lead.
func findMkfs() (string, error) {
	for _, name := range []string{"mkfs.erofs", "/usr/sbin/mkfs.erofs", "/sbin/mkfs.erofs", "/usr/local/sbin/mkfs.erofs"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: install erofs-utils", ErrNoTool)
}

// MakeLayer makes a layer of a directory outside of any store: the EROFS image file, which must not exist.
func MakeLayer(ctx context.Context, file, dir string) error {
	return makeErofs(ctx, file, dir, strings.Repeat("0", 64))
}

// makeErofs makes an EROFS image of a directory: uncompressed and with every file in blocks of its own,
// so that a guest can map it (DAX). key names the layer. The same tree makes the same file, but for the
// order of the extended attributes of a file that has several, which is that in which they were set.
func makeErofs(ctx context.Context, file, dir, key string) error {
	mkfs, err := findMkfs()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, mkfs, "--quiet", "-E", "noinline_data", "--preserve-mtime",
		"-U", layerUUID(key), file, dir)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH="+sourceDateEpoch)
	var out tailBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// Should husk be killed, nothing must go on writing into a directory that the next one sweeps. The
	// signal is bound to the thread that starts the process, which therefore must not end before.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread()
	err = cmd.Run()
	runtime.UnlockOSThread()
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if free, ferr := freeBytes(filepath.Dir(file)); strings.Contains(out.String(), "No space left") ||
			(ferr == nil && free < layerAlign) {
			return fmt.Errorf("make EROFS image: %w", syscall.ENOSPC)
		}
		return fmt.Errorf("make EROFS image: %s: %w: %s", mkfs, err, strings.TrimSpace(out.String()))
	}
	return finishLayer(file)
}

// finishLayer pads a layer file, sparsely, and brings it to the disk.
func finishLayer(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := f.Truncate((fi.Size() + layerAlign - 1) / layerAlign * layerAlign); err != nil {
		return fmt.Errorf("pad layer: %w", err)
	}
	// Nobody but root gets into the directory. A monitor that runs as a user of its own is handed the open
	// file, and must open that once more to map it.
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync layer: %w", err)
	}
	return nil
}

// layerUUID derives a file system's UUID (version 8 of RFC 9562) from its key, a digest in hex.
func layerUUID(key string) string {
	var b [16]byte
	_, _ = hex.Decode(b[:], []byte(key[:32]))
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// tailBuffer keeps the last bytes written to it.
type tailBuffer struct{ buf bytes.Buffer }

const tailSize = 4 << 10

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.buf.Write(p[max(0, len(p)-tailSize):])
	if over := t.buf.Len() - tailSize; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string { return t.buf.String() }

// freeBytes is the space that root may still use in the file system of path.
func freeBytes(path string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("find free space of %s: %w", path, err)
	}
	return int64(st.Bfree) * st.Bsize, nil
}

// allocated is the disk space of a file in bytes.
func allocated(fi os.FileInfo) int64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}

// checkXattrs says whether overlayfs's marks can be kept on the file system of dir. Root of a user namespace may not set
// them (user_namespaces(7)): there the images that have none can be unpacked.
func checkXattrs(dir string) error {
	err := syscall.Setxattr(dir, "trusted.husk", []byte{'y'}, 0)
	if errors.Is(err, syscall.ENOTSUP) {
		return fmt.Errorf("%s: the file system allows no trusted extended attributes, which layers need: %w", dir, err)
	}
	if errors.Is(err, syscall.EPERM) {
		return nil
	}
	return err
}
