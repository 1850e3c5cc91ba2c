package qemu

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"husk.dev/husk/internal/child"
	"husk.dev/husk/internal/testenv"
	"husk.dev/husk/internal/vmm"
	"husk.dev/husk/internal/vmm/vmmtest"
	"husk.dev/husk/internal/vmm/vmmtest/echo"
)

// boot starts the target's VM and stops it when the test ends.
func boot(t *testing.T, target vmmtest.Target) vmm.VM {
	t.Helper()
	limited, cancel := context.WithTimeout(t.Context(), target.Boot)
	defer cancel()
	vm, err := target.Driver.Start(limited, target.Spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The test's own context has ended by now.
		limited, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := vm.Stop(limited); err != nil {
			t.Error(err)
		}
	})
	return vm
}

// answers waits until the guest echoes. Until then QEMU has nothing to say, such as of features, options and devices that it does
// not have, or not for long.
func answers(t *testing.T, vm vmm.VM, limit time.Duration) net.Conn {
	t.Helper()
	limited, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	c, err := vm.Dial(limited, echo.Port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatalf("the guest does not answer: %v", err)
	}
	if m, is := vm.(*machine); is && m.stderr.String() != "" {
		t.Errorf("QEMU says %q", m.stderr.String())
	}
	return c
}

// console makes the console a file and returns what reads it.
func console(t *testing.T, s *vmm.Spec) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "console")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	s.Console = f
	return func() string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
}

// disk makes an image of size bytes that begins with its own name.
func disk(t *testing.T, name string, size int, d vmm.Disk) vmm.Disk {
	t.Helper()
	data := make([]byte, size)
	copy(data, name+"________")
	d.Serial, d.Path = name, filepath.Join(t.TempDir(), "image,of="+name)
	if err := os.WriteFile(d.Path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestGuestSeesItsDisks(t *testing.T) {
	for _, machine := range []string{microvm, q35} {
		t.Run(machine, func(t *testing.T) {
			vmmtest.CheckLeaks(t)
			target := target(t, machine)
			target.Spec.Cmdline = "husktest.devices"
			readOnly := disk(t, "fixed", 1<<20, vmm.Disk{ReadOnly: true})
			writable := disk(t, "upper", 2<<20, vmm.Disk{})
			target.Spec.Disks = []vmm.Disk{readOnly, writable}
			want := []string{
				`serial fixed sectors 2048 ro 1 starts "fixed___"`,
				`serial upper sectors 4096 ro 0 starts "upper___"`,
			}
			if machine == q35 {
				target.Spec.Disks = append([]vmm.Disk{
					disk(t, "pmem-a", 2<<20, vmm.Disk{ReadOnly: true, Pmem: true}),
				}, append(target.Spec.Disks, disk(t, "pmem-b", 4<<20, vmm.Disk{ReadOnly: true, Pmem: true}))...)
				want = append(want, `disk pmem0 serial - sectors 4096 ro 0 starts "pmem-a__"`, `disk pmem1 serial - sectors 8192 ro 0 starts "pmem-b__"`)
			}
			printed := console(t, &target.Spec)
			answers(t, boot(t, target), target.Boot)
			for _, line := range want {
				if !strings.Contains(printed(), line) {
					t.Errorf("the guest does not see: %s", line)
				}
			}
			if t.Failed() {
				t.Log(printed())
			}
			for _, d := range target.Spec.Disks {
				data, err := os.ReadFile(d.Path)
				if err != nil {
					t.Fatal(err)
				}
				if written := bytes.Contains(data, []byte("written by guest")); written == d.ReadOnly {
					t.Errorf("disk %s, read-only %v: the guest's write arrived: %v", d.Serial, d.ReadOnly, written)
				}
			}
		})
	}
}

// fileService finds the machine's virtiofsd, or that of the tests, and how it is called.
func fileService(t *testing.T) func(socket, dir string) *exec.Cmd {
	t.Helper()
	for _, service := range []struct{ path, dir, sandbox string }{
		{testenv.Virtiofsd(), "--shared-dir=", "--sandbox=chroot"},
		{"/usr/lib/qemu/virtiofsd", "-osource=", "-osandbox=chroot"}, // in C, of QEMU until 7.2
		{"/usr/libexec/virtiofsd", "--shared-dir=", "--sandbox=chroot"},
	} {
		if _, err := os.Stat(service.path); err == nil {
			return func(socket, dir string) *exec.Cmd {
				return exec.Command(service.path, "--socket-path="+socket, service.dir+dir, service.sandbox)
			}
		}
	}
	t.Fatal("no virtiofsd: apt-get install qemu-system-common (Debian 12) or virtiofsd")
	return nil
}

func TestGuestSeesItsShares(t *testing.T) {
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	serve := fileService(t)
	for _, machine := range []string{microvm, q35} {
		t.Run(machine, func(t *testing.T) {
			vmmtest.CheckLeaks(t)
			target := target(t, machine)
			target.Spec.Cmdline = "husktest.devices"
			for _, tag := range []string{"rootfs", "volumes"} {
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, "hello"), []byte("in "+tag), 0o644); err != nil {
					t.Fatal(err)
				}
				socket := filepath.Join(t.TempDir(), "s")
				cmd := serve(socket, dir)
				if err := child.Start(cmd); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					_ = cmd.Process.Kill()
					_ = cmd.Wait()
				})
				for range 500 {
					if _, err := os.Stat(socket); err == nil {
						break
					}
					time.Sleep(10 * time.Millisecond)
				}
				target.Spec.Shares = append(target.Spec.Shares, vmm.Share{Tag: tag, Socket: socket})
			}
			printed := console(t, &target.Spec)
			answers(t, boot(t, target), target.Boot)
			for _, want := range []string{`share rootfs holds "in rootfs" <nil>`, `share volumes holds "in volumes" <nil>`} {
				if !strings.Contains(printed(), want) {
					t.Errorf("the guest does not see: %s\n%s", want, printed())
				}
			}
		})
	}
}

func TestErrSaysHowTheGuestEnded(t *testing.T) {
	for _, machine := range []string{microvm, q35} {
		for word, want := range map[string]string{"husktest.panic": "panicked", "husktest.poweroff": "powered off"} {
			t.Run(machine+"/"+word, func(t *testing.T) {
				vmmtest.CheckLeaks(t)
				target := target(t, machine)
				target.Spec.Cmdline = word
				printed := console(t, &target.Spec)
				vm := boot(t, target)
				select {
				case <-vm.Done():
				case <-time.After(target.Boot):
					t.Fatalf("the VM still runs; its console: %s", printed())
				}
				if vm.Err() == nil || !strings.Contains(vm.Err().Error(), want) {
					t.Errorf("Err: %v, want that it %s; its console: %s", vm.Err(), want, printed())
				}
			})
		}
	}
}

// TestGuestThatSpeaksGarbage: a guest that breaks the channel's protocol loses its connections, and
// costs its owner neither memory nor a hang.
func TestGuestThatSpeaksGarbage(t *testing.T) {
	if _, err := os.Stat("/dev/vhost-vsock"); err == nil {
		t.Skip("guests are reached by vsock here, whose protocol is the kernels' own")
	}
	vmmtest.CheckLeaks(t)
	target := target(t, microvm)
	target.Spec.Cmdline = "husktest.garbage"
	vm := boot(t, target)
	limited, cancel := context.WithTimeout(t.Context(), target.Boot)
	defer cancel()
	c, err := vm.Dial(limited, echo.Port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(target.Boot))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read %d bytes, %v from a guest that speaks garbage", n, err)
	}
	start := time.Now()
	if c, err := vm.Dial(limited, echo.Port); err == nil {
		c.Close()
		t.Error("dialed through a broken channel")
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("Dial through a broken channel took %v", took)
	}
}

func TestQEMUThatCannotStart(t *testing.T) {
	vmmtest.CheckLeaks(t)
	target := target(t, microvm)
	bad := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(bad, bytes.Repeat([]byte("no kernel "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	target.Spec.Kernel = bad
	vm, err := target.Driver.Start(ctx(t), target.Spec)
	if err == nil {
		_ = vm.Stop(ctx(t))
		t.Fatal("started")
	}
	if !strings.Contains(err.Error(), "qemu: linux kernel") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q, want QEMU's own words in one line", err)
	}
	t.Log(err)
}

// TestStartToAnswer reports how long a cold start takes.
func TestStartToAnswer(t *testing.T) {
	for _, machine := range []string{microvm, q35} {
		t.Run(machine, func(t *testing.T) {
			target := target(t, machine)
			var running, answered []time.Duration
			for range 5 {
				start := time.Now()
				vm := boot(t, target)
				running = append(running, time.Since(start))
				answers(t, vm, target.Boot)
				answered = append(answered, time.Since(start))
				if err := vm.Stop(ctx(t)); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("median: running after %v, answer after %v; fastest %v", middle(running), middle(answered), fastest(answered))
		})
	}
}

func middle(d []time.Duration) string  { return fmt.Sprint(sorted(d)[len(d)/2].Round(time.Millisecond)) }
func fastest(d []time.Duration) string { return fmt.Sprint(sorted(d)[0].Round(time.Millisecond)) }
