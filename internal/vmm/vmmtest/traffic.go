package vmmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest/echo"
)

// echoes sends data and wants it back.
func echoes(t *testing.T, c net.Conn, data []byte) {
	t.Helper()
	if err := echoed(c, data); err != nil {
		t.Fatal(err)
	}
}

func echoed(c net.Conn, data []byte) error {
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		sent <- err
	}()
	got := make([]byte, len(data))
	if n, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("read byte %d of %d back: %w", n, len(data), err)
	}
	if !bytes.Equal(got, data) {
		return errors.New("what came back is not what was sent")
	}
	return <-sent
}

// noise is n bytes that repeat nowhere, the same for the same seed.
func noise(seed, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(data) // it never fails
	return data
}

func testCancelledDial(t *testing.T, target Target) {
	vm := target.start(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	// A channel that connects without waiting may win against a context that has ended.
	if c, err := vm.Dial(ended, echo.Port); err == nil {
		c.Close()
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("Dial with an ended context: %v", err)
	}
	echoes(t, target.dial(t, vm), []byte("still works"))
}

func testManyStreams(t *testing.T, target Target) {
	vm := target.start(t)
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			c, err := vm.Dial(bound(t, target.Boot), echo.Port)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(target.Boot))
			if err := echoed(c, noise(i, 10000+i)); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		})
	}
	all.Wait()
}

func testLargeTransfer(t *testing.T, target Target) {
	vm := target.start(t)
	c := target.dial(t, vm)
	echoes(t, c, []byte("up"))
	start := time.Now()
	echoes(t, c, noise(1, target.Transfer))
	took := time.Since(start)
	t.Logf("%d MiB each way in %v: %.0f MiB/s", target.Transfer>>20, took.Round(time.Millisecond), float64(target.Transfer>>20)/took.Seconds())
}

func testNobodyListens(t *testing.T, target Target) {
	vm := target.start(t)
	echoes(t, target.dial(t, vm), []byte("up"))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	c, err := vm.Dial(ctx, echo.Port+1)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	var late net.Error
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || errors.As(err, &late) && late.Timeout() {
		t.Errorf("reading from a port where nobody listens: %d bytes, %v", n, err)
	}
	running(t, vm)
}

func testConsole(t *testing.T, target Target) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	target.Spec.Console = write
	vm := target.start(t)
	echoes(t, target.dial(t, vm), []byte("up"))
	stop(t, vm)
	if err := read.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	// The end of the file shows that Start has closed its own copy.
	text, err := io.ReadAll(read)
	if err != nil {
		t.Errorf("read the console: %v", err)
	}
	if !strings.Contains(string(text), target.ConsoleMark) {
		t.Errorf("console holds %q, want %q", text, target.ConsoleMark)
	}
}

func testConsoleWithoutReader(t *testing.T, target Target) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	target.Spec.Console = write
	target.Spec.Cmdline += " husktest.chatter"
	vm := target.start(t)
	c := target.dial(t, vm)
	for i := range 20 {
		echoes(t, c, noise(i, 1000))
		time.Sleep(10 * time.Millisecond)
	}
}

// badSpecs are refused by every driver, with an error that holds want.
var badSpecs = []struct {
	name, want string
	spoil      func(t *testing.T, s *vmm.Spec)
}{
	{"empty id", "id", func(_ *testing.T, s *vmm.Spec) { s.ID = "" }},
	{"id with options", "id", func(_ *testing.T, s *vmm.Spec) { s.ID = "a,b=c" }},
	{"no machine", "machine", func(_ *testing.T, s *vmm.Spec) { s.Machine = "" }},
	{"unknown machine", "machine", func(_ *testing.T, s *vmm.Spec) { s.Machine = "pc,accel=kvm" }},
	{"unknown accelerator", "accelerator", func(_ *testing.T, s *vmm.Spec) { s.Accel = "xen" }},
	{"no kernel", "kernel", func(_ *testing.T, s *vmm.Spec) { s.Kernel = "" }},
	{"missing kernel", "nonexistent", func(_ *testing.T, s *vmm.Spec) { s.Kernel = "/nonexistent" }},
	{"missing initrd", "nonexistent", func(_ *testing.T, s *vmm.Spec) { s.Initrd = "/nonexistent" }},
	{"two lines of command line", "command line", func(_ *testing.T, s *vmm.Spec) { s.Cmdline = "a\nb" }},
	{"no memory", "memory", func(_ *testing.T, s *vmm.Spec) { s.MemoryMiB = 0 }},
	{"no processor", "processors", func(_ *testing.T, s *vmm.Spec) { s.VCPUs = 0 }},
	{"missing disk", "disk d", func(_ *testing.T, s *vmm.Spec) { s.Disks = []vmm.Disk{{Serial: "d", Path: "/nonexistent"}} }},
	{"disk without serial", "serial", func(t *testing.T, s *vmm.Spec) { s.Disks = []vmm.Disk{{Path: image(t)}} }},
	{"serial with options", "serial", func(t *testing.T, s *vmm.Spec) { s.Disks = []vmm.Disk{{Serial: "a,b", Path: image(t)}} }},
	{"serial twice", "taken", func(t *testing.T, s *vmm.Spec) {
		s.Disks = []vmm.Disk{{Serial: "d", Path: image(t)}, {Serial: "d", Path: image(t)}}
	}},
	{"share without server", "share s", func(t *testing.T, s *vmm.Spec) {
		s.Shares = []vmm.Share{{Tag: "s", Socket: filepath.Join(t.TempDir(), "none")}}
	}},
	{"tag with options", "tag", func(t *testing.T, s *vmm.Spec) { s.Shares = []vmm.Share{{Tag: "s,x", Socket: image(t)}} }},
}

// image is a file that could be a disk.
func image(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func testBadSpecs(t *testing.T, target Target) {
	for _, bad := range badSpecs {
		t.Run(bad.name, func(t *testing.T) {
			CheckLeaks(t)
			read, write, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer read.Close()
			s := target.Spec
			s.Console = write
			bad.spoil(t, &s)
			vm, err := target.Driver.Start(bound(t, target.Boot), s)
			if err == nil {
				stop(t, vm)
				t.Fatal("started")
			}
			if !strings.Contains(err.Error(), bad.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one line about %s", err, bad.want)
			}
			_ = read.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := read.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("console after a failed start: %v, want it closed", err)
			}
		})
	}
}
