package network

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Files that say which name servers this machine asks. The second has those that systemd-resolved asks, where the first has
// only its own address.
const (
	resolvConf  = "/etc/resolv.conf"
	upstream    = "/run/systemd/resolve/resolv.conf"
	stub        = "127.0.0.53"
	maxResolver = 64 << 10 // bytes of such a file
)

// Resolver is what a resolv.conf says (resolv.conf(5)).
type Resolver struct {
	Servers []string // addresses
	Search  []string // domains
	Options []string
}

// HostResolver is what this machine's says. None is as an empty one.
func HostResolver() (Resolver, error) {
	r, err := readResolver(resolvConf)
	if err == nil && slices.Equal(r.Servers, []string{stub}) {
		if up, err := readResolver(upstream); err == nil && len(up.Servers) > 0 {
			return up, nil
		}
	}
	return r, err
}

func readResolver(path string) (Resolver, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Resolver{}, nil
	}
	if err != nil {
		return Resolver{}, fmt.Errorf("read name servers: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxResolver))
	if err != nil {
		return Resolver{}, fmt.Errorf("read name servers: %w", err)
	}
	return parseResolver(string(data)), nil
}

// parseResolver leaves out what is no address, and comments.
func parseResolver(text string) (r Resolver) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if at := slices.IndexFunc(words, func(w string) bool { return w[0] == '#' || w[0] == ';' }); at >= 0 {
			words = words[:at]
		}
		if len(words) < 2 {
			continue
		}
		switch rest := words[1:]; words[0] {
		case "nameserver":
			if IsServer(rest[0]) {
				r.Servers = append(r.Servers, rest[0])
			}
		case "search", "domain": // the last one counts
			r.Search = rest
		case "options":
			r.Options = append(r.Options, rest...)
		}
	}
	return r
}

// IsServer tells whether text is the address of a name server, which may have a zone.
func IsServer(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil
}

// Reachable leaves out the name servers that only this machine reaches: those on its loopback, and those whose address has a
// zone. It returns the first of them that is an IPv4 address of the loopback, which something on this machine can ask.
func (r *Resolver) Reachable() (local netip.Addr) {
	r.Servers = slices.DeleteFunc(slices.Clone(r.Servers), func(text string) bool {
		ip, err := netip.ParseAddr(text)
		if err == nil && ip.IsLoopback() && ip.Is4() && !local.IsValid() {
			local = ip
		}
		return err != nil || ip.IsLoopback() || ip.IsUnspecified() || ip.Zone() != ""
	})
	return local
}

// String is the file that says it.
func (r Resolver) String() string {
	var text strings.Builder
	for _, server := range r.Servers {
		text.WriteString("nameserver " + server + "\n")
	}
	if len(r.Search) > 0 {
		text.WriteString("search " + strings.Join(r.Search, " ") + "\n")
	}
	if len(r.Options) > 0 {
		text.WriteString("options " + strings.Join(r.Options, " ") + "\n")
	}
	return text.String()
}
