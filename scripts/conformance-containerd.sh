#!/bin/bash
# Runs containerd's own tests that take a runtime: those of its CRI plugin (cri) and those of its client (client), with runc
# first and then with husk. Every test that passes with runc has to pass with husk, unless
# test/conformance/cri/integration/differences says why not.
#   conformance-containerd.sh [-o OUTDIR] [-f FOCUS] [cri|client]...   OUTDIR keeps what was printed, FOCUS (a regular
#                                                                      expression) chooses tests
# containerd and its tests come through Go's module proxy, checked against the go.sum files below test/conformance/cri.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/node.sh
. "$top/scripts/node.sh"
here=$node_cri/integration

# build_tests DIR builds containerd's tests.
# shellcheck disable=SC2317 # cached calls it
build_tests() {
	local name
	cd "$here" && for name in integration integration/client; do
		CGO_ENABLED=0 "$go" test -c -o "$1/${name##*/}.test" "github.com/containerd/containerd/v2/$name" || return
	done
}

if [ "${HUSK_CONFORMANCE_INSIDE:-}" != 1 ]; then
	node_outside runc
	HUSK_SUITE=$(cached containerd-tests "$(programs_key "$here")" build_tests)
	mkdir -p /var/lib/containerd-test # where the tests of the client keep everything; the node has its own there
	export HUSK_SUITE
	# The tests kill containerd by its name.
	node_enter --pid --fork --kill-child --mount-proc "$0" "$@"
fi

node_options "$@"
shift $((OPTIND - 1))
[ $# -gt 0 ] || set -- cri client

# images prints the list of images for the tests of the CRI plugin.
images() {
	printf '%s = "%s"\n' Alpine "$registry/containerd/busybox:1.36" BusyBox "$registry/containerd/busybox:1.36" Pause registry.k8s.io/pause:3.10.1 \
		VolumeCopyUp "$registry/containerd/volume-copy-up:2.2" VolumeOwnership "$registry/containerd/volume-ownership:2.1" \
		Nginx "$registry/library/nginx:latest"
}

# containerd_stays starts containerd again whenever a test has killed it, with the runtime under test as the default.
# shellcheck disable=SC2317 # it runs in the background
containerd_stays() {
	while :; do
		"$HUSK_CONTAINERD/bin/containerd" --config "$work/config.toml" >>"$out/containerd.log" 2>&1 || :
		sleep 0.2
	done
}

# test_cri RUNTIME runs the tests of the CRI plugin, but for two that have a containerd of their own with its defaults: one makes
# a hundred pods with that, the other upgrades from releases that it downloads.
# shellcheck disable=SC2317 # called by its name
test_cri() {
	sed -i "s/default_runtime_name = .*/default_runtime_name = '$1'/" "$work/config.toml"
	pkill -x containerd || : # of this PID namespace
	until_true 60 ctr -a "$work/sock" version
	timeout 3000 "$HUSK_SUITE/integration.test" -test.v -test.timeout 50m -test.run "$focus" -test.skip '^Test(Reload100Pods|Upgrade)$' -cri-endpoint "unix://$work/sock" \
		-runtime-handler "$1" -containerd-bin containerd -build-dir "$HUSK_CONTAINERD/bin" -image-list "$work/images.toml"
}

# test_client RUNTIME runs the tests of the client, which start a containerd of their own and know images by the names of
# the registries that have them; but for some that wait for ever: for busybox' nc to end by itself, or for a runc with faults.
# shellcheck disable=SC2317 # called by its name
test_client() {
	TEST_RUNTIME=io.containerd.$1.v2 timeout 3000 "$HUSK_SUITE/client.test" -test.v -test.root \
		-test.timeout 50m -test.run "$focus" -test.skip '^Test(BindLowPort|Issue9103|Issue10589)' -no-criu
}

node_up
mkdir "$work/client" && mount --bind "$work/client" /var/lib/containerd-test
others=(ghcr.io registry.k8s.io)
printf '127.0.0.1 %s\n' "${others[@]}" >>/etc/hosts
node_registry . "$work/certificate" "${others[@]}"
node_config
PATH=$top/build/bin:$HUSK_CONTAINERD/bin:$PATH
images >"$work/images.toml"
export SSL_CERT_FILE=$work/certificate
containerd_stays &
children+=($!)
until_true 300 ctr -a "$work/sock" version
wrong=0
for suite; do
	for runtime in runc husk; do
		label=$suite-$runtime start=$SECONDS
		"test_$suite" "$runtime" >"$out/$label.log" 2>&1 || :
		for result in PASS FAIL SKIP; do
			sed -n "s/^ *--- $result: \([^ ]*\) .*/\1/p" "$out/$label.log" | sort >"$out/$label.$result"
		done
		echo "$label: $(wc -l <"$out/$label.PASS") passed, $(wc -l <"$out/$label.FAIL") failed, $(wc -l <"$out/$label.SKIP") skipped, $((SECONDS - start)) s"
	done
	[ -s "$out/$suite-runc.PASS" ] || { say "nothing passes with runc: $suite" && wrong=1; }
	while read -r name; do
		grep -qF -- "$suite ${name%%/*} " "$here/differences" || { say "passes with runc alone: $suite $name" && wrong=1; }
	done < <(comm -23 "$out/$suite-runc.PASS" "$out/$suite-husk.PASS")
done
rmdir /nonexistent/file /nonexistent 2>/dev/null || : # a volume of the tests
exit $wrong
