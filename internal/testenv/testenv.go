// Package testenv says which tests can run here and why one was skipped.
package testenv

import (
	"os"
	"testing"
)

// NeedVM skips a test that boots a virtual machine unless HUSK_TEST_VM=1, which `make test` sets.
func NeedVM(t testing.TB) {
	t.Helper()
	if os.Getenv("HUSK_TEST_VM") != "1" {
		t.Skip("boots a virtual machine: set HUSK_TEST_VM=1 (make test does)")
	}
}

// NeedRoot skips a test that mounts, changes owners or enters namespaces when not run as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// QEMU is the binary of QEMU that tests run, empty for the machine's own.
func QEMU() string { return os.Getenv("HUSK_TEST_QEMU") }

// Virtiofsd is the virtiofsd that tests run, empty for the machine's own.
func Virtiofsd() string { return os.Getenv("HUSK_TEST_VIRTIOFSD") }
