package network

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"husk.dev/husk/internal/sys/rtnl"
	"husk.dev/husk/internal/testenv"
	"husk.dev/husk/internal/vmm"
)

// namespace makes a network namespace that ends with the test and runs commands in it.
func namespace(t *testing.T, commands ...string) (path string, run func(...string) string) {
	t.Helper()
	testenv.NeedRoot(t)
	cmd := exec.Command("sh", "-c", "echo ready; exec sleep 1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if errors.Is(err, syscall.EPERM) {
		t.Skip("may not make network namespaces")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	path = fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
	run = func(commands ...string) string {
		t.Helper()
		out, err := exec.Command("nsenter", "--net="+path, "sh", "-ec", strings.Join(commands, "\n")).CombinedOutput()
		if err != nil {
			t.Fatalf("%q: %v: %s", commands, err, out)
		}
		return string(out)
	}
	run(commands...)
	return path, run
}

// look prints all that Attach may change.
const look = "ip -o link | sed 's/state [A-Z]*//; s/,LOWER_UP//; s/NO-CARRIER,//'; tc qdisc; for i in $(ip -o link | sed 's/^[0-9]*: //; s/[@:].*//'); do tc filter show dev $i ingress; done"

func attach(t *testing.T, path string, queues int) *Network {
	t.Helper()
	n, err := Attach(path, Options{Queues: queues})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

func closed(t *testing.T, n *Network) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("the second Close: %v", err)
	}
}

var plain = []string{"ip link add eth0 type veth peer name far", "ip link set eth0 up", "ip link set far up", "ip addr add 10.0.0.2/24 dev eth0"}

func TestCloseLeavesNothing(t *testing.T) {
	for name, commands := range map[string][]string{
		"veth":             plain,
		"down":             {"ip link add eth0 type veth peer name far"},
		"bridge":           {"ip link add eth0 type bridge", "ip link set eth0 up"},
		"own qdisc":        append([]string{"ip link add eth0 type bridge", "tc qdisc add dev eth0 clsact"}, "ip link set eth0 up"),
		"own filter":       {"ip link add eth0 type bridge", "tc qdisc add dev eth0 ingress", "tc filter add dev eth0 ingress prio 1 protocol ip u32 match u32 0 0 flowid 1:1"},
		"all of multicast": {"ip link add eth0 type bridge", "ip link set eth0 allmulticast on"},
		"loopback":         nil,
	} {
		t.Run(name, func(t *testing.T) {
			path, run := namespace(t, commands...)
			before := run(look)
			n := attach(t, path, 2)
			if len(commands) > 0 && run(look) == before {
				t.Error("nothing was done")
			}
			for _, nic := range n.NICs {
				if len(nic.Taps) != 2 {
					t.Errorf("%s has %d queues, want 2", nic.Name, len(nic.Taps))
				}
			}
			closed(t, n)
			if after := run(look); after != before {
				t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

func TestCleanAfterDeath(t *testing.T) {
	path, run := namespace(t, append(plain, "ip link add br0 type bridge", "tc qdisc add dev br0 ingress",
		"tc filter add dev br0 ingress prio 1 protocol ip u32 match u32 0 0 flowid 1:1")...)
	before := run(look)
	n := attach(t, path, 1)
	if err := Clean(path); err != nil {
		t.Fatal(err)
	}
	if out := run("tc filter show dev eth0 ingress"); !strings.Contains(out, "to device husk-") {
		t.Errorf("Clean took what a VM has that runs: %q", out)
	}
	vmm.CloseNICs(n.NICs) // as the kernel does with those of a process that is killed
	if out := run("tc filter show dev eth0 ingress"); !strings.Contains(out, "to device *") {
		t.Errorf("nothing was left to clean: %q", out)
	}
	for range 2 {
		if err := Clean(path); err != nil {
			t.Fatal(err)
		}
	}
	if after := run(look); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// TestCleanAfterPart cleans up what an owner leaves that is killed before it is through.
func TestCleanAfterPart(t *testing.T) {
	path, run := namespace(t, plain...)
	before := run(look)
	err := inSpace(path, func(conn *rtnl.Conn) error {
		links, err := conn.Links()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Name == "eth0" {
				return conn.AddIngress(l.Index)
			}
		}
		return errors.New("no eth0")
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := Clean(path); err != nil {
		t.Fatal(err)
	}
	if after := run(look); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
	run("ip tuntap add husk-77 mode tap") // which a monitor can have left, when it was broken into
	if err := Clean(path); err != nil {
		t.Fatal(err)
	}
	if after := run(look); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// TestLimits: limits are set on both sides, and nothing of them is left, whoever takes them back.
func TestLimits(t *testing.T) {
	path, run := namespace(t, plain...)
	before := run(look)
	o := Options{Queues: 1, Ingress: 8_000_000, Egress: 40_000_000_000}
	for _, end := range []string{"close", "death"} {
		n, err := Attach(path, o)
		if err != nil {
			t.Fatal(err)
		}
		if out := run("tc qdisc"); !strings.Contains(out, "rate 8Mbit burst 128Kb") || !strings.Contains(out, "rate 40Gbit burst 1") {
			t.Errorf("the limits are not there: %s", out)
		}
		if end == "close" {
			closed(t, n)
		} else {
			vmm.CloseNICs(n.NICs)
			if err := Clean(path); err != nil {
				t.Error(err)
			}
		}
		if after := run(look); after != before {
			t.Errorf("%s: left behind:\n%s\nbefore:\n%s", end, after, before)
		}
	}
	run("tc qdisc add dev eth0 root handle 7: pfifo")
	now := run(look)
	if _, err := Attach(path, o); err == nil || !strings.Contains(err.Error(), "queueing discipline of its own") {
		t.Errorf("an interface with a qdisc: %v", err)
	}
	if after := run(look); after != now {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, now)
	}
}

func TestCleanWhereNothingIs(t *testing.T) {
	for _, path := range []string{"/no/such/namespace", "/proc/0/ns/net", "/dev/null"} {
		if err := Clean(path); err != nil {
			t.Errorf("Clean(%q): %v", path, err)
		}
	}
}

func TestHasCards(t *testing.T) {
	empty, _ := namespace(t)
	loopback, _ := namespace(t, "ip link set lo up", "ip tuntap add tun0 mode tun")
	one, _ := namespace(t, "ip link add eth0 type veth peer name far")
	taken, _ := namespace(t, "ip tuntap add "+tapPrefix+"0 mode tap")
	for path, want := range map[string]bool{empty: false, loopback: false, one: true, taken: false, "/nonexistent": false} {
		if got := HasCards(path); got != want {
			t.Errorf("HasCards(%s) = %v", path, got)
		}
	}
}

// TestUnconnected: the tap is in none of the namespaces that anybody knows.
func TestUnconnected(t *testing.T) {
	_, run := namespace(t) // skips where none can be made
	taps, vhosts, err := Unconnected(2)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(append(taps, vhosts...))
	if len(taps) != 2 {
		t.Errorf("%d queues, want 2", len(taps))
	}
	if links, err := os.ReadDir("/sys/class/net"); err != nil || slices.ContainsFunc(links, func(e os.DirEntry) bool { return e.Name() == tapPrefix+"0" }) {
		t.Errorf("the tap is in this namespace: %v", err)
	}
	if out := run("ip -o link"); strings.Contains(out, tapPrefix) {
		t.Errorf("the tap is in another namespace: %s", out)
	}
}

// TestSavedCard: the first interface gets the card of a saved VM, and no other one.
func TestSavedCard(t *testing.T) {
	path, _ := namespace(t, append(plain, "ip link add eth1 type veth peer name far1", "ip link set eth1 address 02:00:00:00:00:01")...)
	n, err := Attach(path, Options{Queues: 1, Saved: true})
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, n)
	saved := 0
	for i, nic := range n.NICs {
		if nic.MAC.String() == vmm.SavedMAC.String() {
			saved++
		}
		if (i == 0) != (nic.MAC.String() == vmm.SavedMAC.String()) {
			t.Errorf("card %d (%s) has %s", i, nic.Name, nic.MAC)
		}
		if (i == 0) != (nic.Reset != nil) || bytes.Equal(nic.Reset, vmm.SavedMAC) {
			t.Errorf("card %d (%s) is reset to %s", i, nic.Name, nic.Reset)
		}
	}
	if n.options.Saved {
		t.Error("what is plugged in later would get it too")
	}
}

func TestAttachRefuses(t *testing.T) {
	if _, err := Attach("/proc/self/ns/net", Options{Queues: 1}); !errors.Is(err, ErrHost) {
		t.Errorf("the own network: %v, want ErrHost", err)
	}
	path, run := namespace(t, plain...)
	before := run(look)
	first := attach(t, path, 1)
	if _, err := Attach(path, Options{Queues: 1}); err == nil || !strings.Contains(err.Error(), "belongs to another virtual machine") {
		t.Errorf("a namespace that has a VM: %v", err)
	}
	closed(t, first)
	for what, commands := range map[string][]string{
		"is on top of eth0":      {"ip link add on0 link eth0 type macvlan"},
		"is a port of br0":       {"ip link add br0 type bridge", "ip link set far master br0"},
		"no Ethernet link layer": {"ip tuntap add l3 mode tun", "ip addr add 10.9.0.1/32 dev l3", "ip link set l3 up"},
		"redirect its packets":   {"tc qdisc add dev eth0 ingress", "tc filter add dev eth0 ingress prio 26741 protocol ip u32 match u32 0 0 flowid 1:1"},
	} {
		run(commands...)
		now := run(look)
		if _, err := Attach(path, Options{Queues: 1}); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("Attach: %v, want %s", err, what)
		}
		if after := run(look); after != now {
			t.Errorf("%s: left behind:\n%s\nbefore:\n%s", what, after, now)
		}
		run("ip link del on0 2>/dev/null || :", "ip link del br0 2>/dev/null || :", "ip link del l3 2>/dev/null || :", "tc qdisc del dev eth0 ingress 2>/dev/null || :")
	}
	if after := run(look); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// TestPacketsGoBothWays: what is sent to the interface comes out of the tap, and what is written to the tap leaves the
// interface; the namespace's own stack does not see it.
func TestPacketsGoBothWays(t *testing.T) {
	behind, there := namespace(t)
	path, run := namespace(t)
	run("ip link add eth0 type veth peer name far", "ip link set eth0 up", "ip addr add 10.0.0.2/24 dev eth0")
	run(fmt.Sprintf("ip link set far netns %s", strings.Split(behind, "/")[2]))
	there("ip addr add 10.0.0.1/24 dev far", "ip link set far up")
	n := attach(t, path, 1)
	if len(n.NICs) != 1 {
		t.Fatalf("%d cards, want 1", len(n.NICs))
	}
	tap := n.NICs[0].Taps[0]
	if out, err := exec.Command("nsenter", "--net="+behind, "busybox", "ping", "-c", "1", "-W", "1", "10.0.0.2").CombinedOutput(); err == nil {
		t.Errorf("the namespace answers for the guest: %s", out)
	}
	const header = 10 // struct virtio_net_hdr
	asked := frame(t, tap, header, func(f []byte) bool { return bytes.Equal(f[12:14], []byte{8, 6}) })
	far := net.HardwareAddr(asked[6:12])
	answer := append(make([]byte, header), far...)
	answer = append(answer, n.NICs[0].MAC...)
	answer = append(answer, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2)
	answer = append(append(answer, n.NICs[0].MAC...), 10, 0, 0, 2)
	answer = append(append(answer, far...), 10, 0, 0, 1)
	if _, err := tap.Write(answer); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); !strings.Contains(there("ip neigh"), n.NICs[0].MAC.String()); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the tap's answer has not arrived: %s", there("ip neigh"))
		}
	}
}

// frame reads packets until one is it.
func frame(t *testing.T, tap *os.File, header int, is func([]byte) bool) []byte {
	t.Helper()
	buffer := make([]byte, 64<<10)
	for range 100 {
		if err := syscall.SetNonblock(int(tap.Fd()), true); err != nil {
			t.Fatal(err)
		}
		n, err := syscall.Read(int(tap.Fd()), buffer)
		switch {
		case errors.Is(err, syscall.EAGAIN):
			time.Sleep(10 * time.Millisecond)
		case err != nil:
			t.Fatal(err)
		case n > header+14 && is(buffer[header:n]):
			return append([]byte(nil), buffer[header:n]...)
		}
	}
	t.Fatal("no such packet came")
	return nil
}
