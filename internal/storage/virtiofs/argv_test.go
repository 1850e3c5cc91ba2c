package virtiofs

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

func TestArgv(t *testing.T) {
	for _, kind := range []Kind{C, Rust} {
		args, err := argv(kind, "/run/husk/web-1/share", openFiles)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(args, "\n") + "\n"
		golden := filepath.Join("testdata", string(kind)+".golden")
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: got\n%s\nwant\n%s", kind, got, want)
		}
	}
	for _, dir := range []string{"/a,modcaps=+sys_admin", `/a\`, "/a\x00"} {
		if _, err := argv(C, dir, 0); err == nil {
			t.Errorf("argv takes the directory %q", dir)
		}
	}
	if _, err := argv("Go", "/a", 0); err == nil {
		t.Error("argv takes an unknown kind")
	}
}

func TestParseVersion(t *testing.T) {
	for _, c := range []struct {
		out     string
		kind    Kind
		version string
	}{
		{"virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022 Fabrice Bellard\n", C, "7.2.22"},
		{"virtiofsd version 5.2.0\n", C, "5.2.0"},
		{"virtiofsd 1.13.0\n", Rust, "1.13.0"},
		{"virtiofsd backend 1.1.0\n", Rust, "1.1.0"},
		{"", "", ""},
		{"virtiofsd\n", "", ""},
		{"QEMU emulator version 7.2.22\n", "", ""},
	} {
		if kind, version := parseVersion(c.out); kind != c.kind || version != c.version {
			t.Errorf("parseVersion(%q) = %q %q, want %q %q", c.out, kind, version, c.kind, c.version)
		}
	}
}

func TestDetect(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "virtiofsd")
	script := func(line string) {
		t.Helper()
		if err := os.WriteFile(fake, []byte("#!/bin/sh\necho x >>"+dir+"/runs\n"+line+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script("echo virtiofsd 1.8.0")
	for range 3 {
		if kind, version, err := Detect(context.Background(), fake); err != nil || kind != Rust || version != "1.8.0" {
			t.Errorf("Detect = %q, %q, %v", kind, version, err)
		}
	}
	if runs, _ := os.ReadFile(filepath.Join(dir, "runs")); string(runs) != "x\n" {
		t.Errorf("asked for its version %d times", len(runs)/2)
	}
	script("echo virtiofsd version 8.0.0") // another size: an upgrade
	if kind, _, err := Detect(context.Background(), fake); err != nil || kind != C {
		t.Errorf("after an upgrade: %q, %v", kind, err)
	}
}
