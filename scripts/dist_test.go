package scripts_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// packageVersion is the version of packages of a version of husk's, made at a time in seconds since 1970.
func packageVersion(t *testing.T, version, epoch string) (string, error) {
	t.Helper()
	cmd := exec.Command("./dist.sh", "--package-version")
	cmd.Env = append(os.Environ(), "VERSION="+version, "SOURCE_DATE_EPOCH="+epoch)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// TestPackageVersions checks that what comes later is an upgrade, as dpkg sees it.
func TestPackageVersions(t *testing.T) {
	if _, err := exec.LookPath("dpkg"); err != nil {
		t.Skip("needs dpkg, whose order it asks for")
	}
	inOrder := []struct{ version, epoch, want string }{
		{"1cdf4dc", "1796087000", "0.0~20261201.010320.1cdf4dc"},
		{"0aaaaaa", "1796087001", "0.0~20261201.010321.0aaaaaa"},
		{"0aaaaaa-dirty", "1796087001", "0.0~20261201.010321.0aaaaaa+dirty"},
		{"v0.1.0", "1796087002", "0.1.0"},
		{"v0.1.0-5-g1cdf4dc", "1796087003", "0.1.0+5.g1cdf4dc"},
		{"v0.1.0-12-g0cdf4dc", "1796087003", "0.1.0+12.g0cdf4dc"},
		{"v0.1.0-12-g0cdf4dc-dirty", "1796087003", "0.1.0+12.g0cdf4dc+dirty"},
		{"0.2", "0", "0.2"},
	}
	before := "0"
	for _, c := range inOrder {
		got, err := packageVersion(t, c.version, c.epoch)
		if err != nil || got != c.want {
			t.Errorf("packages of %s have the version %q (%v), want %q", c.version, got, err, c.want)
		}
		if err := exec.Command("dpkg", "--compare-versions", before, "lt", got).Run(); err != nil {
			t.Errorf("%s is no upgrade from %s: %v", got, before, err)
		}
		before = got
	}
	for _, bad := range []string{"", "a b", "1.0;x", "1.0/../x"} {
		if got, err := packageVersion(t, bad, "0"); err == nil {
			t.Errorf("VERSION=%q gave %q, want an error", bad, got)
		}
	}
}
