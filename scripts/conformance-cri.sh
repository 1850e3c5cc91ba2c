#!/bin/bash
# Runs Kubernetes' suite for container runtimes, critest, with containerd and husk, in namespaces of its own and with images
# that it makes itself. What fails must be what test/conformance/cri/differences names, and nothing else.
#   conformance-cri.sh [-o OUTDIR] [-f FOCUS] [-s]    OUTDIR keeps what the programs printed, FOCUS chooses specs, -s has
#                                                     containerd make pods by the Sandbox API
# critest and containerd come through Go's module proxy, checked against the go.sum files below test/conformance/cri. Where
# they or a package cannot be fetched, the exit code is 75. A spec that fails is tried once more, and then counted as flaked.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/cache.sh
. "$top/scripts/cache.sh"
go=$("$top/scripts/go.sh" --path)
here=$top/test/conformance/cri

say() {
	printf 'conformance-cri: %s\n' "$*" >&2
}

# build_programs DIR builds critest and containerd with its clients.
# shellcheck disable=SC2317 # cached calls it
build_programs() {
	mkdir -p "$1/bin" || return
	(
		export CGO_ENABLED=0
		cd "$here/critest" || exit
		"$go" test -c -o "$1/bin/critest" sigs.k8s.io/cri-tools/cmd/critest || exit
		cd "$here/containerd" || exit
		"$go" build -o "$1/bin/" github.com/containerd/containerd/v2/cmd/containerd github.com/containerd/containerd/v2/cmd/ctr || exit
	)
}

# unpack_busybox DIR unpacks Debian's busybox package, which cannot be installed beside the static one.
# shellcheck disable=SC2317 # cached calls it
unpack_busybox() {
	(mkdir -p "$1" && cd "$1" && apt-get download -q busybox && dpkg-deb -x busybox_*.deb .)
}

# Outside: all that needs a network of the machine's. Inside: mounts, network and host name are this script's own, and end
# with it.
if [ "${HUSK_CONFORMANCE_INSIDE:-}" != 1 ]; then
	[ "$(id -u)" = 0 ] || { say "needs root" && exit 1; }
	[ -x "$top/build/bin/husk" ] || { say "nothing built yet: make build image" && exit 1; }
	trap 'say "the suite cannot be fetched or built here" && exit 75' ERR
	missing=()
	for package in containernetworking-plugins nginx-light busybox-static gcc util-linux procps iptables; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
	done
	if [ ${#missing[@]} -gt 0 ]; then
		apt-get update -q >&2
		DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null >&2
	fi
	HUSK_SUITE=$(cached critest "$({ cat "$here"/{containerd,critest}/go.mod "$here"/{containerd,critest}/go.sum && "$go" version; } | hash_of)" build_programs)
	HUSK_BUSYBOX=$(cached busybox "$(dpkg-query -W busybox-static | hash_of)" unpack_busybox)
	mkdir -p "$top/build"
	(cd "$top" && CGO_ENABLED=0 "$go" build -o build/conformance-images ./test/conformance/cri/images)
	export HUSK_SUITE HUSK_BUSYBOX HUSK_CONFORMANCE_INSIDE=1
	exec unshare --net --mount --ipc --uts --propagation private "$0" "$@"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/conformance.XXXXXX")
out=$work/out focus='' sandboxer=podsandbox
while getopts o:f:s flag; do
	case $flag in
	o) out=$(realpath -m "$OPTARG") ;;
	f) focus=$OPTARG ;;
	s) sandboxer=shim ;;
	*) sed -n '2,7s/^# *//p' "$0" >&2 && exit 2 ;;
	esac
done
mkdir -p "$out"
children=()
# shellcheck disable=SC2317 # the trap calls it
finish() {
	[ ${#children[@]} = 0 ] || kill "${children[@]}" 2>/dev/null || :
	wait
	rm -rf --one-file-system "$work"
}
trap finish EXIT

mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lock /run/netns /run/husk-conformance
mkdir -p "$work/husk" "$work/data"
printf 'data_dir = "%s"\nrun_dir = "/run/husk-conformance"\n' "$work/data" >"$work/husk/config.toml"
# husk's own place for its settings: a runtime of containerd's that is given a file cannot have user namespaces.
mkdir -p /run/etc/upper /run/etc/work
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work overlay /etc
mkdir -p /etc/husk && cp "$work/husk/config.toml" /etc/husk/
mount --make-rshared /
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
hostname node
"$top/build/bin/husk" template build >/dev/null

registry=127.0.0.1:5000
"$here/images.sh" "$work/trees" "$HUSK_BUSYBOX/bin/busybox" >"$work/list"
"$top/build/conformance-images" "$registry" "$work/list" >"$out/images.log" 2>&1 &
children+=($!)
timeout 60 sh -c "until grep -q serving '$out/images.log'; do sleep 0.1; done"

"$here/config.sh" "$work" "$registry" "$sandboxer" >"$work/config.toml"
PATH=$top/build/bin:$HUSK_SUITE/bin:$PATH "$HUSK_SUITE/bin/containerd" --config "$work/config.toml" >"$out/containerd.log" 2>&1 &
children+=($!)
timeout 60 sh -c "until '$HUSK_SUITE/bin/ctr' -a '$work/sock' version >/dev/null 2>&1; do sleep 0.1; done"

arguments=(-config /nonexistent -runtime-endpoint "unix://$work/sock" -image-endpoint "unix://$work/sock" -runtime-handler husk
	--ginkgo.no-color --ginkgo.timeout=60m --ginkgo.flake-attempts=2)
[ -z "$focus" ] || arguments+=("--ginkgo.focus=$focus")
timeout 4000 "$HUSK_SUITE/bin/critest" "${arguments[@]}" >"$out/critest.log" 2>&1 || :
grep -A1 '^• \[FAILED\]' "$out/critest.log" | sed -n 's/^\[k8s.io\] //p' | sort >"$out/failed" || :
grep -E '^Ran |Passed \|' "$out/critest.log" || { say "critest did not end by itself; see $out/critest.log" && exit 1; }
wrong=0
while read -r name; do
	grep -qFx -- "$name" <(sed 's/ *#.*//' "$here/differences") || { say "failed: $name" && wrong=1; }
done <"$out/failed"
exit $wrong
