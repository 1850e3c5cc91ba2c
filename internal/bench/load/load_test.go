package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestMain lets this binary be the other end of its own pipes.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "bench-load" {
		if Main(os.Args[2:], os.Stdout) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func samples(t *testing.T, args ...string) map[string]float64 {
	t.Helper()
	var out bytes.Buffer
	if err := Main(args, &out); err != nil {
		t.Fatal(err)
	}
	var list []Sample
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, s := range list {
		if s.Value <= 0 {
			t.Errorf("%s is %g, want more than nothing", s.Name, s.Value)
		}
		found[s.Name] = s.Value
	}
	return found
}

func TestFiles(t *testing.T) {
	dir, data := t.TempDir(), filepath.Join(t.TempDir(), "data")
	if err := MakeData(data); err != nil {
		t.Fatal(err)
	}
	found := samples(t, "files", dir, data)
	for _, name := range []string{
		"read.first", "read.again", "write", "random.read", "random.write",
		"small.create", "small.stat", "small.read", "small.unlink",
	} {
		if found[name] == 0 {
			t.Errorf("%s was not measured", name)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestFilesChecksData(t *testing.T) {
	dir, data := t.TempDir(), filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(data, []byte("too short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Main([]string{"files", dir, data}, &bytes.Buffer{}); err == nil {
		t.Error("a data file of the wrong size was measured")
	}
}

func TestCPU(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Skip("no program true here")
	}
	found := samples(t, "cpu", program)
	for _, name := range []string{"fork", "syscall", "loop", "pipe"} {
		if found[name] == 0 {
			t.Errorf("%s was not measured", name)
		}
	}
}

func TestUnknownWork(t *testing.T) {
	if err := Main([]string{"dance"}, &bytes.Buffer{}); err == nil {
		t.Error("unknown work was done")
	}
}

func TestNetwork(t *testing.T) {
	r, w := io.Pipe()
	port := freePort(t)
	go func() { _ = serve(port, w) }() // until the test's process ends
	if line, err := bufio.NewReader(r).ReadString('\n'); err != nil || line != "serving\n" {
		t.Fatalf("the server printed %q, %v", line, err)
	}
	var out bytes.Buffer
	if err := Main([]string{"net", port}, &out); err != nil {
		t.Fatal(err)
	}
	var samples []Sample
	if err := json.Unmarshal(out.Bytes(), &samples); err != nil || len(samples) != 6 {
		t.Fatalf("%d samples, %v: %s", len(samples), err, out.String())
	}
	for _, s := range samples {
		if s.Value <= 0 {
			t.Errorf("%s is %g", s.Name, s.Value)
		}
	}
	if err := Main([]string{"net", "127.0.0.1:1"}, &out); err == nil {
		t.Error("a server that is not there was measured")
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
