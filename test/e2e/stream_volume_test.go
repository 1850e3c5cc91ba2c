package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// summed counts and sums what is written to it.
type summed struct {
	sum   hash.Hash
	bytes int64
}

func newSummed() *summed { return &summed{sum: sha256.New()} }

func (s *summed) Write(p []byte) (int, error) {
	s.bytes += int64(len(p))
	return s.sum.Write(p)
}

func (s *summed) String() string {
	return fmt.Sprintf("%d bytes with sum %x", s.bytes, s.sum.Sum(nil)[:8])
}

// noise makes n bytes that no part of which is like another. Random data would cost more than its transport.
type noise struct {
	left  int64
	block []byte // of random bytes, whose beginning is counted up
	rest  []byte
}

func newNoise(n int64) *noise {
	random := rand.NewChaCha8([32]byte{1})
	block := make([]byte, 64<<10)
	_, _ = random.Read(block) // never fails
	return &noise{left: n, block: block}
}

func (n *noise) Read(p []byte) (int, error) {
	if n.left == 0 {
		return 0, io.EOF
	}
	if len(n.rest) == 0 {
		for i := range n.block {
			n.block[i]++
			if n.block[i] != 0 {
				break
			}
		}
		n.rest = n.block
	}
	size := copy(p[:min(int64(len(p)), n.left)], n.rest)
	n.rest, n.left = n.rest[size:], n.left-int64(size)
	return size, nil
}

// throughput sends size bytes through a command's stdin and stdout and returns MiB a second. The command is
// timed from the first byte that comes back, so that its start does not count.
func throughput(t *testing.T, cmd *exec.Cmd, size int64) float64 {
	t.Helper()
	sent, got := newSummed(), newSummed()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(2*patience, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	fed := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.MultiWriter(in, sent), newNoise(size))
		in.Close()
		fed <- err
	}()
	first := make([]byte, 1)
	if _, err := io.ReadFull(out, first); err != nil {
		t.Errorf("read the first byte: %v; stderr %q", err, stderr.String())
	}
	began := time.Now()
	_, _ = got.Write(first)
	if _, err := io.Copy(got, out); err != nil {
		t.Errorf("read: %v", err)
	}
	took := time.Since(began)
	if err := <-fed; err != nil {
		t.Errorf("write: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v; stderr %q", err, stderr.String())
	}
	if got.String() != sent.String() {
		t.Errorf("came back: %v, want %v", got, sent)
	}
	return float64(size) / (1 << 20) / took.Seconds()
}

// TestStreamThrough sends much data through a container, whole, and compares the speed with runc's on the
// same root.
func TestStreamThrough(t *testing.T) {
	begin(t)
	size := int64(128 << 20)
	if large() {
		size = 1 << 30
	}
	mine := throughput(t, husk(t, "run", "--rm", "-i", demo, "cat").cmd(), size)
	t.Logf("husk: %d MiB at %.0f MiB/s", size>>20, mine)
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Log("runc is not installed: nothing to compare with")
		return
	}
	b := newBundle(t, "exec cat")
	theirs := throughput(t, exec.Command(runc, "--root", t.TempDir(), "run", "--bundle", b.write(), name(t)), size)
	t.Logf("runc: %d MiB at %.0f MiB/s", size>>20, theirs)
}

// TestStreamOneWay measures each direction alone.
func TestStreamOneWay(t *testing.T) {
	begin(t)
	const blocks, size = 2048, 2048 * 64 << 10
	id := detach(t, "pipe", demo, "sleep", "1000")

	began := time.Now()
	got := newSummed()
	cmd := husk(t, "exec", id, "dd", "if=/dev/zero", "bs=64k", fmt.Sprintf("count=%d", blocks)).cmd()
	cmd.Stdout = got
	if err := cmd.Run(); err != nil || got.bytes != size {
		t.Errorf("out: %v, %d bytes, want %d", err, got.bytes, size)
	}
	t.Logf("out: %.0f MiB/s", float64(got.bytes>>20)/time.Since(began).Seconds())

	began = time.Now()
	cmd = husk(t, "exec", "-i", id, "dd", "of=/dev/null", "bs=64k", "iflag=fullblock").cmd()
	cmd.Stdin = io.LimitReader(zeros{}, size)
	var report bytes.Buffer
	cmd.Stderr = &report
	if err := cmd.Run(); err != nil || !strings.Contains(report.String(), fmt.Sprintf("%d+0 records in", blocks)) {
		t.Errorf("in: %v, dd says %q, want %d records", err, report.String(), blocks)
	}
	t.Logf("in: %.0f MiB/s", float64(size>>20)/time.Since(began).Seconds())
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestStreamsApart prints much to stdout and stderr at the same time: both are whole and in order.
func TestStreamsApart(t *testing.T) {
	begin(t)
	const lines = 200_000
	r := husk(t, "run", "--rm", demo, "sh", "-c", fmt.Sprintf("seq 1 %d & seq 1 %d | sed 's/^/err /' >&2; wait", lines, lines/2)).run()
	if r.code != 0 {
		t.Fatalf("exit code %d, stderr %.200q", r.code, r.stderr)
	}
	var out, err strings.Builder
	for i := 1; i <= lines; i++ {
		fmt.Fprintln(&out, i)
		if i <= lines/2 {
			fmt.Fprintln(&err, "err", i)
		}
	}
	if r.stdout != out.String() {
		t.Errorf("stdout has %d bytes, want %d: %s", len(r.stdout), out.Len(), firstDifference(r.stdout, out.String()))
	}
	if r.stderr != err.String() {
		t.Errorf("stderr has %d bytes, want %d: %s", len(r.stderr), err.Len(), firstDifference(r.stderr, err.String()))
	}
}

// firstDifference shows where two texts part.
func firstDifference(got, want string) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("from byte %d on it has %.40q, want %.40q", i, got[i:], want[i:])
		}
	}
	return "one ends before the other"
}
