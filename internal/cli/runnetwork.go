package cli

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	controlv1 "husk.dev/husk/api/control/v1"
	"husk.dev/husk/internal/network"
	"husk.dev/husk/internal/ocispec"
)

// networkFlags are the flags of run that are about the network and names.
type networkFlags struct {
	network    string
	publish    []string
	hostname   string
	addHosts   []string
	dns        []string
	dnsSearch  []string
	dnsOptions []string
}

// Values of --network beside ns:PATH.
const (
	networkAuto = "" // user-mode networking where this machine can, else none
	networkNone = "none"
	networkUser = "user"
)

func (o *networkFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Bool("help", false, "help for run") // without the -h, which is docker's for the host name
	f.StringVarP(&o.hostname, "hostname", "h", "", "host `NAME` (default: the container's id)")
	f.StringVar(&o.network, "network", networkAuto, "`NETWORK`: user for user-mode networking, the default where passt is installed; none; or ns:PATH for the interfaces of a network namespace")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "`[ADDRESS:]HOST:GUEST[/udp]` brings a port of this machine into a container on user-mode networking")
	f.StringArrayVar(&o.addHosts, "add-host", nil, "`NAME:ADDRESS` adds a line to /etc/hosts; host-gateway is this machine's address")
	f.StringArrayVar(&o.dns, "dns", nil, "`ADDRESS` of a name server, in place of this machine's")
	f.StringArrayVar(&o.dnsSearch, "dns-search", nil, "`DOMAIN` that names are looked up in, in place of this machine's; . for none")
	f.StringArrayVar(&o.dnsOptions, "dns-option", nil, "`OPTION` of resolv.conf, in place of this machine's")
}

// network gives the container the network that the flags name, and the files that tell of it.
func (b *builder) network(c *creation, spec *specs.Spec) error {
	kind, err := b.chooseNetwork()
	if err != nil {
		return err
	}
	dns := ""
	switch path, isPath := strings.CutPrefix(kind, "ns:"); {
	case kind == networkNone:
	case kind == networkUser:
		c.user = &controlv1.UserNetwork{Publish: b.options.publish, Optional: b.options.network == networkAuto && len(b.options.publish) == 0}
		spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace })
	case kind == "host":
		return errors.New("--network host: a virtual machine cannot have the host's network (none, user and ns:PATH are known)")
	case !isPath || path == "":
		return fmt.Errorf("--network %q: must be none, user or ns:PATH", kind)
	default:
		if path, err = filepath.Abs(path); err != nil {
			return fmt.Errorf("--network: %w", err)
		}
		setNetworkPath(spec, path)
	}
	if c.etc, dns, err = b.files(kind, spec); err == nil && c.user != nil {
		c.user.Dns = dns
	}
	return err
}

// chooseNetwork is the network that the flags ask for, or where they do not the best that this machine can give, with a line
// for people where that is none.
func (b *builder) chooseNetwork() (string, error) {
	o := b.options
	kind := o.network
	if kind == networkAuto && len(o.publish) > 0 {
		kind = networkUser // there is no other that has ports
	}
	for _, p := range o.publish {
		if kind != networkUser {
			return "", errors.New("--publish: needs --network user (whoever made a network namespace publishes its ports)")
		}
		if _, err := network.ParsePort(p); err != nil {
			return "", fmt.Errorf("--publish: %w", err)
		}
	}
	if kind != networkAuto {
		return kind, nil
	}
	err := network.UserReady()
	if b.app.config.NICIngressBPS+b.app.config.NICEgressBPS > 0 {
		err = errors.New("the configuration limits rates (nic_ingress_bps, nic_egress_bps), which user-mode networking cannot")
	}
	if err != nil {
		b.app.warn("the container has no network: %v (--network none says nothing of it)", err)
		return networkNone, nil
	}
	return networkUser, nil
}

// setNetworkPath has the container join a network namespace.
func setNetworkPath(spec *specs.Spec, path string) {
	if ns := ocispec.Namespace(spec, specs.NetworkNamespace); ns != nil {
		ns.Path = path
		return
	}
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: path})
}

// files are the files of the container's own that tell it of its network, less those that a volume or the flags keep it from
// having. dns is a name server on this machine's loopback that is to be there for the container too.
func (b *builder) files(kind string, spec *specs.Spec) (files []*controlv1.File, dns string, err error) {
	hosts, err := b.hosts(kind)
	if err != nil {
		return nil, "", err
	}
	conf, dns, err := b.resolvConf(kind)
	if err != nil {
		return nil, "", err
	}
	for _, f := range []struct{ path, content string }{
		{"/etc/hosts", hosts}, {"/etc/hostname", b.hostname() + "\n"}, {"/etc/resolv.conf", conf},
	} {
		if b.hasPlace(spec, f.path) {
			files = append(files, &controlv1.File{Path: f.path, Content: []byte(f.content), Readonly: b.options.readOnly})
		}
	}
	return files, dns, nil
}

// hasPlace tells whether a file can be mounted at path: not over a volume of that path, and in volumes and directories that
// nothing is to be made in only where there is a file already.
func (b *builder) hasPlace(spec *specs.Spec, path string) bool {
	under, dir := "", "" // the mount that path is in
	if b.options.readOnly {
		dir = b.options.rootfs
	}
	for _, m := range spec.Mounts {
		at := filepath.Clean(m.Destination)
		if at == path {
			return false
		}
		if m.Type == "bind" && len(at) > len(under) && strings.HasPrefix(path, strings.TrimSuffix(at, "/")+"/") {
			under, dir = at, m.Source
		}
	}
	if dir == "" {
		return true
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return false
	}
	defer root.Close()
	info, err := root.Stat(strings.TrimPrefix(strings.TrimPrefix(path, under), "/"))
	return err == nil && info.Mode().IsRegular()
}

// hosts is the container's /etc/hosts (hosts(5)).
func (b *builder) hosts(kind string) (string, error) {
	own := "127.0.0.1"
	if kind == networkUser {
		own = network.UserIP
	}
	text := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	for _, entry := range b.options.addHosts {
		name, address, ok := strings.Cut(entry, ":")
		if name == "" || !ok || strings.ContainsAny(name, " \t\n#") {
			return "", fmt.Errorf("--add-host %q: must be NAME:ADDRESS", entry)
		}
		if address == "host-gateway" {
			if kind != networkUser {
				return "", fmt.Errorf("--add-host %q: the container does not reach this machine (it does with --network user)", entry)
			}
			ip, err := network.UserHost()
			if err != nil {
				return "", fmt.Errorf("--add-host %q: %w", entry, err)
			}
			address = ip.String()
		}
		ip := net.ParseIP(strings.Trim(address, "[]"))
		if ip == nil {
			return "", fmt.Errorf("--add-host %q: %q is no address", entry, address)
		}
		text += ip.String() + "\t" + name + "\n"
	}
	return text + own + "\t" + b.hostname() + "\n", nil
}

// resolvConf is the container's /etc/resolv.conf: this machine's, less the name servers that a container does not reach.
func (b *builder) resolvConf(kind string) (text, dns string, err error) {
	o := b.options
	conf := network.Resolver{}
	if kind != networkNone {
		if conf, err = network.HostResolver(); err != nil {
			return "", "", err
		}
	}
	local := conf.Reachable()
	if len(conf.Servers) == 0 && kind == networkUser && local.IsValid() { // the owner asks it
		conf.Servers, dns = []string{local.String()}, local.String()
	}
	if len(o.dns) > 0 {
		conf.Servers, dns = o.dns, ""
	}
	for _, server := range conf.Servers {
		if !network.IsServer(server) {
			return "", "", fmt.Errorf("--dns %q: is no address", server)
		}
	}
	if len(o.dnsSearch) > 0 {
		conf.Search = slices.DeleteFunc(slices.Clone(o.dnsSearch), func(s string) bool { return s == "." })
	}
	if len(o.dnsOptions) > 0 {
		conf.Options = o.dnsOptions
	}
	for _, word := range slices.Concat(conf.Search, conf.Options) {
		if word == "" || strings.ContainsAny(word, " \t\n#;") {
			return "", "", fmt.Errorf("--dns-search, --dns-option: %q is no word", word)
		}
	}
	return conf.String(), dns, nil
}
