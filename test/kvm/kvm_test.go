// Package kvm tests husk on a host whose KVM runs guests on the processor: the test host is one (CONTRIBUTING.md). It calls the
// binary, as users do.
package kvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"husk.dev/husk/internal/testenv"
)

// binary is husk as make build left it.
const binary = "../../build/bin/husk"

// need skips where there is no such host.
func need(t *testing.T) {
	t.Helper()
	testenv.NeedVM(t)
	testenv.NeedRoot(t)
	if os.Getenv("HUSK_TEST_HOST") != "1" {
		t.Skip("needs the test host, or a machine with KVM and HUSK_TEST_HOST=1: make host-test")
	}
}

// configuration writes one, with directories of its own and the lines of settings, and returns its path.
func configuration(t *testing.T, settings ...string) string {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("run_dir = %q\ndata_dir = %q\n%s\n", filepath.Join(dir, "run"), filepath.Join(dir, "data"), strings.Join(settings, "\n"))
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// husk runs a verb and returns what it printed on stdout. What it said beside it is told, and where it failed the test ends.
func husk(t *testing.T, config string, args ...string) string {
	t.Helper()
	cmd := exec.Command(binary, append([]string{"--config", config}, args...)...)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if said.Len() > 0 {
		t.Logf("husk %s:\n%s", strings.Join(args, " "), said.String())
	}
	if err != nil {
		t.Fatalf("husk %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// selftest is what is looked at of the report of husk selftest.
type selftest struct {
	Verdict, Accel, Isolation string
	Steps                     []struct {
		Name, Status, Why, Output string
		Seconds                   float64
	}
}

// TestSmoke runs husk's test of itself with what it finds by default: KVM, and the channel over vsock.
func TestSmoke(t *testing.T) {
	need(t)
	if _, err := os.Stat("/dev/vhost-vsock"); err != nil {
		t.Error("the host has no vsock for guests:", err)
	}
	passes(t)
}

// TestShort runs the steps of it that meet KVM most.
func TestShort(t *testing.T) {
	need(t)
	passes(t, "boot", "template", "exec", "volume", "network", "pod", "kill-qemu")
}

// TestSmokeSerial runs it where a guest has no vsock, the steps in which the channel has a part.
func TestSmokeSerial(t *testing.T) {
	need(t)
	const device, away = "/dev/vhost-vsock", "/dev/vhost-vsock.away"
	if err := os.Rename(device, away); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Rename(away, device); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	passes(t, "boot", "template", "exec", "kill-qemu")
}

func passes(t *testing.T, steps ...string) {
	t.Helper()
	args := append([]string{"--config", configuration(t), "selftest", "--json", "--timeout", "40m", "--step-timeout", "10m"}, steps...)
	cmd := exec.Command(binary, args...)
	cmd.Stderr = os.Stderr // its lines, as they come: whoever waits sees that it goes on
	out, err := cmd.Output()
	var report selftest
	if broken := json.Unmarshal(out, &report); broken != nil {
		t.Fatalf("husk selftest: %v, %v: %s", err, broken, out)
	}
	for _, s := range report.Steps {
		if t.Logf("%-15s %-8s %6.1f s %s", s.Name, s.Status, s.Seconds, s.Why); s.Status == "failed" {
			t.Errorf("step %s failed: %s\n%s", s.Name, s.Why, s.Output)
		}
	}
	if err != nil || report.Verdict != "ok" || report.Accel != "kvm" || report.Isolation != "hardware" {
		t.Errorf("husk selftest: %v, verdict %q, accelerator %q, isolation %q; want ok by kvm with hardware", err, report.Verdict, report.Accel, report.Isolation)
	}
}

// TestExits counts how often a guest leaves to its monitor for a port while it boots and runs a container. Counts are the same on
// every machine, where times are not; each exit costs some microseconds, and more where KVM is itself a guest.
func TestExits(t *testing.T) {
	need(t)
	for machine, most := range map[string]int{
		// A chip for the time that is not there is asked 40,000 times; without that it is 174.
		"microvm": 1000,
		// Firmware and kernel look at each of 15 devices and ports with 500 accesses, 8,649 in all; 256 buses take 16,000 more.
		"q35": 10000,
	} {
		t.Run(machine, func(t *testing.T) {
			config := configuration(t, fmt.Sprintf("machine = %q", machine), `template = "off"`)
			husk(t, config, "import", "--cmd", "/bin/sh", "../../build/demo", "demo")
			ports, all := counted(t, "kvm_pio", "port"), counted(t, "kvm_exit", "exit_reason")
			if got := husk(t, config, "run", "--rm", "--network", "none", "demo", "echo", "hello"); got != "hello\n" {
				t.Errorf("the container printed %q", got)
			}
			p, table := ports()
			a, reasons := all()
			t.Logf("%d exits, %d of them for ports\n%s\n%s", a, p, table, reasons)
			if p > most {
				t.Errorf("%d exits for ports, want at most %d: the table above says which", p, most)
			}
			if a == 0 {
				t.Error("nothing was counted: no guest ran under KVM")
			}
		})
	}
}

// counted has the kernel count the events of a tracepoint of KVM's by a key (Documentation/trace/histogram.rst) until the returned
// function asks for the number and for what had most.
func counted(t *testing.T, event, key string) func() (hits int, table string) {
	t.Helper()
	const root = "/sys/kernel/tracing"
	if _, err := os.Stat(root + "/events"); err != nil {
		if out, err := exec.Command("mount", "-t", "tracefs", "tracefs", root).CombinedOutput(); err != nil {
			t.Fatalf("mount tracefs: %v: %s", err, out)
		}
	}
	dir := filepath.Join(root, "events/kvm", event)
	trigger := "hist:keys=" + key + ":sort=hitcount.descending:size=4096"
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "trigger"), []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	write(trigger)
	t.Cleanup(func() { write("!" + trigger) })
	return func() (int, string) {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(dir, "hist"))
		if err != nil {
			t.Fatal(err)
		}
		total := regexp.MustCompile(`(?m)^\s*Hits: (\d+)`).FindSubmatch(data)
		if total == nil {
			t.Fatalf("no total in %s", data)
		}
		n, err := strconv.Atoi(string(total[1]))
		if err != nil {
			t.Fatal(err)
		}
		rows := regexp.MustCompile(`(?m)^\{.*$`).FindAllString(string(data), 12)
		return n, event + ":\n" + strings.Join(rows, "\n")
	}
}
