#!/bin/bash
# Runs nerdctl with containerd: each case of test/conformance/cri/nerdctl/cases.sh with runc first and then with husk's shim,
# and has to print the same.
#   conformance-nerdctl.sh [-o OUTDIR] [-f FOCUS]    OUTDIR keeps what was printed, FOCUS (a regular expression) chooses cases
# The programs come through Go's module proxy, checked against the go.sum files below test/conformance/cri.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/node.sh
. "$top/scripts/node.sh"
here=$top/test/conformance/cri/nerdctl

if [ "${HUSK_CONFORMANCE_INSIDE:-}" != 1 ]; then
	node_outside runc bsdutils
	HUSK_NERDCTL=$(cached nerdctl "$(programs_key "$here")" build_named "$here" -ldflags '-s -w')
	export HUSK_NERDCTL
	node_enter "$0" "$@"
fi

node_options "$@"
# shellcheck source=test/conformance/cri/nerdctl/cases.sh
. "$here/cases.sh"
mapfile -t cases < <(cases_of "$here/cases.sh" "$focus")

# settings writes what nerdctl is to use, and gives the plugins of its networks a place of their own for the addresses.
settings() {
	mkdir -p /etc/nerdctl "$work/nerdctl" "$work/nets" /var/lib/cni
	mount -t tmpfs tmpfs /var/lib/cni
	cat >/etc/nerdctl/nerdctl.toml <<-TOML
		address = "$work/sock"
		data_root = "$work/nerdctl"
		cni_path = "/usr/lib/cni"
		cni_netconfpath = "$work/nets"
		hosts_dir = ["$work/hosts"]
	TOML
}

# remove_all removes all containers, and prints which are left.
remove_all() {
	n ps -aq | xargs -r timeout -k 5 120 "$HUSK_NERDCTL/bin/nerdctl" rm -f >/dev/null || echo "containers were not removed"
	n ps -aq
}

# finish leaves nothing of a case that is cut short.
# shellcheck disable=SC2317 # the trap calls it
finish() {
	for label in runc husk; do
		CONTAINERD_NAMESPACE=$label remove_all >/dev/null 2>&1 || :
	done
	node_finish
}

# case_end NAME CODE removes what the case has left, and prints what cannot be.
# shellcheck disable=SC2317 # run_case calls it
case_end() {
	[ "$2" = 0 ] || n ps -a >&2
	remove_all
	n volume prune -af >/dev/null
	n network ls --format '{{.Name}}' | grep '^net-' | xargs -r "$HUSK_NERDCTL/bin/nerdctl" network rm >/dev/null || :
	find "$work/files" -mindepth 1 -delete
}

# leaks prints what has stayed on the node.
leaks() {
	pgrep -fa "containerd-shim-.*$work/sock" || :
	pgrep -f "guest=husk\." | sed 's/^/a virtual machine: /' || :
	grep -e "$work/state/.*rootfs" -e "$work/.*husk" /proc/mounts || :
	ip -o link show type veth
	ls -A /run/husk-conformance
	iptables-save | grep -E 'dport|10\.4\.0\.[0-9]+/32' || :
}

node_up
settings
node_registry '^library/busybox'
node_containerd
trap finish EXIT
mkdir "$work/files"
for label in runc husk; do
	CONTAINERD_NAMESPACE=$label n pull -q docker.io/library/busybox:latest >"$out/pull.log" 2>&1
done
for name in "${cases[@]}"; do
	# Once more where they differ: nerdctl itself may lose what a container prints that ends at once.
	for _ in once again; do
		for label in runc husk; do
			export CONTAINERD_NAMESPACE=$label
			run_case "$name"
		done
		if cmp -s "$out/runc/$name" "$out/husk/$name" || grep -q "^$name " "$here/differences"; then break; fi
	done
done
wrong=0
cases_verdict "$here/differences" "${cases[@]}" || wrong=1
sleep 2
leaks >"$out/left"
[ ! -s "$out/left" ] || { say "left on the node:" && cat "$out/left" >&2 && wrong=1; }
exit $wrong
