package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// space is a network namespace of the test's own, which ends with it. No test touches the machine's network.
type space struct {
	t    *testing.T
	pid  int
	path string
}

// newSpace makes a namespace and runs commands in it.
func newSpace(t *testing.T, commands ...string) *space {
	t.Helper()
	cmd := exec.Command("sh", "-c", "echo ready; exec sleep 1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	begun(t, cmd).prints("ready")
	s := &space{t: t, pid: cmd.Process.Pid, path: fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)}
	s.run(commands...)
	return s
}

// command is a program that is to run in the namespace.
func (s *space) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + s.path, "--"}, args...)...)
}

// run runs shell commands in the namespace and returns what they print.
func (s *space) run(commands ...string) string {
	s.t.Helper()
	r := begun(s.t, s.command("sh", "-ec", strings.Join(commands, "\n"))).wait()
	if r.code != 0 {
		s.t.Fatalf("%q: exit code %d: %s", commands, r.code, r.stderr)
	}
	return r.stdout
}

// with runs commands as run does, and one more: "ether NAME [OPTION...]" makes an interface with somebody at its
// other end.
func (s *space) with(commands ...string) *space {
	s.t.Helper()
	peer := newSpace(s.t)
	for i, c := range commands {
		options, ether := strings.CutPrefix(c, "ether ")
		if ether {
			c = fmt.Sprintf("ip link add %s type veth peer name p%d netns %d", options, i, peer.pid)
		}
		s.run(c)
		if ether {
			peer.run(fmt.Sprintf("ip link set p%d up", i))
		}
	}
	return s
}

// untouched checks, at the end of the test, that nothing of a VM is left in the namespace.
func (s *space) untouched() *space {
	s.t.Helper()
	const look = "ip -o link | sed 's/state [A-Z]*//; s/,LOWER_UP//; s/NO-CARRIER,//; s/qlen [0-9]*//'; tc qdisc; for i in $(ip -o link | sed 's/^[0-9]*: //; s/[@:].*//'); do tc filter show dev $i ingress; done"
	before := s.run(look)
	s.t.Cleanup(func() {
		after := ""
		for end := time.Now().Add(10 * time.Second); after != before && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			after = s.run(look)
		}
		if after != before {
			s.t.Errorf("the namespace is not as it was:\n%s\nbefore:\n%s", after, before)
		}
	})
	return s
}

// cniDir is where Debian's package containernetworking-plugins has its programs.
const cniDir = "/usr/lib/cni"

// attach runs a CNI plugin in this namespace, the host's part, for an interface in another. It returns what that
// printed.
func (s *space) attach(c *space, name, plugin, config string) string {
	s.t.Helper()
	program := filepath.Join(cniDir, plugin)
	if _, err := os.Stat(program); err != nil {
		s.t.Skipf("%v (install containernetworking-plugins)", err)
	}
	cmd := s.command(program)
	cmd.Env = append(os.Environ(), "CNI_COMMAND=ADD", "CNI_CONTAINERID="+fmt.Sprint(c.pid), "CNI_NETNS="+c.path, "CNI_IFNAME="+name, "CNI_PATH="+cniDir)
	cmd.Stdin = strings.NewReader(config)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		for _, missing := range []string{"operation not supported", "Couldn't load match", "No chain/target/match by that name", "not supported, missing kernel module"} {
			if strings.Contains(out.String(), missing) {
				s.t.Skipf("the kernel of this machine has no %s: %s", plugin, strings.TrimSpace(out.String()))
			}
		}
		s.t.Fatalf("%s: %v: %s", plugin, err, out.String())
	}
	return out.String()
}

// chain runs a chain of CNI plugins for one interface. A %q in a configuration is a directory of the test.
func (s *space) chain(c *space, name string, configs []string) {
	s.t.Helper()
	result := ""
	for _, config := range configs {
		if strings.Contains(config, "%q") {
			config = fmt.Sprintf(config, s.t.TempDir())
		}
		var is struct{ Type string }
		if err := json.Unmarshal([]byte("{"+config+"}"), &is); err != nil {
			s.t.Fatal(err)
		}
		result = s.attach(c, name, is.Type, `{"cniVersion": "0.4.0", "name": "net`+name+`", `+result+config+"}")
		result = `"prevResult": ` + result + ", "
	}
}

// hostLocal is an "ipam" that hands out addresses of the subnets from a directory of the test.
func hostLocal(dir string, subnets ...string) string {
	var ranges, routes []string
	for _, subnet := range subnets {
		ranges = append(ranges, fmt.Sprintf(`[{"subnet": %q}]`, subnet))
		all := "0.0.0.0/0"
		if strings.Contains(subnet, ":") {
			all = "::/0"
		}
		routes = append(routes, fmt.Sprintf(`{"dst": %q}`, all))
	}
	return fmt.Sprintf(`"ipam": {"type": "host-local", "dataDir": %q, "ranges": [%s], "routes": [%s]}`,
		dir, strings.Join(ranges, ", "), strings.Join(routes, ", "))
}

// in has the bundle join a network namespace.
func (b *bundle) in(s *space) *bundle {
	network(&b.spec).Path = s.path
	return b
}

// raw lets the container's program send pings.
func (b *bundle) raw() *bundle {
	for _, set := range []*[]string{
		&b.spec.Process.Capabilities.Bounding, &b.spec.Process.Capabilities.Effective, &b.spec.Process.Capabilities.Permitted,
	} {
		*set = append(*set, "CAP_NET_RAW")
	}
	return b
}

// program copies a program of this machine with its libraries into the bundle's own root.
func (b *bundle) program(path string) *bundle {
	b.t.Helper()
	path, err := exec.LookPath(path)
	if err != nil {
		b.t.Skip(err)
	}
	out, _ := exec.Command("ldd", path).Output() // fails for a static one
	files := []string{path}
	for _, word := range strings.Fields(string(out)) {
		if filepath.IsAbs(word) {
			files = append(files, word)
		}
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		to := b.root(f)
		if f == path {
			to = b.root("bin/" + filepath.Base(path) + "2")
		}
		if err == nil {
			err = os.MkdirAll(filepath.Dir(to), 0o755)
		}
		if err == nil {
			err = os.WriteFile(to, data, 0o755)
		}
		if err != nil {
			b.t.Fatal(err)
		}
	}
	return b
}
