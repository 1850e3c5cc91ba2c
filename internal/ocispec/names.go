package ocispec

import (
	"io"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxResolvConf bounds how much of a resolv.conf is read, in bytes.
const maxResolvConf = 64 << 10

// localNameserver is the first name server of the resolv.conf that a configuration mounts, where it is on a loopback
// address of IP version 4: it is in the container's network namespace on the host, and not in the guest.
func localNameserver(spec *specs.Spec) (found netip.Addr) {
	for _, m := range spec.Mounts {
		if path.Clean(m.Destination) != "/etc/resolv.conf" || !slices.ContainsFunc(m.Options, func(o string) bool { return o == "bind" || o == "rbind" }) {
			continue
		}
		f, err := os.OpenFile(m.Source, os.O_RDONLY|syscall.O_NONBLOCK, 0) // it may be a pipe
		if err != nil {
			return found // who mounts it tells
		}
		data, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
		f.Close()
		if err != nil {
			return found
		}
		return nameserver(string(data))
	}
	return found
}

// nameserver is the first name server of a resolv.conf (resolv.conf(5)), where it is a loopback address of IP version 4.
func nameserver(conf string) (found netip.Addr) {
	for _, line := range strings.Split(conf, "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(fields[1]); err == nil && ip.Is4() && ip.IsLoopback() {
			return ip
		}
		return found
	}
	return found
}
