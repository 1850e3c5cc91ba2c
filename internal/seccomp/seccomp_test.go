package seccomp

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// compiler makes a program that stands for the compiler.
func compiler(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "compiler")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

var filter = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64}}

func TestCompile(t *testing.T) {
	got, err := Compile(t.Context(), compiler(t, `grep -q '"defaultAction":"SCMP_ACT_ALLOW"' && printf 12345678abcdefgh`), filter)
	if err != nil || !bytes.Equal(got, []byte("12345678abcdefgh")) {
		t.Errorf("program %q, %v", got, err)
	}
}

func TestCompileFails(t *testing.T) {
	for script, want := range map[string]string{
		"cat >/dev/null; echo unknown architecture >&2; exit 1": "unknown architecture",
		"cat >/dev/null":                          "0 bytes",
		"cat >/dev/null; printf 123":              "3 bytes",
		"cat >/dev/null; head -c 99999 /dev/zero": "32769 bytes",
	} {
		if got, err := Compile(t.Context(), compiler(t, script), filter); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: program of %d bytes, error %v, want one with %q", script, len(got), err, want)
		}
	}
	if _, err := Compile(t.Context(), filepath.Join(t.TempDir(), "none"), filter); err == nil {
		t.Error("a missing compiler is no error")
	}
}

func TestCompilable(t *testing.T) {
	for _, c := range []struct {
		filter *specs.LinuxSeccomp
		want   bool
	}{
		{nil, false},
		{filter, true},
		{&specs.LinuxSeccomp{Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}}, false},
		{&specs.LinuxSeccomp{ListenerPath: "/run/listener"}, false},
	} {
		if got := Compilable(c.filter); got != c.want {
			t.Errorf("%+v: %v, want %v", c.filter, got, c.want)
		}
	}
}
