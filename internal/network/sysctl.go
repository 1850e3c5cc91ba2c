package network

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	agentv1 "husk.dev/husk/api/agent/v1"
	"husk.dev/husk/internal/sys/rtnl"
)

// settings are the settings of a network namespace (/proc/sys/net) that a guest is given where they are not what
// Linux begins with, which is beside each. Those that depend on a machine's memory are left out.
var settings = map[string]string{
	"core/somaxconn":                           "4096",
	"ipv4/icmp_echo_ignore_all":                "0",
	"ipv4/icmp_echo_ignore_broadcasts":         "1",
	"ipv4/ip_default_ttl":                      "64",
	"ipv4/ip_forward":                          "0",
	"ipv4/ip_local_port_range":                 "32768 60999",
	"ipv4/ip_nonlocal_bind":                    "0",
	"ipv4/ip_unprivileged_port_start":          "1024",
	"ipv4/ping_group_range":                    "1 0",
	"ipv4/tcp_ecn":                             "2",
	"ipv4/tcp_fin_timeout":                     "60",
	"ipv4/tcp_keepalive_intvl":                 "75",
	"ipv4/tcp_keepalive_probes":                "9",
	"ipv4/tcp_keepalive_time":                  "7200",
	"ipv4/tcp_mtu_probing":                     "0",
	"ipv4/tcp_retries2":                        "15",
	"ipv4/tcp_sack":                            "1",
	"ipv4/tcp_slow_start_after_idle":           "1",
	"ipv4/tcp_syn_retries":                     "6",
	"ipv4/tcp_synack_retries":                  "5",
	"ipv4/tcp_syncookies":                      "1",
	"ipv4/tcp_timestamps":                      "1",
	"ipv4/tcp_tw_reuse":                        "2",
	"ipv4/tcp_window_scaling":                  "1",
	"ipv6/bindv6only":                          "0",
	"ipv6/ip_nonlocal_bind":                    "0",
	"ipv4/conf/IF/accept_local":                "0",
	"ipv4/conf/IF/accept_redirects":            "1",
	"ipv4/conf/IF/arp_accept":                  "0",
	"ipv4/conf/IF/arp_announce":                "0",
	"ipv4/conf/IF/arp_filter":                  "0",
	"ipv4/conf/IF/arp_ignore":                  "0",
	"ipv4/conf/IF/arp_notify":                  "0",
	"ipv4/conf/IF/forwarding":                  "0",
	"ipv4/conf/IF/log_martians":                "0",
	"ipv4/conf/IF/promote_secondaries":         "0",
	"ipv4/conf/IF/proxy_arp":                   "0",
	"ipv4/conf/IF/route_localnet":              "0",
	"ipv4/conf/IF/rp_filter":                   "0",
	"ipv4/conf/IF/send_redirects":              "1",
	"ipv4/conf/IF/src_valid_mark":              "0",
	"ipv6/conf/IF/accept_ra":                   "1",
	"ipv6/conf/IF/accept_redirects":            "1",
	"ipv6/conf/IF/autoconf":                    "1",
	"ipv6/conf/IF/forwarding":                  "0",
	"ipv6/conf/IF/hop_limit":                   "64",
	"ipv6/conf/IF/keep_addr_on_down":           "0",
	"ipv6/conf/IF/proxy_ndp":                   "0",
	"ipv6/conf/IF/use_tempaddr":                "0",
	"ipv6/conf/IF/router_solicitations":        "-1",
	"ipv4/conf/IF/disable_policy":              "0",
	"ipv4/conf/IF/ignore_routes_with_linkdown": "0",
}

// perInterface stands for the name of an interface, or for all or default, in the keys of settings.
const perInterface = "/IF/"

// ordered are the keys of settings: those of all interfaces, which set some of the others, come first.
var ordered = slices.Sorted(maps.Keys(settings))

// unusual are the settings of the namespace of the calling thread that are not what Linux begins with, and those that
// the guest was told before.
func unusual(links []rtnl.Link, told []*agentv1.Sysctl) []*agentv1.Sysctl {
	names := []string{"all", "default"}
	for _, l := range links {
		if !l.Loopback() && !strings.ContainsAny(l.Name, "/%") && l.Name != ".." {
			names = append(names, l.Name)
		}
	}
	var found []*agentv1.Sysctl
	look := func(path, usual string) {
		data, err := os.ReadFile(filepath.Join("/proc/sys/net", path)) // which shows those of the thread that reads
		if err != nil {
			return // a kernel without it
		}
		value, path := strings.Join(strings.Fields(string(data)), " "), "net/"+path
		if value != usual || slices.ContainsFunc(told, func(s *agentv1.Sysctl) bool { return s.GetPath() == path }) {
			found = append(found, &agentv1.Sysctl{Path: path, Value: value})
		}
	}
	for _, name := range append([]string{""}, names...) {
		for _, path := range ordered {
			kind, rest, each := strings.Cut(path, perInterface)
			switch {
			case each && name != "":
				look(kind+"/"+name+"/"+rest, settings[path])
			case !each && name == "":
				look(path, settings[path])
			}
		}
	}
	return found
}
