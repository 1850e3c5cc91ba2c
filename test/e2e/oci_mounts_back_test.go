package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// TestMountsComeBack has the host see what a container mounts on a volume that propagates its mounts.
func TestMountsComeBack(t *testing.T) {
	begin(t)
	volume := filepath.Join(t.TempDir(), "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sh", "-ec", `mount --bind "$0" "$0"; mount --make-shared "$0"`, volume).CombinedOutput(); err != nil {
		t.Fatalf("make volume: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", volume).CombinedOutput(); err != nil { // nothing is left on it
			t.Errorf("%v: %s", err, out)
		}
	})
	point := filepath.Join(volume, "point")
	seen := func() int {
		all, err := os.ReadDir(point)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	b := newBundle(t, "mkdir /volume/point; while :; do sleep 1000; done").ownRoot().bind(volume, "/volume", "rshared")
	b.spec.Linux.RootfsPropagation = "rshared" // or what is mounted in it stays there
	caps := b.spec.Process.Capabilities
	for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted} {
		*set = append(*set, "CAP_SYS_ADMIN")
	}
	if err := os.WriteFile(b.root("a file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}

	c := b.up()
	c.exec("mkdir -p /volume/point && mount --bind / /volume/point")
	if _, err := os.Stat(filepath.Join(point, "a file")); err != nil {
		t.Errorf("the host does not see what the container has mounted: %v", err)
	}
	// The guest looks its directory up anew after a second: it must not find the host's mount there in place of its own.
	for range 3 {
		time.Sleep(1500 * time.Millisecond)
		expect(t, "seen in the container", c.exec("ls -d '/volume/point/a file' && grep -c ' /volume/point ' /proc/self/mountinfo"), "/volume/point/a file\n1\n")
		if _, err := os.Stat(filepath.Join(point, "a file")); err != nil {
			t.Fatalf("the host does not see it any more: %v", err)
		}
	}
	c.exec("umount /volume/point")
	expect(t, "files on the host after the end of the mount", seen(), 0)
	c.exec("mount -t tmpfs none /volume/point && touch /volume/point/x")
	expect(t, "files on the host of the guest's own file system", seen(), 0)
	c.exec("umount /volume/point && mount --bind /bin /volume/point")
	if seen() == 0 {
		t.Error("the host does not see a part of the container's root")
	}
	theHosts(t, c, volume)
	husk(t, "delete", "--force", c.id).ok()
	expect(t, "files on the host without the container", seen(), 0)

	c = b.up()
	c.exec("mount --bind /bin /volume/point")
	if seen() == 0 {
		t.Error("the host sees nothing the second time")
	}
	kill9(t, record(t, c.id).Owner.PID)
	husk(t, "delete", "--force", c.id).ok()
	expect(t, "files on the host after the owner was killed", seen(), 0)
}

// theHosts has the container see what the host mounts on the volume, and nothing keep the host from unmounting it.
func theHosts(t *testing.T, c *box, volume string) {
	t.Helper()
	point, source := filepath.Join(volume, "theirs"), t.TempDir()
	err := os.Mkdir(point, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(source, "file"), []byte("of the host"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "--bind", source, point).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	until(t, "the container sees the host's mount", patience, func() bool { return c.exec("cat /volume/theirs/file || :") == "of the host" })
	if out, err := exec.Command("umount", point).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	until(t, "the container sees that the host's mount is gone", patience, func() bool { return c.exec("ls /volume/theirs") == "" })
}
