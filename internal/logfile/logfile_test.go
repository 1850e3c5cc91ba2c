package logfile

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStaysBelowItsBoundAndKeepsTheNewest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	const limit = 1000
	w, err := Open(path, limit)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var all bytes.Buffer
	for i := range 500 {
		line := fmt.Sprintf("line %d\n", i)
		all.WriteString(line)
		if n, err := w.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatalf("Write = %d, %v, want %d, nil", n, err, len(line))
		}
	}
	old, err := os.ReadFile(path + ".1")
	if err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	kept := string(old) + string(now)
	if len(kept) > limit || len(kept) < limit/2-len("line 499\n") {
		t.Errorf("kept %d bytes, want %d to %d, less one line", len(kept), limit/2, limit)
	}
	if !strings.HasSuffix(all.String(), kept) {
		t.Error("what was kept is not the end of what was written")
	}
	if !strings.HasSuffix(w.Tail(), "line 499\n") {
		t.Errorf("Tail = %q, want the last line at its end", w.Tail())
	}
}

func TestOneHugeWriteIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := Open(path, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if n, err := w.Write(make([]byte, 1<<20)); n != 1<<20 || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	for _, name := range []string{path, path + ".1"} {
		if info, err := os.Stat(name); err != nil || info.Size() > 500 {
			t.Errorf("%s: %v, %v, want at most 500 bytes", name, info, err)
		}
	}
}
