package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/testenv"
)

// opened is a log with both its streams.
func opened(t *testing.T, path string, limit int64) (out, err io.Writer, w *Writer) {
	t.Helper()
	w, e := Open(path, limit)
	if e != nil {
		t.Fatal(e)
	}
	t.Cleanup(func() { w.Close() })
	return w.Stream(Stdout), w.Stream(Stderr), w
}

func put(t *testing.T, w io.Writer, text string) {
	t.Helper()
	if n, err := w.Write([]byte(text)); n != len(text) || err != nil {
		t.Fatalf("Write = %d, %v, want %d, nil", n, err, len(text))
	}
}

// streams is what a log has of each stream.
type streams struct{ out, err strings.Builder }

// read adds what the reader has.
func (s *streams) read(t *testing.T, r *Reader) {
	t.Helper()
	for {
		record, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		to := &s.out
		if record.Stream == Stderr {
			to = &s.err
		}
		to.Write(record.Text)
		if !record.Part {
			to.WriteByte('\n')
		}
	}
}

func reader(t *testing.T, path string) *Reader {
	t.Helper()
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// TestRecordsHaveTheFormOfTheCRI reads the file as a collector of Kubernetes would.
func TestRecordsHaveTheFormOfTheCRI(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	out, err, _ := opened(t, path, 1<<20)
	put(t, out, "one\ntwo\npart")
	put(t, err, "oops\n")
	put(t, out, " of a line\n\n")
	data, e := os.ReadFile(path)
	if e != nil {
		t.Fatal(e)
	}
	const at = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z `
	want := "^" + at + "stdout F one\n" + at + "stdout F two\n" + at + "stdout P part\n" + at + "stderr F oops\n" + at + "stdout F  of a line\n" + at + "stdout F \n$"
	if !regexp.MustCompile(want).Match(data) {
		t.Errorf("the log is\n%s", data)
	}
	r := reader(t, path)
	first, e := r.Next()
	if e != nil || time.Since(first.Time) < 0 || time.Since(first.Time) > time.Hour {
		t.Errorf("the first record is of %v (%v)", first.Time, e)
	}
}

// TestBytesComeBack writes what no line is: binary, NULs, carriage returns, no newline, lines longer than a record.
func TestBytesComeBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	out, err, _ := opened(t, path, 64<<20)
	random := rand.New(rand.NewSource(1))
	var want streams
	for range 300 {
		data := make([]byte, random.Intn(70_000))
		switch random.Intn(4) {
		case 0:
			random.Read(data)
		case 1: // NULs
		case 2:
			data = bytes.Repeat([]byte{'\n'}, len(data)%5000)
		case 3:
			data = bytes.Repeat([]byte("a line\r\n"), len(data)/10)
		}
		if random.Intn(2) == 0 {
			want.out.Write(data)
			put(t, out, string(data))
		} else {
			want.err.Write(data)
			put(t, err, string(data))
		}
	}
	var got streams
	got.read(t, reader(t, path))
	if got.out.String() != want.out.String() || got.err.String() != want.err.String() {
		t.Errorf("%d and %d bytes came back other than the %d and %d that were written", got.out.Len(), got.err.Len(), want.out.Len(), want.err.Len())
	}
}

func TestCountAndNumbersOfLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	out, err, _ := opened(t, path, 1<<20)
	put(t, out, "0\n1 begins")
	put(t, err, "2\n3")
	put(t, out, ", ends\n4")
	r := reader(t, path)
	if n, err := r.Count(); n != 5 || err != nil {
		t.Errorf("Count = %d, %v, want 5", n, err)
	}
	var lines Lines
	var numbers []string
	for {
		record, err := r.Next()
		if err != nil {
			break
		}
		number, begins := lines.Of(record)
		numbers = append(numbers, fmt.Sprint(number, begins))
	}
	if got := strings.Join(numbers, ", "); got != "0 true, 1 true, 2 true, 3 true, 1 false, 4 true" {
		t.Errorf("lines are %s", got)
	}
}

// TestFollowingOverRotations reads in turn with a writer whose log begins a new file every few lines.
func TestFollowingOverRotations(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	r := reader(t, path) // before there is a log
	r.Follow()
	var got streams
	got.read(t, r)
	out, _, _ := opened(t, path, 4000)
	var want strings.Builder
	for i := range 2000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		put(t, out, line)
		if i%20 == 19 { // a bit less than a file
			got.read(t, r)
		}
	}
	got.read(t, r)
	if got.out.String() != want.String() || r.Gap() {
		t.Errorf("followed %d of %d bytes", got.out.Len(), want.Len())
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	got.read(t, r) // of a container that was removed there is no more
}

// TestFollowerThatIsSlow is left behind, is told so, and goes on.
func TestFollowerThatIsSlow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	out, _, _ := opened(t, path, 4000)
	put(t, out, "first\n")
	r := reader(t, path)
	r.Follow()
	for i := range 500 {
		put(t, out, fmt.Sprintf("line %d\n", i))
	}
	var got streams
	got.read(t, r)
	if !r.Gap() || r.Gap() {
		t.Error("a gap is not told, or twice")
	}
	if !strings.HasPrefix(got.out.String(), "first\nline 0\n") || !strings.HasSuffix(got.out.String(), "\nline 499\n") {
		t.Errorf("read %q", got.out.String())
	}
}

// TestReadingEnds reads a log while it grows: what is printed is what was there.
func TestReadingEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	out, _, _ := opened(t, path, 4000)
	put(t, out, "there\n")
	r := reader(t, path)
	put(t, out, "later\n")
	var got streams
	got.read(t, r)
	if got.out.String() != "there\n" {
		t.Errorf("read %q", got.out.String())
	}
}

// TestConcurrentFollower follows a writer that is not held up; what is missing has to be told.
func TestConcurrentFollower(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	out, _, _ := opened(t, path, 2<<20)
	r := reader(t, path)
	r.Follow()
	written := make(chan struct{})
	const lines = 60_000
	go func() {
		defer close(written)
		for i := range lines {
			fmt.Fprintf(out, "%d\n", i)
		}
	}()
	next, gaps, missing := 0, 0, 0
	for last := false; ; {
		record, err := r.Next()
		if err == io.EOF {
			if last {
				break
			}
			select {
			case <-written:
				last = true
			default:
				runtime.Gosched()
			}
			continue
		}
		if r.Gap() {
			gaps++
		}
		number := 0
		if _, scanned := fmt.Sscan(string(record.Text), &number); err != nil || scanned != nil || number < next {
			t.Fatalf("record %q after line %d: %v", record.Text, next-1, err)
		}
		missing += number - next
		next = number + 1
	}
	t.Logf("%d lines are missing, %d gaps were told", missing, gaps)
	if next != lines || missing > 0 && gaps == 0 {
		t.Errorf("read up to line %d of %d; %d are missing and %d gaps were told", next, lines, missing, gaps)
	}
}

// TestDamagedRecordsArePassedOver has what a crash may leave between records, and a line without an end.
func TestDamagedRecordsArePassedOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	const at = "2026-01-02T03:04:05.000000000Z "
	text := "\n\nno record\n" + at + "stdout\n" + at + "stdin F x\n" + at + "stdout X x\n" + "yesterday stdout F x\n" +
		strings.Repeat("z", 1<<20) + "\n" + at + "stdout F good\n" + at + "stderr P cut o"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var got streams
	got.read(t, reader(t, path))
	if got.out.String() != "good\n" || got.err.String() != "" {
		t.Errorf("read %q and %q", got.out.String(), got.err.String())
	}
}

// TestMemoryIsBounded writes many short lines at once, each of which makes a record many times its size.
func TestMemoryIsBounded(t *testing.T) {
	out, _, _ := opened(t, filepath.Join(t.TempDir(), "log"), 4<<20)
	lines := bytes.Repeat([]byte{'\n'}, 256<<10)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 20 {
		put(t, out, string(lines))
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.Sys) - int64(before.Sys); grown > 16<<20 {
		t.Errorf("writing took %d MiB of memory", grown>>20)
	}
}

// TestFullDisk fills a disk under a log: one error is told, no half record stays, and the log goes on once there is room.
func TestFullDisk(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=256k", "husk-test", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "log")
	out, _, w := opened(t, path, 1<<20)
	var told []error
	w.Failed = func(err error) { told = append(told, err) }
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 1500) + "\n"
	for range 200 {
		put(t, out, line)
	}
	if len(told) != 1 || !errors.Is(told[0], syscall.ENOSPC) {
		t.Errorf("told %v, want once that the disk is full", told)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	put(t, out, "room again\n")
	var got streams
	got.read(t, reader(t, path))
	all := strings.SplitAfter(got.out.String(), "\n")
	for i, l := range all[:len(all)-2] {
		if l != line {
			t.Fatalf("line %d is %q", i, l)
		}
	}
	if len(all) < 20 || all[len(all)-2] != "room again\n" {
		t.Errorf("%d lines, the last %q", len(all), all[len(all)-2])
	}
	w.Close()
}

// TestFullDiskAtARotation has no room for a new file, then some.
func TestFullDiskAtARotation(t *testing.T) {
	testenv.NeedRoot(t)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=3", "husk-test", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "log")
	out, _, w := opened(t, path, 2000)
	told := 0
	w.Failed = func(error) { told++ }
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		put(t, out, "a line of the log\n")
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	put(t, out, "room again\n")
	var got streams
	got.read(t, reader(t, path))
	if told != 1 || !strings.HasSuffix(got.out.String(), "a line of the log\nroom again\n") {
		t.Errorf("told %d times; read %q", told, got.out.String())
	}
	w.Close()
}
