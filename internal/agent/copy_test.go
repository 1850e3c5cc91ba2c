package agent_test

import (
	"archive/tar"
	"bytes"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	agentv1 "husk.dev/husk/api/agent/v1"
)

// copies starts a copy and returns its name.
func (s *subject) copies(t *testing.T, id string, p *streams, r *agentv1.CopyRequest) string {
	t.Helper()
	r.Container, r.Exec, r.Stdio = id, s.id("copy"), p.stdio
	if _, err := s.Copy(t.Context(), r); err != nil {
		t.Fatalf("copy: %v", err)
	}
	return r.Exec
}

// copyOut copies a path out of a container: what came, by names, and what was said.
func (s *subject) copyOut(t *testing.T, id, path string) (map[string]*tar.Header, string) {
	t.Helper()
	p := s.open(t, false)
	exec := s.copies(t, id, p, &agentv1.CopyRequest{Path: path})
	status := s.exit(t, id, exec)
	all, said := map[string]*tar.Header{}, p.err.all(t)
	in := tar.NewReader(strings.NewReader(p.out.all(t)))
	for h, err := in.Next(); err == nil; h, err = in.Next() {
		all[h.Name] = h
	}
	if (status == 0) != (said == "") {
		t.Errorf("copy of %s ended with %d and said %q", path, status, said)
	}
	return all, said
}

// copyIn copies a file into a container, and returns what was said.
func (s *subject) copyIn(t *testing.T, id, path string, archive bool) string {
	t.Helper()
	var stream bytes.Buffer
	w := tar.NewWriter(&stream)
	err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1000, Gid: 1001, Size: 4})
	if err == nil {
		_, err = io.WriteString(w, "text")
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	p := s.open(t, false)
	exec := s.copies(t, id, p, &agentv1.CopyRequest{Path: path, Into: true, Archive: archive, First: "f"})
	_, _ = p.in.Write(stream.Bytes()) // one that fails does not read it
	p.in.Close()
	s.exit(t, id, exec)
	return p.err.all(t)
}

func (s *subject) shell(t *testing.T, id, script string) string {
	t.Helper()
	p := s.open(t, false)
	p.in.Close()
	exec := s.start(t, id, p, process("sh", "-c", script))
	s.exit(t, id, exec)
	return p.out.all(t) + p.err.all(t)
}

func testCopy(t *testing.T, s *subject) {
	id := s.sleeper(t, nil)
	_, err := s.Copy(t.Context(), &agentv1.CopyRequest{Container: "none", Exec: "c", Path: "/", Stdio: &agentv1.Stdio{}})
	wantCode(t, err, codes.NotFound, "none")
	_, err = s.Copy(t.Context(), &agentv1.CopyRequest{Container: id, Exec: "c", Path: strings.Repeat("/", 5000), Stdio: &agentv1.Stdio{}})
	wantCode(t, err, codes.InvalidArgument, "longer")
	for _, c := range []struct {
		path    string
		archive bool
		want    string // of ls, or what is said
	}{
		{"/dev/f", false, "-rwxr-xr-x 0 0 4"}, {"/dev/g", true, "-rwsr-xr-x 1000 1001 4"}, {"/no/f", false, "does not exist"}, {"/dev/null", false, "neither a file"},
		{"/proc/1/root/f", false, "too many levels"},
	} {
		said := s.copyIn(t, id, c.path, c.archive)
		if said == "" {
			fields := strings.Fields(s.shell(t, id, "ls -ln "+c.path))
			said = strings.Join([]string{fields[0], fields[2], fields[3], fields[4]}, " ")
		}
		if !strings.Contains(said, c.want) {
			t.Errorf("into %s: %q, want %q", c.path, said, c.want)
		}
	}
	all, said := s.copyOut(t, id, "/dev/g")
	if h := all["g"]; h == nil || h.Size != 4 || h.Uid != 1000 {
		t.Errorf("out: %v, %q", all, said)
	}
	for _, path := range []string{"/proc/1/root/etc", "/proc/1/cwd/run"} {
		if all, said := s.copyOut(t, id, path); len(all) > 0 || !strings.Contains(said, "too many levels") {
			t.Errorf("the magic link %s leads to %v, %q", path, all, said)
		}
	}
	if all, _ := s.copyOut(t, id, "/"); all["proc/"] == nil || all["bin/busybox"] == nil || all["proc/1/"] != nil || all["proc/version"] != nil {
		t.Errorf("of the root came %d files, want all but those of /proc", len(all))
	}
}

// testCopyUsers copies into a container with a user namespace, whose root is nobody outside.
func testCopyUsers(t *testing.T, s *subject) {
	ids := []any{map[string]any{"containerID": 0, "hostID": 200000, "size": 1500}}
	id := s.sleeper(t, map[string]any{"linux": map[string]any{
		"namespaces":  []any{map[string]any{"type": "mount"}, map[string]any{"type": "user"}, map[string]any{"type": "pid"}},
		"uidMappings": ids, "gidMappings": ids,
	}, "hostname": ""})
	for path, c := range map[string]struct {
		archive bool
		want    string
	}{"/dev/f": {false, "0 0"}, "/dev/g": {true, "1000 1001"}} {
		if said := s.copyIn(t, id, path, c.archive); said != "" {
			t.Errorf("into %s: %s", path, said)
		}
		fields := strings.Fields(s.shell(t, id, "ls -ln "+path))
		if got := strings.Join(fields[2:4], " "); got != c.want {
			t.Errorf("%s belongs to %s, want %s", path, got, c.want)
		}
		all, _ := s.copyOut(t, id, path)
		if h := all[filepath.Base(path)]; h == nil || strings.Fields(c.want)[0] == "1000" != (h.Uid == 1000) {
			t.Errorf("%s comes out as %v", path, h)
		}
	}
}

// testCopyStopped copies out of a container that has stopped, and of one that is removed meanwhile.
func testCopyStopped(t *testing.T, s *subject) {
	id := s.create(t, config(process("sh", "-c", "echo x >/dev/left"), nil), &agentv1.Stdio{}, true)
	s.exit(t, id, "")
	if all, said := s.copyOut(t, id, "/dev/left"); all["left"] == nil {
		t.Errorf("of a stopped container came %v, %q", all, said)
	}
	p := s.open(t, false)
	exec := s.copies(t, id, p, &agentv1.CopyRequest{Path: "/dev", Into: true}) // waits for its stream
	if _, err := s.DeleteContainer(t.Context(), &agentv1.ContainerRequest{Id: id}); err != nil {
		t.Fatalf("delete: %v", err)
	}
	if status := s.exit(t, id, exec); status != 137 {
		t.Errorf("what copied ended with %d", status)
	}
}

// testCopyPaused: what copies does not stand still with the container, and leaves nothing half behind.
func testCopyPaused(t *testing.T, s *subject) {
	id := s.sleeper(t, nil)
	if _, err := s.Pause(t.Context(), &agentv1.ContainerRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	if said := s.copyIn(t, id, "/dev/f", false); said != "" {
		t.Error(said)
	}
	p := s.open(t, false)
	exec := s.copies(t, id, p, &agentv1.CopyRequest{Path: "/dev/half", Into: true, First: "f"})
	var stream bytes.Buffer
	if err := tar.NewWriter(&stream).WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.in.Write(append(stream.Bytes(), make([]byte, 1<<16)...)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // some of it is written by then, mostly
	p.in.Close()
	if status := s.exit(t, id, exec); status != 1 || !strings.Contains(p.err.all(t), "unexpected EOF") {
		t.Errorf("a stream that ends early: %d, %q", status, p.err.all(t))
	}
	if _, err := s.Resume(t.Context(), &agentv1.ContainerRequest{Id: id}); err != nil {
		t.Fatal(err)
	}
	if got := s.shell(t, id, "ls -A /dev"); !strings.Contains(got, "f\n") || strings.Contains(got, "half") || strings.Contains(got, ".husk") {
		t.Errorf("there are %q", got)
	}
}
