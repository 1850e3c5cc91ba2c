#!/bin/bash
# Runs Kubernetes' suite for container runtimes, critest, with CRI-O, in namespaces of its own: with runc first and then with
# husk, which `husk install crio` names. husk must pass what runc passes, but for what the files of differences name.
#   conformance-crio.sh [-o OUTDIR] [-f FOCUS] [-r RUNTIME]    OUTDIR keeps what the programs printed, FOCUS chooses specs,
#                                                              RUNTIME (runc or husk) runs alone
# critest and CRI-O come through Go's module proxy, checked against the go.sum files below test/conformance/cri.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/node.sh
. "$top/scripts/node.sh"
here=$node_cri/crio

# build_crio DIR builds CRI-O, with libseccomp, and its helper in C, which holds the namespaces of pods.
# shellcheck disable=SC2317 # cached calls it
build_crio() {
	local source
	mkdir -p "$1/bin" || return
	(
		cd "$here" || exit
		CGO_ENABLED=1 "$go" build -tags "seccomp containers_image_openpgp containers_image_ostree_stub exclude_graphdriver_btrfs" \
			-o "$1/bin/" github.com/cri-o/cri-o/cmd/crio || exit
		source=$("$go" list -m -f '{{.Dir}}' github.com/cri-o/cri-o) || exit
		gcc -std=c99 -O2 -o "$1/bin/pinns" "$source"/pinns/src/*.c
	)
}

# build_critest DIR builds the suite.
# shellcheck disable=SC2317 # cached calls it
build_critest() {
	mkdir -p "$1/bin" || return
	(cd "$node_cri/critest" && CGO_ENABLED=0 "$go" test -c -o "$1/bin/critest" sigs.k8s.io/cri-tools/cmd/critest)
}

if [ "${HUSK_CONFORMANCE_INSIDE:-}" != 1 ]; then
	node_outside runc conmon jq libseccomp-dev pkg-config
	HUSK_CRIO=$(cached crio "$(programs_key "$here")" build_crio)
	HUSK_CRITEST=$(cached critest "$(programs_key "$node_cri/critest")" build_critest)
	export HUSK_CRIO HUSK_CRITEST
	node_enter "$0" "$@"
fi

out='' focus='' runtimes=(runc husk)
while getopts o:f:r: flag; do
	case $flag in
	o) out=$(realpath -m "$OPTARG") ;;
	f) focus=$OPTARG ;;
	r) runtimes=("$OPTARG") ;;
	*) sed -n '2,7s/^# *//p' "$0" >&2 && exit 2 ;;
	esac
done

# crio_finish ends the node, and removes the control groups that CRI-O leaves for a kubelet to remove.
# shellcheck disable=SC2317 # the trap calls it
crio_finish() {
	node_finish
	find /sys/fs/cgroup -depth -type d -path '*/crio*' -exec rmdir {} + 2>/dev/null || :
}

node_up
trap crio_finish EXIT
node_registry .
"$top/build/bin/husk" install crio >&2
"$node_cri/config.sh" "$work" "$registry" podsandbox >/dev/null # the networks
"$here/config.sh" "$work" "$registry" "$HUSK_CRIO/bin" "$top/build/bin/containerd-shim-husk-v2" >"$work/crio.conf"
cp "$work/registries.conf" /etc/containers/registries.conf
"$HUSK_CRIO/bin/crio" --config "$work/crio.conf" >"$out/crio.log" 2>&1 &
children+=($!)
until_true 60 test -S "$work/sock"

wrong=0
for runtime in "${runtimes[@]}"; do
	arguments=(-config /nonexistent -runtime-endpoint "unix://$work/sock" -image-endpoint "unix://$work/sock"
		-runtime-handler "$runtime" --ginkgo.no-color --ginkgo.timeout=60m)
	[ -z "$focus" ] || arguments+=("--ginkgo.focus=$focus")
	timeout 4000 "$HUSK_CRITEST/bin/critest" "${arguments[@]}" >"$out/critest-$runtime.log" 2>&1 || :
	grep -A1 '^• \[FAILED\]' "$out/critest-$runtime.log" | sed -n 's/^\[k8s.io\] //p' | sort >"$out/failed-$runtime" || :
	say "$runtime:"
	grep -E '^Ran |Passed \|' "$out/critest-$runtime.log" || { say "critest did not end by itself; see $out/critest-$runtime.log" && exit 1; }
done
while read -r name; do
	grep -qFx -- "$name" <(sed 's/ *#.*//' "$node_cri/differences") || { say "failed: $name" && wrong=1; }
done < <(comm -13 <(cat "$out/failed-runc" 2>/dev/null || :) "$out/failed-${runtimes[-1]}")
exit $wrong
