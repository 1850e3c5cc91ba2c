package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDefaultsAreSound(t *testing.T) {
	if err := Default().Check(); err != nil {
		t.Error(err)
	}
}

func TestDropInsWinInTheOrderOfTheirNames(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	write(t, file, "memory_mib = 200\nvcpus = 2\nmachine = \"q35\"\n")
	write(t, filepath.Join(filepath.Dir(file), "config.d/20-b.toml"), "memory_mib = 400\n")
	write(t, filepath.Join(filepath.Dir(file), "config.d/10-a.toml"), "memory_mib = 300\nvcpus = 3\n")
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if c.MemoryMiB != 400 || c.VCPUs != 3 || c.Machine != "q35" {
		t.Errorf("memory %d, vcpus %d, machine %s; want 400, 3, q35", c.MemoryMiB, c.VCPUs, c.Machine)
	}
}

func TestBadFilesAreRefusedByName(t *testing.T) {
	for text, want := range map[string]string{
		"memory = 1\n":                `unknown key "memory"`,
		"memory_mib = 16\n":           "memory_mib = 16: must be from 96",
		"memory_mib = \"much\"\n":     "memory_mib",
		"machine = \"pc\"\n":          `machine = "pc": must be one of`,
		"accel = \"hax\"\n":           `accel = "hax"`,
		"run_dir = \"relative\"\n":    "must be an absolute path",
		"vcpus = 0\n":                 "vcpus = 0",
		"start_timeout_seconds = 0\n": "start_timeout_seconds = 0",
		"memory_mib = = 3\n":          "config.toml",
	} {
		file := filepath.Join(t.TempDir(), "config.toml")
		write(t, file, text)
		if _, err := Load(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in the error", text, err, want)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml")); err == nil {
		t.Error("a file that was named and is missing was accepted")
	}
}

func TestContainersOfTwoRunDirsDoNotMeet(t *testing.T) {
	a, b := Default(), Default()
	b.RunDir = "/elsewhere"
	if a.ContainerDir("c") == b.ContainerDir("c") {
		t.Errorf("both are %s", a.ContainerDir("c"))
	}
	if filepath.Dir(a.ContainerDir("c")) != filepath.Join(a.DataDir, "containers") {
		t.Errorf("directory is %s", a.ContainerDir("c"))
	}
}

func TestEncodedIsReadAgain(t *testing.T) {
	want := Default()
	want.RunDir, want.VCPUs, want.Machine = "/run/\"quoted\"", 3, "q35"
	text, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.toml")
	write(t, file, string(text))
	if got, err := Load(file); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v; want %+v", got, err, want)
	}
}
