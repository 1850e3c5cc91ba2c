// Package config is husk's configuration: one struct, its defaults, its checks.
package config

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// DefaultFile is read when no other file is named; drop-ins lie in DefaultFile's directory + "/config.d".
const DefaultFile = "/etc/husk/config.toml"

// Config holds every setting. To add one: add a field with a toml tag and a comment that gives its unit,
// its default in Default, its check in checks. Flags and annotations name it by its tag.
type Config struct {
	// DataDir keeps images, containers' writable disks and other data that outlives a boot of the host.
	DataDir string `toml:"data_dir"`
	// RunDir keeps the state of running sandboxes, one directory a container.
	RunDir string `toml:"run_dir"`
	// GuestDir holds the guest kernel and image, with guest.json that describes them. Empty: beside the
	// husk binary (../lib/husk/guest).
	GuestDir string `toml:"guest_dir"`

	// VMM names the driver.
	VMM string `toml:"vmm"`
	// QEMU is the QEMU binary. Empty: qemu-system-<arch> from PATH.
	QEMU string `toml:"qemu"`
	// Machine is the machine type: microvm, q35, or auto: q35 where the VM starts from a template or has a network, and
	// microvm, which boots faster and can have devices neither saved nor plugged in, where it boots.
	Machine string `toml:"machine"`
	// Accel is auto (measure whether KVM is real), kvm or tcg.
	Accel string `toml:"accel"`
	// Template is on (start from templates, and build in the background what is not there), ready (start
	// from those that are there) or off (boot every VM).
	Template string `toml:"template"`
	// Virtiofsd is the file service. Empty: the first of its usual places.
	Virtiofsd string `toml:"virtiofsd"`

	// MemoryMiB is the guest's RAM where the container has no memory limit.
	MemoryMiB int `toml:"memory_mib"`
	// OverheadMiB is added to a container's memory limit for the guest's kernel and agent.
	OverheadMiB int `toml:"overhead_mib"`
	// VCPUs is the number of virtual processors where the container has no CPU limit.
	VCPUs int `toml:"vcpus"`
	// WritableMiB is the size of the sparse disk that takes what an image's container writes; 0 keeps
	// that in guest memory.
	WritableMiB int `toml:"writable_mib"`
	// StartTimeoutSeconds bounds the wait for a guest to boot and answer.
	StartTimeoutSeconds int `toml:"start_timeout_seconds"`

	// HostNetwork is what a container without a network namespace gets: refuse (an error), or user (user-mode
	// networking by passt, from where the host can be reached as from another machine).
	HostNetwork string `toml:"host_network"`
	// Publish are the ports that such a container gets: [ADDRESS:]HOST:GUEST[/tcp|/udp], with commas between.
	Publish string `toml:"publish"`

	// NICIngressBPS and NICEgressBPS bound what each network interface brings to the guest and takes from it, in bits a
	// second; 0 is without bound.
	NICIngressBPS int `toml:"nic_ingress_bps"`
	NICEgressBPS  int `toml:"nic_egress_bps"`

	// Annotations are the keys that a container's annotations "dev.husk.<key>" may set for it.
	Annotations []string `toml:"annotations"`
}

// Default returns the settings of a machine without a configuration file.
func Default() Config {
	run := "/run/husk"
	data := "/var/lib/husk"
	if who, root := Outside(); !root {
		if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
			run = filepath.Join(dir, "husk")
		}
		home := os.Getenv("HOME") // which engines do not hand on
		if u, err := user.LookupId(who); home == "" && err == nil {
			home = u.HomeDir
		}
		if home != "" {
			data = filepath.Join(home, ".local/share/husk")
		}
	}
	return Config{
		DataDir: data, RunDir: run,
		VMM: "qemu", Machine: "auto", Accel: "auto", Template: "on",
		MemoryMiB: 512, OverheadMiB: 96, VCPUs: 1, WritableMiB: 10 * 1024,
		StartTimeoutSeconds: 120, HostNetwork: "refuse", Annotations: []string{"template"},
	}
}

// Outside tells which user of the machine this process is, and whether that is root. Root of a user namespace is the user
// who made it, and has no place in /run and /var.
func Outside() (id string, root bool) {
	if os.Geteuid() != 0 {
		return strconv.Itoa(os.Geteuid()), false
	}
	data, err := os.ReadFile("/proc/self/uid_map") // user_namespaces(7): inside, outside, count
	fields := strings.Fields(string(data))
	if err != nil || len(fields) < 3 || fields[0] != "0" {
		return "0", true
	}
	return fields[1], fields[1] == "0"
}

// Load returns the defaults overlaid with file and the drop-ins beside it, checked. A missing
// DefaultFile is no error; any other missing file, and any unknown key, is.
func Load(file string) (Config, error) {
	c := Default()
	files := []string{file}
	if file == "" {
		files[0] = DefaultFile
	}
	drops, err := filepath.Glob(filepath.Join(filepath.Dir(files[0]), "config.d", "*.toml"))
	if err != nil {
		return c, fmt.Errorf("list configuration drop-ins: %w", err)
	}
	sort.Strings(drops)
	for i, name := range append(files, drops...) {
		meta, err := toml.DecodeFile(name, &c)
		if errors.Is(err, fs.ErrNotExist) && i == 0 && file == "" {
			continue
		}
		if err != nil {
			return c, fmt.Errorf("read configuration %s: %w", name, err)
		}
		if unknown := meta.Undecoded(); len(unknown) > 0 {
			return c, fmt.Errorf("read configuration %s: unknown key %q", name, unknown[0].String())
		}
	}
	return c, c.Check()
}

// Encode returns c as the text of a configuration file.
func (c Config) Encode() ([]byte, error) {
	var b bytes.Buffer
	if err := toml.NewEncoder(&b).Encode(c); err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return b.Bytes(), nil
}

// ContainerDir is where a container's files on disk are. RunDir is part of it: two state directories may
// each have a container of the same id.
func (c Config) ContainerDir(id string) string {
	sum := sha256.Sum256([]byte(c.RunDir))
	return filepath.Join(c.DataDir, "containers", fmt.Sprintf("%s-%x", id, sum[:4]))
}

// TurnsDir is where starts of VMs wait for each other.
func (c Config) TurnsDir() string { return filepath.Join(c.DataDir, "turns") }

// Check returns the first setting that cannot be, with what it may be.
func (c Config) Check() error {
	for _, check := range checks {
		if err := check(c); err != nil {
			return fmt.Errorf("configuration: %w", err)
		}
	}
	return nil
}

var checks = []func(Config) error{
	func(c Config) error { return absolute("data_dir", c.DataDir) },
	func(c Config) error { return absolute("run_dir", c.RunDir) },
	func(c Config) error { return oneOf("machine", c.Machine, "auto", "microvm", "q35") },
	func(c Config) error { return oneOf("template", c.Template, "on", "ready", "off") },
	func(c Config) error { return oneOf("accel", c.Accel, "auto", "kvm", "tcg") },
	func(c Config) error { return oneOf("host_network", c.HostNetwork, "refuse", "user") },
	func(c Config) error { return rate("nic_ingress_bps", c.NICIngressBPS) },
	func(c Config) error { return rate("nic_egress_bps", c.NICEgressBPS) },
	func(c Config) error { return between("memory_mib", c.MemoryMiB, MinMemoryMiB, 1<<24) },
	func(c Config) error { return between("overhead_mib", c.OverheadMiB, 64, 1<<20) },
	func(c Config) error { return between("vcpus", c.VCPUs, 1, 64) },
	func(c Config) error { return between("writable_mib", c.WritableMiB, 0, 1<<30) },
	func(c Config) error { return between("start_timeout_seconds", c.StartTimeoutSeconds, 1, 3600) },
}

// MinMemoryMiB is the least RAM that the guest's kernel, image and agent start with.
const MinMemoryMiB = 96

func absolute(key, value string) error {
	if !filepath.IsAbs(value) {
		return fmt.Errorf("%s = %q: must be an absolute path", key, value)
	}
	return nil
}

// rate checks a rate in bits a second.
func rate(key string, value int) error {
	const least, most = 64_000, 1_000_000_000_000
	if value != 0 && (value < least || value > most) {
		return fmt.Errorf("%s = %d: must be 0 or from %d to %d", key, value, least, most)
	}
	return nil
}

func oneOf(key, value string, allowed ...string) error {
	for _, a := range allowed {
		if value == a {
			return nil
		}
	}
	return fmt.Errorf("%s = %q: must be one of %q", key, value, allowed)
}

func between(key string, value, low, high int) error {
	if value < low || value > high {
		return fmt.Errorf("%s = %d: must be from %d to %d", key, value, low, high)
	}
	return nil
}
